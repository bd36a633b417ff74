"""The commands that train on what was prepared, open it in a browser, and measure it: as they are to be typed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.notices import say
from data.regions.db import BoxOptions, layout_of
from data.regions.extractor_record import read_extractor


def typed_path(path: str | Path) -> Path:
    """A path as it is typed where the command runs."""
    path = Path(path)
    return Path(os.path.relpath(path)) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def print_commands(commands: Mapping[str, Sequence[str]]) -> None:
    """Print commands by their names, one a line."""
    for name, words in commands.items():
        print(f"{name + ':':<9} python {shlex.join(map(str, words))}", flush=True)


def warn_of_untrained(regions: Path) -> None:
    """Warn, as the last line, of regions that an untrained extractor made; and say what to give instead."""
    made_by = next((each for path in sorted(regions.iterdir()) if layout_of(path.name) and (each := read_extractor(path))), None)
    if made_by is None or made_by.kind != "random-conv":
        return
    from model.extractors.choice import usual_extractors  # imports torch, which is slow

    others = " or ".join(each.name for each in usual_extractors() if each.name != made_by.kind)
    say(
        f"warning: {regions}: its regions are random-conv's, an untrained network's: recall on photographs will be near chance; delete {regions} and "
        f"give --extractor {others}, or a --checkpoint that was trained on regions of one of them"
    )


def search_command(checkpoint: str | Path, out: Path, photos: str, captions: Sequence[Path] = ()) -> list[str]:
    """The command that opens prepared photographs in a browser; a folder of photographs is shown, a tar file is not."""
    words = ["scripts/serve.py", "--checkpoint", str(checkpoint), "--index", str(out / "index"), "--regions", str(out / "regions")]
    words += ["--photos", photos] if Path(photos).is_dir() else []
    return words + (["--captions", *map(str, captions), "--captions-index", str(out / "index_captions")] if captions else [])


def boxes_of(regions: Path) -> BoxOptions:
    """Which boxes of prepared photographs readers use, as the folder's name says them."""
    layouts = [layout for path in sorted(regions.iterdir()) if (layout := layout_of(path.name))]
    return next((boxes for boxes, _ in layouts if boxes is not None), BoxOptions())


def training_commands(
    out: Path, photos: str, recipe: str, splits: Sequence[str], checkpoint: str | None = None
) -> dict[str, list[str]]:
    """The commands that train, search and evaluate, and that train a re-ranker.

    Args:
        recipe: of the training
        splits: there are databases of
        checkpoint: that training starts from; None: as the recipe says
    """
    regions, best = out / "regions", out / "run" / "best"
    boxes = boxes_of(regions)
    names = () if boxes == BoxOptions() else ("conf_th", "max_bb", "min_bb")
    told = [word for name in names for word in (f"--boxes.{name.replace('_', '-')}", str(getattr(boxes, name)))]
    shared = ["--data-root", str(out), *told]
    start = ["--model.init", checkpoint] if checkpoint is not None else []
    of_captions = ["--captions", str(out / "db" / ("test" if "test" in splits else "val")), "--regions", str(regions), *told]
    reranker = "configs/finetune/uniter_own_small.yaml"
    return {
        "train": ["train_itm.py", "--config", recipe, *shared, *start, "--out", str(out / "run")],
        "search": search_command(best, out, photos, [out / "db" / name for name in splits]),
        "evaluate": ["eval_itm.py", "--checkpoint", str(best), *of_captions],
        "re-rank": ["train_itm.py", "--model", "uniter", "--config", reranker, *shared, "--model.init", str(best), "--out", str(out / "reranker")],
    }
