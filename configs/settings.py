"""What a config class reads: the names and types of its settings, and the valid name nearest to a wrong one."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Container
from dataclasses import dataclass

from data.errors import BadInput

# What the same setting is called elsewhere: the last part of a name → that of ours, the likeliest first.
FIELD_WORDS = {
    "learning_rate": ("lr",),
    "base_lr": ("lr",),
    "peak_lr": ("lr",),
    "wd": ("weight_decay",),
    "batch": ("batch_size", "tokens_per_batch"),
    "bs": ("batch_size", "tokens_per_batch"),
    "train_batch_size": ("batch_size", "tokens_per_batch"),
    "per_device_train_batch_size": ("batch_size", "tokens_per_batch"),
    "eval_batch_size": ("batch_size",),
    "val_batch_size": ("batch_size",),
    "inf_minibatch_size": ("batch_size",),
    "gradient_accumulation_steps": ("grad_accumulation",),
    "accum_iter": ("grad_accumulation",),
    "accum_freq": ("grad_accumulation",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "grad_checkpointing": ("activation_checkpointing",),
    "num_epochs": ("epochs", "num_steps"),
    "num_train_epochs": ("epochs", "num_steps"),
    "max_epochs": ("epochs", "num_steps"),
    "epoch": ("epochs", "num_steps"),
    "epochs": ("num_steps",),
    "steps": ("num_steps", "epochs"),
    "max_steps": ("num_steps", "epochs"),
    "num_train_steps": ("num_steps", "epochs"),
    "warmup": ("warmup_ratio", "warmup_steps"),
    "warmup_proportion": ("warmup_ratio",),
    "warmup_epochs": ("warmup_ratio",),
    "lr_scheduler": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "scheduler": ("schedule",),
    "optimizer": ("algorithm",),
    "max_grad_norm": ("grad_clip",),
    "clip_grad": ("grad_clip",),
    "grad_norm": ("grad_clip",),
    "adam_betas": ("betas",),
    "adam_epsilon": ("eps",),
    "n_workers": ("workers",),
    "num_proc": ("workers",),
    "save_steps": ("save_every",),
    "logging_steps": ("log_every",),
    "eval_steps": ("valid_every",),
    "valid_steps": ("valid_every",),
    "save_total_limit": ("keep_checkpoints",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "amp": ("precision",),
    "output": ("out",),
    "model_name_or_path": ("init",),
    "pretrained": ("init",),
    "max_length": ("max_txt_len",),
    "max_seq_length": ("max_txt_len",),
    "topk": ("k",),
    "top_k": ("k",),
    "candidates": ("rerank",),
    "rerank_mix": ("mix",),
    "mix": ("rerank_mix",),
}

# What settings were called before: the last part of a name → that of today. They are read, on the command line and in files,
# and not shown.
FORMER_NAMES = {"output_dir": "out", "num_workers": "workers"}

LARGEST_WHOLE_NUMBER = 2**63 - 1  # that libraries take
LONGEST_TIMEOUT = 10**9  # seconds, thirty years: systems wait no longer


@dataclass(frozen=True)
class Settings:
    """The settings of a config class.

    Attributes:
        types: dotted name of every setting, groups included → its type
        elsewhere: name of a setting that only other classes of a ``Choice`` read → what to say of it
    """

    types: dict[str, typing.Any]
    elsewhere: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config_class: type) -> "Settings":
        return cls(dict(names_and_types(config_class)))

    def hint(self, key: str) -> str:
        """What to add to the message that ``key``, which was typed, is unknown."""
        return self.elsewhere.get(key) or nearest(key, list(self.types), typed)

    def check_is_in_no_list(self, name: str) -> None:
        """Raise BadInput for a setting of a group of which there are several: which one is meant, its name does not say."""
        outer = name.rpartition(".")[0]
        if outer and any(typing.get_origin(each) is list for each in alternatives(self.types[outer])):
            inner = name.rpartition(".")[2].removesuffix("+")
            raise BadInput(f"{typed(name)}: {outer} is a list; give all of it, as {typed(outer)} '[{{{inner}: ...}}]', or in the file of --config (see --help)")


def names_and_types(config_class: type, prefix: str = "") -> typing.Iterator[tuple[str, typing.Any]]:
    """Every setting's dotted name and type."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield prefix + field.name, hints[field.name]
        inner = inner_dataclass(hints[field.name])
        if inner is not None:
            yield from names_and_types(inner, f"{prefix}{field.name}.")


def typed(name: str) -> str:
    """A setting as one types it: ``--batch-size`` for ``batch_size``."""
    return f"--{name.replace('_', '-')}"


def current_name(name: str, valid: Container[str]) -> str:
    """What a setting is called today, of those that are ``valid``; any other name stays as it is."""
    head, dot, leaf = name.rpartition(".")
    current = f"{head}{dot}{FORMER_NAMES.get(leaf, leaf)}"
    return current if name not in valid and current in valid else name


def nearest(key: str, valid: list[str], spelled: Callable[[str], str] = str) -> str:
    """``; did you mean optim.lr?`` for ``learning_rate``, the name ``spelled``; nothing where no name of ``valid`` is near."""
    leaf_of_key = key.rsplit(".", 1)[-1]
    leaves = {name.rsplit(".", 1)[-1]: name for name in reversed(valid)}
    for leaf in (leaf_of_key, *FIELD_WORDS.get(leaf_of_key, ())):
        if leaf in leaves:
            return f"; did you mean {spelled(leaves[leaf])}?"
    match = difflib.get_close_matches(key, valid, 1, 0.6) or [
        leaves[leaf] for leaf in difflib.get_close_matches(leaf_of_key, list(leaves), 1, 0.6)
    ]
    return f"; did you mean {spelled(match[0])}?" if match else ""


def check_number(name: str, value: float) -> None:
    """Raise BadInput for the value of a setting that no library takes: NaN, a number that is too large, a time that nobody can wait."""
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE_NUMBER:
        raise BadInput(f"{name}: found a number of {value.bit_length():,} bits, expected at most {LARGEST_WHOLE_NUMBER:,}")
    if math.isnan(value):
        raise BadInput(f"{name}: found {value}, expected a number")
    if name.endswith("timeout") and not 0 < value <= LONGEST_TIMEOUT:
        raise BadInput(f"{name}: found {value}, expected more than 0 seconds, at most {LONGEST_TIMEOUT:,}")


# ---- kinds of types --------------------------------------------------------------------------------------------------


def alternatives(kind: typing.Any) -> tuple:
    """``str`` and ``list[str]`` of ``str | list[str] | None``; a type that is no union is its only alternative."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return tuple(k for k in (typing.get_args(kind) if is_union else (kind,)) if k is not type(None))


def is_optional(kind: typing.Any) -> bool:
    return type(None) in typing.get_args(kind)


def is_switch(kind: typing.Any) -> bool:
    return bool in alternatives(kind)


def is_text(kind: typing.Any) -> bool:
    """A setting of one text: any, or one of some (``Literal``)."""
    return any(k is str or typing.get_origin(k) is typing.Literal for k in alternatives(kind))


def list_items(kind: typing.Any) -> typing.Any:
    """``X`` of a list of scalars ``list[X]``; None for what is no such list."""
    for candidate in alternatives(kind):
        if typing.get_origin(candidate) is list:
            (item,) = typing.get_args(candidate)
            if item in (int, float) or is_text(item):
                return item
    return None


def described(kind: typing.Any) -> str:
    """What a setting of this type takes, in words: ``a number or learned``."""
    words = []
    for each in alternatives(kind):
        arguments = typing.get_args(each)
        if typing.get_origin(each) is typing.Literal:
            words += map(str, arguments)
        elif typing.get_origin(each) in (list, tuple):
            words.append(f"a list, as [{', '.join('...' for _ in arguments)}]")
        else:
            words.append({int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(each, "YAML"))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def inner_dataclass(kind: typing.Any) -> type | None:
    """The dataclass inside ``X``, ``X | None`` or ``list[X]``, if there is one."""
    for candidate in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(candidate):
            return candidate
    return None
