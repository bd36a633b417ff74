"""Folders that transformers reads: whether their settings make a model of a size that there is, and whether all its weights were there.

transformers itself makes what ``config.json`` says before it looks at the weights, and draws at random those that are missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import BadInput
from data.storage.regular_files import is_there
from data.storage.text_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of settings, and the largest value that they may have; the first that fits counts.
_LARGEST = [
    (re.compile(names), most)
    for names, most in (("layer|depth|block|expert", 1_000), ("label", 100_000), ("size|dim|num_|head|channel|position|width|kernel|length", 10_000_000))
]
_NAMED = ("id2label", "label2id", "task_specific_params")  # mappings of names that people give
_LAYER = re.compile(r"\.\d+(?=\.)")  # of a tensor's name


def check_folder_settings(folder: str | Path) -> None:
    """As `check_transformers_settings`, of the ``config.json`` in a folder."""
    path = Path(folder) / "config.json"
    if is_there(path):
        check_transformers_settings(read_json(path, "copy the model again", {str: object}), str(path))


def check_transformers_settings(settings: Mapping[str, Any], source: str) -> None:
    """Refuse sizes beyond those of any model, of which transformers would make as much as there is memory.

    Args:
        settings: content of a ``config.json``
        source: where they stand, for the message

    Raises:
        BadInput: a size that is too large, or a model without layers.
    """
    for name, value in _numbers(settings):
        most = next((most for names, most in _LARGEST if names.search(name)), None)
        if most is not None and value > most:
            raise BadInput(f"{source}: {name} is {value}, expected {most:,} at the most; copy the model again")
        if name == "num_hidden_layers" and value < 1:
            raise BadInput(f"{source}: {name} is {value}, expected 1 or more; copy the model again")


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Each number with the name under which it stands, alone or in a list."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from () if name in _NAMED else _numbers(value)
        for each in value if isinstance(value, list) else [value]:
            if type(each) in (int, float):
                yield str(name), each


def check_all_were_loaded(model: PreTrainedModel, report: Mapping[str, Collection], source: str) -> None:
    """Refuse a model of which transformers drew weights at random, or left out layers.

    Args:
        report: what ``from_pretrained`` says with ``output_loading_info``
        source: where the weights stand, for the message

    Raises:
        BadInput: weights are missing, those of a pooler left out, or there are some of more layers than the model has.
    """
    kind = model.config.model_type
    wrong = [name for name in sorted(report["missing_keys"]) if "pooler." not in name]
    wrong += [str(name) for name in report["mismatched_keys"]]
    if wrong:
        raise BadInput(f"{source}: {len(wrong)} weights of its {kind} are missing or mis-shaped: {'; '.join(wrong[:5])}; copy the model again")
    own = {_LAYER.sub(".N", name) for name in model.state_dict() if _LAYER.search(name)}
    own |= {f"{model.base_model_prefix}.{name}" for name in own}
    more = [name for name in sorted(report["unexpected_keys"]) if _LAYER.sub(".N", name) in own]
    if more:
        raise BadInput(f"{source}: holds weights of more layers than its config.json says: {'; '.join(more[:5])}; copy the model again")
