"""What a training run reads, on paper: the size of each corpus on the disk, and how often it is gone through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.captions.db import read_meta, vocabulary_size
from data.errors import BadInput
from data.regions.disk_size import DiskSize, region_bytes, size_of_regions, stored_widths
from data.storage.text_files import read_json
from model.objectives import OBJECTIVES
from optim.tasks.pretraining import PretrainConfig
from optim.tasks.reranking import RerankingConfig
from optim.tasks.retrieval import RetrievalConfig

Recipe = PretrainConfig | RetrievalConfig | RerankingConfig


@dataclass(frozen=True)
class Corpus:
    """A corpus of a recipe.

    Args:
        name: as the logs have it
        captions, regions: its databases, relative to `root`
        share: of all pairs that training draws
        labels: the objectives that read the soft labels of its regions
    """

    name: str
    captions: list[str]
    regions: list[str]
    share: float
    labels: list[str]


@dataclass(frozen=True)
class Widths:
    """What a region holds, and how many an image has.

    Args:
        regions: of an image
        feature_dim, num_labels: of a region
    """

    regions: float
    feature_dim: int
    num_labels: int


def corpora_of(recipe: Recipe) -> list[Corpus]:
    """The corpora that a recipe trains on; the one of a fine-tuning is called train."""
    if not isinstance(recipe, PretrainConfig):
        return [Corpus("train", _listed(recipe.train_captions), _listed(recipe.train_regions), 1.0, [])]
    whole = sum(ratio for corpus in recipe.data for ratio in corpus.tasks.values())
    return [
        Corpus(
            corpus.name, _listed(corpus.captions), _listed(corpus.regions), sum(corpus.tasks.values()) / whole,
            [task for task in corpus.tasks if OBJECTIVES[task].reads_soft_labels],
        )
        for corpus in recipe.data
    ]  # fmt: skip


def parse_counts(words: Sequence[str], names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """``coco=566747/113287`` → captions and images by the name of a corpus. Raises BadInput for another form or name."""
    counts = {}
    for word in words:
        match = re.fullmatch(r"(.+)=([1-9]\d{0,17})/([1-9]\d{0,17})", word)
        if match is None:
            raise BadInput(f"counts: found {word!r}, expected NAME=CAPTIONS/IMAGES, as in coco=566747/113287")
        if match[1] not in names:
            raise BadInput(f"counts: found {match[1]}, the recipe has {', '.join(names)}")
        counts[match[1]] = int(match[2]), int(match[3])
    return counts


def stored_sizes(recipe: Recipe) -> dict[str, int]:
    """What the databases of a recipe say, as far as they are here: ``vocab_size``, ``feature_dim`` and ``num_labels``, the largest."""
    corpora = corpora_of(recipe)
    metas = [Path(recipe.data_root, name, "meta.json") for corpus in corpora for name in corpus.captions]
    sizes = [vocabulary_size(read_meta(path.parent)) for path in metas if path.is_file()]
    there = [stored_widths(Path(recipe.data_root, name), recipe.boxes) for corpus in corpora for name in corpus.regions]
    widths = [each for each in there if each is not None]
    found = {"vocab_size": max(sizes)} if sizes else {}
    return found | ({"feature_dim": max(width for width, _ in widths), "num_labels": max(labels for _, labels in widths)} if widths else {})


def plan_data(
    recipe: Recipe, counts: Sequence[str], pairs: float, widths: Widths, captions: int | None = None
) -> dict[str, dict]:
    """What each corpus takes.

    Args:
        counts: how many captions and images corpora have, as `parse_counts`; of others their databases say it, where they are
        pairs: that the whole training reads
        widths: of the regions of databases that are not here
        captions: of a fine-tuning's corpus, where that is known and `counts` does not say it

    Returns: corpus → ``captions`` and ``images`` (None: not known), ``passes`` over its captions, ``bytes`` on the disk of captions
        and regions, ``soft_labels``: bytes of these, ``read_soft_labels``: by which objectives, ``on_paper``: whether the sizes are
        reckoned from ``widths`` and not those of files
    """
    corpora = corpora_of(recipe)
    told: dict[str, tuple[int, int | None]] = {} if captions is None else {"train": (captions, None)}
    told |= parse_counts(counts, [corpus.name for corpus in corpora])
    return {corpus.name: _plan_of(corpus, recipe, told.get(corpus.name), pairs, widths) for corpus in corpora}


def _plan_of(corpus: Corpus, recipe: Recipe, told: tuple[int, int | None] | None, pairs: float, widths: Widths) -> dict:
    folders = [Path(recipe.data_root, name) for name in corpus.captions]
    captions, images = told or num_captions_and_images(recipe.data_root, corpus.captions)
    there = [size_of_regions(Path(recipe.data_root, name), recipe.boxes) for name in corpus.regions]
    size: DiskSize | None = None
    if None not in there and all(folder.is_dir() for folder in folders):
        of_captions = sum(path.stat().st_size for folder in folders for path in folder.glob("*") if path.is_file())
        labels = [each.soft_labels for each in there]
        size = DiskSize(of_captions + sum(each.bytes for each in there), None if None in labels else sum(labels))
    on_paper = size is None and images is not None
    if on_paper:
        size = region_bytes(images, widths.regions, widths.feature_dim, widths.num_labels)
    return {
        "captions": captions,
        "images": images,
        "passes": pairs * corpus.share / captions if captions else None,
        "bytes": size.bytes if size else None,
        "soft_labels": size.soft_labels if size else None,
        "read_soft_labels": corpus.labels,
        "on_paper": on_paper,
    }


def data_lines(plan: dict[str, dict]) -> list[str]:
    """The table of `plan_data`, and what to do about soft labels that nothing reads."""
    lines = [f"{'corpus':<20}{'captions':>12}{'images':>12}{'GB on disk':>12}{'soft labels':>13}{'passes':>9}"]
    for name, found in plan.items():
        size, labels, passes = found["bytes"], found["soft_labels"], found["passes"]
        cells = [
            *(f"{'?' if found[key] is None else format(found[key], ',')}".rjust(12) for key in ("captions", "images")),
            f"{'?' if size is None else f'{size / 1e9:.3g}'}{'*' * found['on_paper']}".rjust(12),
            f"{'?' if labels is None else f'{labels / 1e9:.3g}'}".rjust(13),
            f"{'?' if passes is None else format(passes, ',.0f' if passes >= 100 else '.3g')}".rjust(9),
        ]
        lines.append(f"{name:<20}{''.join(cells)}")
    if any(found["on_paper"] for found in plan.values()):
        lines.append("* on paper, of regions alone: their databases are not here")
    if any(found["captions"] is None for found in plan.values()):
        lines.append("? the databases are not here: say how large they are, --counts NAME=CAPTIONS/IMAGES")
    unread = [name for name, found in plan.items() if found["soft_labels"] and not found["read_soft_labels"]]
    if unread:
        lines.append(f"no objective reads the soft labels of {', '.join(unread)}: scripts/extract_regions.py --soft-labels none leaves them out")
    return lines


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def num_captions_and_images(root: str, captions: str | list[str]) -> tuple[int | None, int | None]:
    """How many captions text DBs have together, and images; None where they are not here."""
    tables = [[Path(root, name, table) for name in _listed(captions)] for table in ("id2len.json", "img2txts.json")]
    found = [sum(len(read_json(path)) for path in paths) if all(path.is_file() for path in paths) else None for paths in tables]
    return found[0], found[1]
