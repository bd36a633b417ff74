#!/usr/bin/env python
"""Fine-tune both towers for image–text retrieval: contrastive loss, validation recall after every epoch. Or train a
re-ranker for what they find: pairwise ranking loss.

python train_itm.py --config configs/finetune/demo.yaml                          # on one GPU where there is one
python train_itm.py --config configs/finetune/demo.yaml --device cpu --model.init runs/demo/pretrain/last --epochs 3
python train_itm.py --model uniter --config configs/finetune/uniter_demo.yaml    # a re-ranker
torchrun --nproc-per-node 8 train_itm.py --config ...                            # eight GPUs of one machine
horovodrun -np 8 python train_itm.py --config ...                                # the same with Horovod

The same command again goes on after a stop, whatever stopped it.
"""

from pathlib import Path

from configs import cli  # before torch, which takes a second: from here on Ctrl-C is one line

# isort: split
import torch

from model.distributed import start_ranks
from model.precision import choose_device
from optim.loop import fit
from optim.run import StopSignal
from optim.tasks.reranking import Reranking, RerankingConfig
from optim.tasks.retrieval import Retrieval, RetrievalConfig

CONFIGS = cli.Choice("model.kind", {"lightningdot": RetrievalConfig, "uniter": RerankingConfig})


def main(config: RetrievalConfig | RerankingConfig) -> None:
    stop = StopSignal()
    device = choose_device(config.device)
    ranks = start_ranks(config.distributed, device.type == "cuda", config.distributed_timeout)
    ranks.claim_output(config.out)
    torch.manual_seed(config.seed)
    task = (Reranking if isinstance(config, RerankingConfig) else Retrieval)(config, device, ranks)
    best = fit(task, config, device, ranks, stop)
    if ranks.is_first:
        print(f"best validation AR {best:.2f}: {Path(config.out) / 'best'}")


if __name__ == "__main__":
    cli.run(main, CONFIGS, often="data_root model.init optim.lr batch_size epochs hard_negatives.count reranker.miner precision device workers seed")
