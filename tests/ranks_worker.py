"""What several ranks compute, written down for tests/model/test_distributed.py: `torchrun ranks_worker.py CASES OUT`.

A problem is 7 pairs and 2 hard negatives, which ranks share unevenly; one process computes the same with all of them.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.batches.batch import Batch, collate_images, collate_texts
from data.batches.ragged import Predicted
from data.errors import BadInput
from data.regions.db import Regions
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import Ranks, start_ranks
from model.objectives import OBJECTIVES
from model.objectives.backward import Backward
from model.objectives.base import ObjectiveOptions
from model.objectives.contrastive.options import LossOptions
from model.objectives.heads import PretrainingHeads, heads_of
from model.objectives.smrm import MaskedRegions
from model.precision import loss_scaler
from model.transformer import EncoderConfig
from optim.optimizer import OptimOptions, apply_update, build_optimizer

PAIRS, HARD = 7, 2
IMAGES = [0, 1, 0, 2, 3, 1, 0, 5, 6]  # siblings stand on different ranks; the last two rows are hard negatives
CASES = ("vmlm", "mrfr", "mrckl", "mrc", "cmr", "cmr_keep", "cmr_hard", "cmr_cached", "cmr_empty",
         "cmr_learned", "cmr_sigmoid", "cmr_sigmoid_cached", "cmr_sigmoid_empty",
         "cmr_apart", "cmr_apart_sigmoid_cached")  # fmt: skip
TEXT_IMAGES = [*IMAGES[:PAIRS], 3, 1]  # what the captions are about where hard negatives have captions and images apart
APART_CASES = ("cmr_apart", "cmr_apart_sigmoid_cached", "cmr_own_apart")
# negatives of the own rank alone: several ranks are the mean of each by itself
OWN_CASES = ("cmr_own", "cmr_own_keep", "cmr_own_hard", "cmr_own_cached", "cmr_own_sigmoid_cached", "cmr_own_learned_empty",
             "cmr_own_apart", "vmlm_own", "mrfr_own")  # fmt: skip
HARD_CASES = ("cmr_hard", "cmr_cached", "cmr_learned", "cmr_sigmoid", "cmr_sigmoid_cached",
              "cmr_own_hard", "cmr_own_cached", "cmr_own_sigmoid_cached")  # with a third view, a teacher  # fmt: skip


def build(dropout: float = 0.0) -> tuple[LightningDOT, PretrainingHeads]:
    torch.manual_seed(0)
    sizes = EncoderConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, initializer_range=0.2, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    config = LightningDOTConfig(txt=sizes, img=sizes, project_dim=12, feature_dim=6, num_labels=5, cls_token_id=2)
    return LightningDOT(config).train(), PretrainingHeads(config).train()


def make_batch(case: str, rows: list[int]) -> Batch:
    """The rows of the problem, padded as a batch of their own."""
    everything = np.random.default_rng(1)
    texts = [everything.integers(5, 40, everything.integers(3, 9)) for _ in IMAGES]
    labels = [np.where(everything.random(len(t)) < 0.4, t, -1) for t in texts]
    counts = everything.integers(2, 6, len(IMAGES))
    images = [
        Regions(
            everything.normal(size=(n, 6)).astype(np.float16), everything.random((n, 6)).astype(np.float16), np.ones(n)
        )
        for n in counts
    ]
    masked = [everything.random(n) < 0.5 for n in counts]
    soft = [everything.dirichlet(np.ones(5), n).astype(np.float16) for n in counts]
    teacher = everything.normal(size=(len(IMAGES), 4)).astype(np.float32)
    captions = [everything.integers(5, 40, everything.integers(3, 7)) for _ in range(7)]

    batch = Batch(
        collate_texts([texts[row] for row in rows]),
        collate_images([images[row] for row in rows]),
        torch.tensor([IMAGES[r] for r in rows]), [], [],
    )  # fmt: skip
    if case.startswith("vmlm"):
        batch.word_labels = torch.from_numpy(np.concatenate([labels[row] for row in rows]))
        batch.predicted = Predicted.at((batch.word_labels != -1).numpy(), batch.texts.layout)
    elif case.startswith("mr"):
        MaskedRegions.mask(batch, np.concatenate([masked[row] for row in rows]))
        batch.label_targets = torch.from_numpy(np.concatenate([soft[row][masked[row]] for row in rows]))
    elif case in APART_CASES:
        batch.text_image_ids = torch.tensor([TEXT_IMAGES[r] for r in rows])
    elif case in HARD_CASES:
        batch.captions = collate_texts([captions[IMAGES[row]] for row in rows])
        batch.caption_weight = 0.2
        batch.teacher_images = torch.tensor([[0, 1, 2, IMAGES[row]] for row in rows])
        batch.teacher_scores = torch.from_numpy(teacher[rows])
    return batch


def shares(case: str, size: int) -> list[tuple[list[int], int]]:
    """(rows of the problem, pairs among them) of each rank: uneven, one rank empty in its case."""
    hard = case in HARD_CASES + APART_CASES
    bounds = {1: [0, 7], 2: [0, 5, 7], 3: [0, 1, 4, 7]}[size]
    if case.endswith("_empty") and size > 1:
        bounds = [0, *[7] * size]
    parts = []
    for rank in range(size):
        pairs = list(range(bounds[rank], bounds[rank + 1]))
        extra = [PAIRS + n for n in range(HARD) if hard and n % size == rank]
        parts.append((pairs + extra, len(pairs)))
    return parts


def compute(
    case: str,
    ranks: Ranks,
    model: LightningDOT,
    heads: PretrainingHeads,
    precision: str = "fp32",
    share: tuple[list[int], int] | None = None,
) -> dict:
    """Loss of all ranks and their summed gradients, as training computes them; ``share`` in place of this rank's."""
    rows, num_pairs = share or shares(case, ranks.size)[ranks.rank]
    batch = make_batch(case, rows or [0])
    task = case.split("_")[0]
    batch.num_pairs = num_pairs if task == "cmr" else None
    distill = {"distill_weight": 0.5, "distill_temperature": 2.0} if batch.teacher_scores is not None else {}
    loss = LossOptions("sigmoid") if "sigmoid" in case else LossOptions(temperature="learned" if "learned" in case else None)
    options = ObjectiveOptions(siblings="keep" if case.endswith("keep") else "mask", loss=loss, **distill)
    if case in OWN_CASES:
        options = dataclasses.replace(options, negatives="own_rank")
    objective = OBJECTIVES[task](options)
    if list(loss.build().parameters()):
        heads = heads_of(objective, model.config)
    model.config.similarity = "cosine" if list(heads["contrast"].parameters()) else "dot"
    met = ranks.meet([0], batch.num_rows, objective.num_predictions(batch))
    scaler = loss_scaler(torch.device("cpu"), precision)
    parameters = [*model.named_parameters(), *heads.named_parameters()]
    for _, parameter in parameters:
        parameter.grad = None
    step = Backward(model, heads, ranks, precision, cache_rows=2 if case.endswith("_cached") else 0)
    share = step.add_gradients(objective, batch, met, scaler, accumulation=1)
    ranks.sum_gradients([parameter for _, parameter in parameters])
    gradients = {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}
    loss = ranks.sum_array(np.array([float(share.detach())]))[0]
    return {"loss": torch.tensor(loss), "gradients": gradients}


def main(cases: list[str], out: str) -> None:
    torch.set_num_threads(1)
    ranks = start_ranks("auto", uses_gpu=False, timeout=float(os.environ.get("RANKS_TIMEOUT", 60)))
    model, heads = build()
    results = {}
    for case in cases:
        if case == "weights":  # each rank starts with others; after the broadcast and a step all have the same
            torch.manual_seed(ranks.rank)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
            ranks.broadcast(model.state_dict().values())
            optimizer = build_optimizer([model], OptimOptions(lr=0.1))
            sum(parameter.square().sum() * (ranks.rank + 1) for parameter in model.parameters()).backward()
            apply_update(optimizer, loss_scaler(torch.device("cpu"), "fp32"), ranks, 0.1, max_norm=1.0)
            flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
            everyone = ranks.gather(flat[None], [1] * ranks.size)
            results[case] = {"spread": (everyone - everyone[:1]).abs().max(), "first": flat[:4]}
            model, heads = build()
        elif case == "out_of_step":
            try:
                ranks.meet([3, ranks.rank], 1, 1)
            except BadInput as error:
                results[case] = {"message": str(error)}
        elif case == "dead":
            if ranks.rank == 1:
                os._exit(7)
            started = time.monotonic()
            try:
                ranks.exchange([1])
            except BadInput as error:
                results[case] = {"message": str(error), "seconds": time.monotonic() - started}
        elif case == "types":
            whole = [ranks.gather(torch.full((ranks.rank + 1, 2), ranks.rank, dtype=dtype), range(1, ranks.size + 1))
                     for dtype in (torch.int64, torch.bfloat16, torch.bool, torch.float16)]  # fmt: skip
            results[case] = {"dtypes": [str(x.dtype) for x in whole], "rows": [x[:, 0].float() for x in whole]}
        else:
            results[case] = compute(case, ranks, model, heads)
    if ranks.is_first:
        torch.save(results, out)
    if "dead" not in cases:
        ranks.close()
        # Gloo's threads that live on while the interpreter ends can abort the process, after all is done
        threads = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
        assert not any("gloo" in name for name in threads), threads


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2])
