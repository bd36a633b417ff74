"""Training of a re-ranker, UNITER for image–text retrieval, on the hard negatives of the bi-encoder that it ranks again after
(Chen et al., ECCV 2020)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.batches.batch import collate_for_ranking
from data.errors import BadInput
from model.bi_encoder import LightningDOT
from model.distributed import Meeting, Ranks
from model.evaluation.reranked import first_rankings, recall_before, rerank_all
from model.initial import say_of_random_weights
from model.precision import autocast
from model.retrieval.mining import HardNegativeOptions, hard_negatives_of
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.reranking import PairScores
from model.retrieval.results import Found
from model.uniter import RerankerModelOptions, build_reranker, check_reranker, forward_ranking
from optim.loop import Last, MicroBatch, Validation
from optim.run import print_first
from optim.tasks.finetuning import Finetuning, FinetuningSettings, Tables, check_towers, fit_lengths, open_training_data


@dataclass
class RerankerOptions:
    """How a re-ranker is trained and validated.

    Args:
        miner: LightningDOT checkpoint: its ranking is what hard negatives are drawn from (hard_negatives.count and window),
            and what is ranked again in validation; none: model.init, where that is one
        margin: by which the sigmoid of a pair's score has to be above those of its mismatches
        top: candidates of each validation query that are ranked again, or all where there are fewer
        mix: in validation, weight of the bi-encoder's score, which is added to the re-ranker's; the best checkpoint is chosen by it
        mixes: other weights that validation tries: each checkpoint keeps the one, of these and mix, of the best AR (of equal ones
            mix, then the first), and what ranks again with it takes that. Empty: it keeps mix
    """

    miner: str | None = None
    margin: float = 0.2
    top: int = 20
    mix: float = 0.0
    mixes: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0, 2.0])

    def __post_init__(self):
        if self.top < 1 or self.margin <= 0 or self.mix < 0:
            raise BadInput(
                f"reranker: top {self.top} must be at least 1, margin {self.margin} above 0, and mix {self.mix} at least 0"
            )
        if not all(math.isfinite(mix) and mix >= 0 for mix in [self.mix, *self.mixes]):
            raise BadInput(f"reranker: mixes {self.mixes} and mix {self.mix} must be numbers of at least 0")


@dataclass(kw_only=True)
class RerankingConfig(FinetuningSettings):
    """Train a UNITER to rank again what a LightningDOT finds.

    Args:
        model: where the weights start
        reranker: what it learns from, and how it is validated
        hard_negatives: what each pair is told from, mined from the index of the training images
    """

    model: RerankerModelOptions = field(default_factory=RerankerModelOptions)
    reranker: RerankerOptions = field(default_factory=RerankerOptions)
    hard_negatives: HardNegativeOptions = field(default_factory=lambda: HardNegativeOptions(count=2))

    def __post_init__(self):
        super().__post_init__()
        if self.reranker.miner is None and self.model.init is None:
            raise BadInput(
                "reranker.miner: give the LightningDOT checkpoint whose hard negatives model.kind uniter learns from (as model.init, "
                "where it starts from its weights too)"
            )
        self.reranker.miner = self.reranker.miner or self.model.init
        if not self.hard_negatives.count:
            raise BadInput("model.kind uniter learns from hard negatives: give hard_negatives.count")


class Reranking(Finetuning):
    """A re-ranker, trained to tell pairs from what the bi-encoder takes for pairs; an `optim.loop.Task`.

    Raises:
        BadInput: databases or weights that are missing or do not fit each other.
    """

    loss_name = "ranking"
    miner_changes = False
    prepare = staticmethod(collate_for_ranking)

    def __init__(self, config: RerankingConfig, device: torch.device, ranks: Ranks):
        train, val = open_training_data(config, ranks)
        model, origin = build_reranker(config.model, train)
        check_reranker(model.config, config.model.init or "model", val)
        print_first(ranks, f"re-ranker from {origin}")
        miner = LightningDOT.from_pretrained(config.reranker.miner)
        tokens = min(model.config.encoder.max_tokens, miner.config.txt.max_tokens)
        train = fit_lengths(train, val, tokens, config.long_captions, ranks)
        random = [] if config.model.init else ["re-ranker"]
        say_of_random_weights(config.model, random, len(train), "configs/finetune/uniter_own_small.yaml")
        hard_negatives = hard_negatives_of(train, config.hard_negatives, random_first=True)
        check_towers(miner, config.reranker.miner, train, val)
        super().__init__(config, train, val, hard_negatives, model, miner, device, ranks)
        self.data["training miner"] = self.data["validation miner"] = self.miner.fingerprint or ""
        self.mix = config.reranker.mix  # of the best AR in the last validation
        self.first = first_rankings(self.miner, val, config.reranker.top, device, config.precision, ranks)

    def backward(
        self, micro_batch: MicroBatch, meeting: Meeting, scaler: torch.amp.GradScaler, accumulation: int, last: Last
    ) -> Tensor:
        batch = micro_batch.batch.to(self.device)
        with autocast(self.device, self.config.precision):
            losses = forward_ranking(self.model, batch, self.config.reranker.margin)
            share = losses.sum() / meeting.predictions
        with last():
            scaler.scale(share / accumulation).backward()
        return share

    def recall(self) -> tuple[Tables, Tables, Found | None]:
        options, self.mix = self.config.reranker, self.config.reranker.mix
        scores = PairScores(PairScorer(self.model, self.device, self.config.precision), self.val, self.ranks)
        tables = rerank_all(scores, self.first, self.mix)
        best = tables["all"]["AR"]
        for mix in options.mixes:
            found = rerank_all(scores, self.first, mix)["all"]["AR"]
            if found > best:
                self.mix, best = mix, found
        print_first(self.ranks, f"mix {self.mix:g} ranks best: AR {best:.2f}, with mix {options.mix:g} {tables['all']['AR']:.2f}")
        found = self.sheet and self.sheet.found_again(self.first, scores, self.mix)
        return tables, {"bi-encoder": recall_before(self.first)}, found

    def validate(self, step: int) -> Validation:
        found = super().validate(step)
        return dataclasses.replace(found, record=(found.record or {}) | {"mix": self.mix})
