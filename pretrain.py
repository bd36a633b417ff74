#!/usr/bin/env python
"""Pre-train both towers with VMLM, SMRM and CMR (Sun et al., NAACL 2021, section 3).

python pretrain.py --config configs/pretrain/demo.yaml                 # on one GPU where there is one, else on the CPU
python pretrain.py --config configs/pretrain/demo.yaml --device cpu --optim.lr 1e-4 --out runs/other
torchrun --nproc-per-node 8 pretrain.py --config ...                   # eight GPUs of one machine
horovodrun -np 8 python pretrain.py --config ...                       # the same with Horovod

The same command again goes on after a stop, whatever stopped it.
"""

from math import isfinite
from pathlib import Path

from configs import cli  # before torch, which takes a second: from here on Ctrl-C is one line

# isort: split
import torch

from model.distributed import start_ranks
from model.precision import choose_device
from optim.loop import fit
from optim.run import StopSignal
from optim.tasks.pretraining import PretrainConfig, Pretraining


def main(config: PretrainConfig) -> None:
    stop = StopSignal()
    device = choose_device(config.device)
    ranks = start_ranks(config.distributed, device.type == "cuda", config.distributed_timeout)
    ranks.claim_output(config.out)
    torch.manual_seed(config.seed)
    task = Pretraining(config, device, ranks)
    best = fit(task, config, device, ranks, stop)
    if ranks.is_first:
        run = Path(config.out)
        of_all = f"best {run / 'best'} (lowest val/loss {best:.4g})" if isfinite(best) else "which is the best: no corpus has val_captions"
        print(f"last checkpoint {run / 'last'}, {of_all}")


if __name__ == "__main__":
    cli.run(main, PretrainConfig, often="model.init model.txt_init model.img_init optim.lr tokens_per_batch grad_accumulation num_steps valid_every save_every precision device workers seed")
