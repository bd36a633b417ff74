"""Annotation files as tests write them."""

import json

from data.annotations.records import Caption


def karpathy(path, splits, name="{}.jpg"):
    images = [
        {"filename": name.format(n), "split": split, "sentences": [{"raw": f"a dog {n}", "sentid": n}]}
        for n, split in splits.items()
    ]
    path.write_text(json.dumps({"images": images, "dataset": "x"}))
    return path


def captions_of(names, split="train"):
    return [Caption(name, "x", f"{name}#{i}", split, "en") for name in names for i in range(2)]
