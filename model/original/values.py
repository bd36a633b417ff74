"""What a value of the original's configs is here: one function for each way of translating.

Each takes the original's value and the whole config, and gives ours; or raises `Ignored` or `Refused`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from model.original.kinds import Kind

TASKS = {"itm": "cmr", "mlm": "vmlm", "mrfr": "mrfr", "mrckl": "mrckl", "mrc-kl": "mrckl", "mrc": "mrc"}
WEIGHTS = (".pt", ".pth", ".bin")
BERT_NAMES = "google-bert"  # whose models have names without an owner at Hugging Face


class Ignored(ValueError):
    """This value has no effect on the results. The message says why; without one the key's note does."""


class Elsewhere(Ignored):
    """This value has no setting of its own: another key's translation, or a step before, takes it in. The message says which."""


class Refused(ValueError):
    """This value asks for something that is not here. The message says what; without one the key's note does."""


@dataclass
class Old:
    """A config of the original, as its command reads it.

    Attributes:
        kind: what it configures
        values: its keys, those that are absent with their defaults; paths as its mappings make them, "none" as None
        steps: commands that have to run first, for the user; values add to them
        remarks: what the recipe does otherwise than the original, for the user; values add to them
    """

    kind: Kind
    values: Mapping[str, Any]
    steps: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        return self.values.get(name)


Value = Callable[[Any, Old], Any]


# ---- without effect, or without a counterpart ------------------------------------------------------------------------


def as_it_is(value: Any, old: Old) -> Any:
    return value


def ignored(value: Any, old: Old) -> Any:
    raise Ignored


def off_by_default(value: Any, old: Old) -> Any:
    if not value:
        raise Ignored(f"{json.dumps(value)} is the default")
    return value


def only_in_training(*values: Any) -> Value:
    """These values have no effect, any other is refused, unless the config is an evaluation's."""

    def value(value: Any, old: Old) -> Any:
        if value not in values and old.kind != "eval":
            raise Refused
        raise Ignored

    return value


# ---- databases -------------------------------------------------------------------------------------------------------


def folder(value: str | None, old: Old) -> str:
    if not value:
        raise Ignored("none is given")
    if not isinstance(value, str):
        raise Refused(f"one folder is expected, found {json.dumps(value)}")
    return value.rstrip("/") or value


def folders(value: list[str] | str, old: Old) -> list[str] | str:
    values = [value] if isinstance(value, str) else value
    if not values:
        raise Ignored("none is given")
    found = [folder(each, old) for each in values]
    return found if len(found) > 1 else found[0]


def img_folders(value: list[str] | str, old: Old) -> list[str] | str:
    texts = old.get("train_txt_dbs")
    if isinstance(value, list) and isinstance(texts, list) and len(value) not in (1, len(texts)):
        raise Refused(f"train_txt_dbs are {len(texts)}; each has its own image database, or all have one")
    return folders(value, old)


def unless_given(*others: str) -> Value:
    """A folder that counts only where none of the others is given."""

    def value(value: str | None, old: Old) -> str:
        found = folder(value, old)
        if given := next((name for name in others if old.get(name)), None):
            raise Ignored(f"{given} is given")
        return found

    return value


def val_folder(test: str) -> Value:
    """The validation database: of an evaluation only where there is no test database, else by a command of its own."""

    def value(value: str | None, old: Old) -> str:
        found = folder(value, old)
        if old.kind == "eval" and old.get(test):
            raise Elsewhere(f"this recipe evaluates {test}; a command above evaluates the other split")
        return found

    return value


def corpora(value: list[dict], old: Old) -> list[dict]:
    """One corpus of ours for each of theirs; several databases of one corpus are joined, in training and validation."""
    val = {entry["name"]: entry for entry in old.get("val_datasets") or []}
    result = []
    for entry in value:
        _check_corpus(entry)
        ratios = {TASKS[task]: ratio for task, ratio in zip(entry["tasks"], entry["mix_ratio"]) if ratio}
        corpus = {"name": entry["name"], **_databases(entry, old), "tasks": ratios}
        if entry["name"] in val:
            own = val[entry["name"]]
            _check_databases(own)
            corpus |= {f"val_{name}": found for name, found in _databases(own, old).items()}
        result.append(corpus)
    return result


def _databases(entry: dict, old: Old) -> dict[str, list[str] | str]:
    regions = folders(entry["img"], old)
    one = regions[0] if isinstance(regions, list) and len(set(regions)) == 1 else regions
    return {"captions": folders(entry["db"], old), "regions": one}


def _check_databases(entry: dict) -> None:
    dbs, imgs = entry["db"], entry["img"]
    if isinstance(dbs, str) != isinstance(imgs, str) or (isinstance(dbs, list) and len(dbs) != len(imgs)):
        raise Refused(f"corpus {entry['name']}: db and img must be equally long")


def _check_corpus(entry: dict) -> None:
    known = {"name", "db", "img", "tasks", "mix_ratio"}
    if set(entry) != known:
        raise Refused(f"corpus {entry.get('name')} has keys {sorted(entry)}, expected {sorted(known)}")
    strangers = [task for task in entry["tasks"] if task not in TASKS]
    if strangers:
        raise Refused(f"corpus {entry['name']} has tasks {strangers}; known are {', '.join(TASKS)}")
    if len(entry["tasks"]) != len(entry["mix_ratio"]):
        raise Refused(f"corpus {entry['name']}: tasks and mix_ratio must be equally long")
    _check_databases(entry)


def val_corpora(value: list[dict], old: Old) -> Any:
    train = {entry["name"]: entry for entry in old.get("train_datasets") or []}
    strangers = {entry["name"] for entry in value} - set(train)
    if strangers:
        raise Refused(f"{', '.join(sorted(strangers))} is not in train_datasets; add val_captions to a corpus by hand")
    others = [entry["name"] for entry in value if set(entry.get("tasks", [])) != set(train[entry["name"]]["tasks"])]
    if others:
        raise Elsewhere(f"beside the corpus of the same name; {', '.join(others)} is validated on the tasks that it trains")
    raise Elsewhere("beside the corpus of the same name: val_captions and val_regions")


# ---- weights ---------------------------------------------------------------------------------------------------------


def _converted(path: str, old: Old, **sizes: Any) -> str:
    """The folder that ``scripts/convert_checkpoint.py`` makes of a file of weights; a folder is taken as it is."""
    path = folder(path, old)
    if not path.endswith(WEIGHTS):
        return path
    new = str(PurePosixPath(path).with_suffix(""))
    given = [w for name, config in sizes.items() if str(config or "").endswith(".json") for w in (f"--{name}-config", config)]
    _add_step(old, "python", "scripts/convert_checkpoint.py", path, new, *given)
    for config in map(str, sizes.values()):
        words = [{word for word in ("base", "large") if word in PurePosixPath(name).name} for name in (path, config)]
        if all(words) and not words[0] & words[1]:
            old.remarks.append(f"{path} and {config} name different sizes, which cannot belong together: give one of the other's size")
    return new


def _add_step(old: Old, *words: str) -> None:
    if (step := shlex.join(words)) not in old.steps:
        old.steps.append(step)


def both_towers(value: str | None, old: Old) -> str:
    return _converted(folder(value, old), old, text=old.get("txt_model_config"), image=old.get("img_model_config"))


def one_tower(sizes: str) -> Value:
    """Weights of one encoder; ``sizes`` is the key of its JSON."""

    def value(value: str | None, old: Old) -> str:
        path = folder(value, old)
        if old.get("biencoder_checkpoint"):
            raise Ignored("biencoder_checkpoint gives both towers")
        return _converted(path, old, image=old.get(sizes))

    return value


def tower_name(checkpoint: str) -> Value:
    """A model of Hugging Face that a tower starts from, or its sizes as a JSON file."""

    def value(value: str | None, old: Old) -> str:
        if old.kind == "eval":
            raise Ignored("the checkpoint's config.json says it")
        if given := next((name for name in ("biencoder_checkpoint", checkpoint) if old.get(name)), None):
            raise Elsewhere(f"{given} gives weights and sizes")
        name = folder(value, old)
        if name.endswith(".json"):
            raise Elsewhere("sizes without weights: random ones have BERT-base's, or those of model.hidden_size and its neighbours")
        if name.count("/") == 0:
            owner = f"{BERT_NAMES}/" if name.startswith("bert-") else ""
            _add_step(old, "hf", "download", f"{owner}{name}", "--local-dir", name)
        return name

    return value


def tower_type(value: str, old: Old) -> str:
    raise Ignored if str(value).startswith(("bert-", "uniter-")) else Refused


# ---- optimisation ----------------------------------------------------------------------------------------------------


def text_length(value: int, old: Old) -> int:
    """The original counts word pieces, ours [CLS] and [SEP] too."""
    return value + 2 if value >= 0 else -1


def clip(value: float, old: Old) -> float:
    return max(value, 0.0)


def warmup(value: int, old: Old) -> int:
    if old.get("decay") == "constant":
        raise Ignored("the rate is constant")
    return value


def schedule(value: str, old: Old) -> str:
    if value not in ("linear", "invsqrt", "constant"):
        raise Refused
    return value if value == "constant" else f"uniter_{value}"


def algorithm(value: str, old: Old) -> str:
    if value != "adamw":
        raise Refused
    return "adamw_original"


def epochs(value: int, old: Old) -> int:
    if not value:
        raise Refused("0, the original's default, is no epoch at all; give the number of epochs")
    return value


def precision(value: bool, old: Old) -> str:
    level = old.get("fp16_opt_level")
    if value and level == "O3":
        raise Refused("with fp16_opt_level O3 all arithmetic is in half precision, which is not here")
    if not value or level == "O0":
        return "fp32"
    if old.kind in ("pretrain", "rerank") or level == "O2":
        old.remarks.append("apex's O2 keeps weights in half precision beside those in full; precision fp16 keeps them in full alone")
    return "fp16"


def cpu(value: bool, old: Old) -> str:
    if not value:
        raise Ignored("device auto takes the GPU where there is one")
    return "cpu"


# ---- objectives ------------------------------------------------------------------------------------------------------


def fusion(value: str, old: Old) -> str:
    if value not in ("", None, "add", "multiply"):
        raise Refused
    return value or "none"


def hard_negatives(value: int, old: Old) -> dict[str, Any]:
    if not value:
        return {"hard_negatives.count": 0}
    if not old.get("sample_init_hard_negatives"):
        raise Refused("without sample_init_hard_negatives the original stops with an error before its first epoch; set it true")
    window = "original"
    if old.get("caption_score_weight") and old.get("itm_global_file"):
        window = f"0-{min(max(50, 2 * value + 10), 1000)}"
        old.remarks.append("hard negatives beside a third view are images with one of their captions each, not drawn apart")
    return {"hard_negatives.count": value, "hard_negatives.window": window, "hard_negatives.from_epoch": 1}


def sampling(value: str, old: Old) -> Any:
    if value not in (None, "none") and not old.get("num_hard_negatives") and old.kind == "finetune":
        raise Refused("with num_hard_negatives 0 the original takes none alone")
    raise Ignored


def with_count(value: bool, old: Old) -> Any:
    raise Ignored("true: mined before the first epoch too" if old.get("num_hard_negatives") else "there are no hard negatives")


def third_view(value: str | None, old: Old) -> str:
    path = folder(value, old)
    if not old.get("caption_score_weight"):
        raise Ignored("caption_score_weight is 0, so that it has no effect")
    name, new = old.get("txt_model_config") or "bert-base-cased", str(PurePosixPath(os.path.splitext(path)[0]))
    words = ("--annotations", path, "--format", "image-meta", "--tokenizer", name, "--out", new)
    _add_step(old, "python", "scripts/build_captions.py", *words)
    return f"{new}/train"


def third_view_weight(value: float, old: Old) -> float:
    if not value:
        raise Ignored("0: there is no third view")
    if not old.get("itm_global_file"):
        raise Refused("without itm_global_file there are no machine-written captions to weigh")
    return value


def teacher(value: str | None, old: Old) -> str:
    path = folder(value, old)
    if old.kind == "finetune":
        raise Refused("in fine-tuning it cannot run there; distill.scores is our way")
    return _converted(path, old, image=old.get("img_model_config"))


def of_teacher(value: float, old: Old) -> float:
    if not old.get("teacher_checkpoint"):
        raise Ignored("there is no teacher_checkpoint")
    return value


def normalized_logits(value: bool, old: Old) -> Any:
    if value and old.get("teacher_checkpoint"):
        raise Refused
    raise Ignored("off" if not value else "there is no teacher_checkpoint")
