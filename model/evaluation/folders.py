"""Where evaluations of a checkpoint stand: in the folder of its run, which outlives the checkpoint, else beside its weights.

    RUN/eval/step-00001000/NAME     of RUN/checkpoints/step-00001000, also as RUN/best or RUN/last; NAME is the text DB's
    CHECKPOINT/eval/NAME            of a checkpoint that is of no run: a converted or a copied one
    eval/USER--NAME/NAME            of a checkpoint of the Hugging Face hub, below the folder where the command runs
"""

from __future__ import annotations

import re
from pathlib import Path

from data.downloads.hub import PREFIX, hub_name
from data.errors import BadInput
from data.storage.regular_files import real_path
from data.storage.text_files import read_json

_TABLES = {"recall": {str: {str: float}}, "intervals?": {str: (None, {str: {"low": float, "high": float}})}}
_RERANKED = _TABLES | {"mixed?": _TABLES | {"mix?": float}, "bi-encoder?": _TABLES}
RESULTS = _TABLES | {  # results.json of eval_itm.py; older ones lack some
    "ranks?": str,
    "data?": {str: str},
    "chance?": {str: {str: float}},
    "queries?": {str: {str: int}},
    "config?": {"checkpoint?": str, "captions?": str, "data_root?": str, "gallery?": (None, [str]), str: object},
    "environment?": {str: object},
    "duplicate_aware?": _TABLES,
    "reranker?": {"top?": {str: _RERANKED}, "seconds?": {str: float}},
}


def read_results(path: str | Path) -> dict:
    """The results.json of an evaluation. Raises BadInput where it is missing or another file."""
    return read_json(path, "give a results.json of eval_itm.py", RESULTS)


def evaluations_folder(checkpoint: str | Path) -> Path:
    """The folder that holds a checkpoint's evaluations, one a text DB."""
    typed, real = Path(checkpoint), real_path(checkpoint)
    if not typed.exists() and hub_name(str(checkpoint)) is not None:
        return Path("eval", str(checkpoint).removeprefix(PREFIX).replace("/", "--"))
    run = real.parent.parent
    if real.parent.name != "checkpoints" or not re.fullmatch(r"step-\d+", real.name) or not (run / "config.yaml").is_file():
        return typed / "eval"
    for shown in (typed.parent, typed.parent.parent):  # as the user named it
        if real_path(shown) == run:
            return shown / "eval" / real.name
    return run / "eval" / real.name


def find_results(path: str | Path) -> Path:
    """The results.json that a path means: the file, its folder, or a checkpoint or run that has one evaluation. Of a run
    that of its best checkpoint is meant, where there is one.

    Raises:
        BadInput: there is none, or there are several; the message names them.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / "results.json").exists():
        return path / "results.json"
    is_run = (path / "checkpoints").is_dir()
    checkpoint = next((path / name for name in ("best", "last") if is_run and (path / name).is_dir()), path)
    folders = [evaluations_folder(checkpoint), checkpoint / "eval", path]
    found = next((some for folder in folders if (some := sorted(folder.glob("*/results.json")))), [])
    found = found or sorted(path.glob("eval/*/*/results.json"))
    if not found:
        raise BadInput(f"{path}: no results.json in it, nor in {folders[0]}; evaluate with eval_itm.py")
    if len(found) > 1:
        names = ", ".join(str(file.parent) for file in found)
        raise BadInput(f"{path}: holds {len(found)} evaluations, {names}; name one of them")
    return found[0]
