"""What several ranks compute, written down for tests/model/test_distributed.py: `torchrun ranks_worker.py CASES OUT`.

A problem is 7 pairs and 2 hard negatives, which ranks share unevenly; one process computes the same with all of them.
"""

import contextlib
import dataclasses
import functools
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
from model import gradient_exchange
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import Announced, Ranks, start_ranks
from model.gradient_exchange import GradientExchange
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
         "cmr_apart", "cmr_apart_sigmoid_cached", "cmr_once", "cmr_once_cached")  # fmt: skip
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
    if case.startswith("cmr_once"):  # pairs of one image share it
        shown, batch.image_rows = batch.image_ids.unique(return_inverse=True)
        batch.images = collate_images([images[IMAGES.index(image)] for image in shown])
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
    """Loss of all ranks and their summed gradients, as training computes them; ``share`` in place of this rank's.

    ``again`` are those of a second update, whose gradients leave while backward runs; ``naive`` are summed afterwards.
    """
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
    met = ranks.meet([Announced((0,), batch.num_rows, objective.num_predictions(batch))])()[0]
    scaler = loss_scaler(torch.device("cpu"), precision)
    parameters = [*model.named_parameters(), *heads.named_parameters()]
    step = Backward(model, heads, ranks, precision, cache_rows=2 if case.endswith("_cached") else 0)
    exchange = GradientExchange([parameter for _, parameter in parameters], ranks)
    updates, underway = [], 0
    for _ in range(2):
        for _, parameter in parameters:
            parameter.grad = None
        last = functools.partial(exchange.last_backward, case)
        share = step.add_gradients(objective, batch, met, scaler, 1, last)
        own = {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}
        underway = len(exchange._underway)
        exchange.finish()
        updates.append({name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None})
    flat = torch.from_numpy(ranks.sum_array(torch.cat([gradient.reshape(-1) for gradient in own.values()]).numpy()))
    parts = flat.split([gradient.numel() for gradient in own.values()])
    naive = {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}
    loss = ranks.sum_array(np.array([float(share.detach())]))[0]
    return {
        "loss": torch.tensor(loss), "gradients": updates[0], "again": updates[1], "naive": naive, "buckets": underway
    }  # fmt: skip


def exchange_by_hand(ranks: Ranks) -> dict:
    """Gradients 2n of parameters 3, 5, 7 and 2, n times as large on rank n - 1."""
    parameters = [torch.nn.Parameter(torch.full((size,), float(size))) for size in (3, 5, 700, 2)]
    exchange = GradientExchange(parameters, ranks)

    def update(name: str, used: list[int], exchange: GradientExchange = exchange) -> list:
        for parameter in parameters:
            parameter.grad = None
        for times in (1, 2):  # two batches of an update
            with exchange.last_backward(name) if times == 2 else contextlib.nullcontext():
                sum((ranks.rank + 1) * times * parameters[n].sum() for n in used).backward()
        exchange.finish()
        return [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]

    found = {"learnt": update("a", [0, 1, 2]), "sent": update("a", [0, 1, 2]), "other": update("b", [3])}
    found["fewer"] = update("a", [0, 2] if ranks.rank else [0, 1, 2])
    found["more"] = update("a", [0, 1, 2, 3])
    for name in ("fp16", "bf16"):
        try:
            rounding = GradientExchange(parameters, ranks, name)
            found[name] = [update("a", [1, 2], rounding) for _ in range(2)]
        except BadInput as error:
            found[name] = str(error)
    try:
        update("different", [ranks.rank])
    except BadInput as error:
        found["different"] = str(error)
    return found


def main(cases: list[str], out: str) -> None:
    torch.set_num_threads(1)
    gradient_exchange.BUCKET_BYTES = 3000  # several buckets of a model that is small
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
            GradientExchange(model.parameters(), ranks).finish()
            apply_update(optimizer, loss_scaler(torch.device("cpu"), "fp32"), 0.1, max_norm=1.0)
            flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
            everyone = ranks.gather(flat[None], [1] * ranks.size)
            results[case] = {"spread": (everyone - everyone[:1]).abs().max(), "first": flat[:4]}
            model, heads = build()
        elif case == "out_of_step":
            try:
                ranks.meet([Announced((3, ranks.rank), 1, 1)])()
            except BadInput as error:
                results[case] = {"message": str(error)}
        elif case == "ahead":  # told of before the other operations, waited for after them
            told = [Announced((n,), ranks.rank + n, 10 * n) for n in (1, 2)]
            wait = ranks.meet(told, stop="SIGTERM" if ranks.rank == 1 else None)
            ranks.barrier()
            results[case] = {"met": [list(meeting) for meeting in wait()]}
            del wait  # it holds the group
        elif case == "exchange":
            results[case] = exchange_by_hand(ranks)
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
        torch.save(results | {"backend": ranks.backend}, out)
    if "dead" not in cases:
        ranks.close()
        # Gloo's threads that live on while the interpreter ends can abort the process, after all is done
        threads = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
        assert not any("gloo" in name for name in threads), threads


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2])
