"""How many pictures and captions the public data sets hold, and where a file differs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from data.annotations.records import Caption

# data set -> split -> language -> (pictures, captions). COCO's train holds restval. Karpathy's splits, unless said.
COUNTS: dict[str, dict[str, dict[str, tuple[int, int]]]] = {
    "flickr30k": {
        "train": {"en": (29_000, 145_000)},
        "val": {"en": (1_014, 5_070)},
        "test": {"en": (1_000, 5_000)},
    },
    "flickr8k": {"train": {"en": (6_000, 30_000)}, "val": {"en": (1_000, 5_000)}, "test": {"en": (1_000, 5_000)}},
    "coco": {
        "train": {"en": (113_287, 566_747)},
        "val": {"en": (5_000, 25_010)},
        "test": {"en": (5_000, 25_010)},
    },
    "coco2014-train": {"train": {"en": (82_783, 414_113)}},
    "coco2014-val": {"val": {"en": (40_504, 202_654)}},
    "coco2017-train": {"train": {"en": (118_287, 591_753)}},
    "coco2017-val": {"val": {"en": (5_000, 25_014)}},
    "coco-cn": {"test": {"zh": (1_000, 1_053)}},  # of train and val only the pictures were published
}
_PICTURES = {
    "train": 29_000,
    "val": 1_014,
    "test_2016": 1_000,
    "test_2017": 1_000,
    "test_2018": 1_071,
    "test_coco": 461,
}
COUNTS["multi30k-task1"] = {s: dict.fromkeys(("en", "de", "fr", "cs"), (n, n)) for s, n in _PICTURES.items()}
COUNTS["multi30k-task2"] = {s: dict.fromkeys(("en", "de"), (n, 5 * n)) for s, n in _PICTURES.items()}
COUNTS["multi30k"] = {
    split: COUNTS["multi30k-task2"][split] | {name: table[name] for name in ("fr", "cs")}
    for split, table in COUNTS["multi30k-task1"].items()
}
# Published without captions in every language: what is absent there is no difference.
_MAY_LACK = ("test_2016", "test_2017", "test_2018", "test_coco")


def differences(dataset: str, captions: Iterable[Caption]) -> list[str]:
    """One line for each split and language whose numbers of pictures or captions are not the published ones.

    The splits must be those of the file, before anything is left out.
    """
    pictures: dict[tuple[str, str], set[str]] = defaultdict(set)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for caption in captions:
        split = "train" if caption.split == "restval" else caption.split
        pictures[split, caption.language].add(caption.image)
        counts[split, caption.language] += 1
    lines = []
    for split, languages in COUNTS[dataset].items():
        for language, expected in languages.items():
            found = len(pictures[split, language]), counts[split, language]
            if found != expected and not (found == (0, 0) and split in _MAY_LACK and dataset.startswith("multi30k")):
                lines.append(
                    f"{dataset}, split {split}, {language}: found {found[0]:,} pictures and {found[1]:,} captions, "
                    f"published are {expected[0]:,} and {expected[1]:,}"
                )
    return lines
