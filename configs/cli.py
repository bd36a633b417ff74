"""Dataclass configs: YAML file, command line and ``--help`` from one definition.

``run(main, Config)`` is the last line of every command. Values come from the dataclass defaults, then ``--config
file.yaml``, then the command line (``--optim.lr 1e-4``). Unknown keys are errors that suggest the nearest valid one.
Exit status: 0; 2 with one line on stderr for anything the user must fix; 75 when a signal stopped a run that is to be
started again.
"""

import dataclasses
import difflib
import itertools
import json
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from data.errors import BadInput

Config = typing.TypeVar("Config")


STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Stopped(Exception):
    """A run was asked to stop, and has saved what it needs to go on."""


def run(main: Callable[[Config], None], config_class: type[Config], positional: tuple[str, ...] = ()) -> None:
    """Parse ``sys.argv`` into ``config_class``, call ``main`` with it; ``BadInput`` becomes one line and status 2,
    ``Stopped`` one line and status 75."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer's threads do not survive a fork
    message, status = None, 2
    try:
        main(parse(config_class, sys.argv[1:], positional))
    except BadInput as error:
        message = str(error).rpartition("data.errors.BadInput: ")[2]  # a worker's comes with its traceback in front
    except Stopped as stopped:
        message, status = str(stopped), STOPPED
    except BrokenPipeError:  # `... | head`: the reader has what it wanted
        sys.stderr.close()
    if message is not None:  # out here the exception is gone, and the progress bars it held have ended their lines
        print(f"{'error: ' * (status == 2)}{' '.join(message.split())}", file=sys.stderr)
        sys.exit(status)


def parse(config_class: type[Config], argv: list[str], positional: tuple[str, ...] = ()) -> Config:
    """Build a ``config_class`` from command-line words.

    Args:
        config_class: a dataclass; fields may be dataclasses, or lists of them. Its ``__post_init__`` may raise BadInput
        argv: the words after the program's name
        positional: names of the fields that are given without ``--``, in order

    Raises:
        BadInput: an unknown key (with the nearest valid one), a value of the wrong type, an unreadable YAML file.
    """
    parser = _Parser(prog=Path(sys.argv[0]).name, description=(config_class.__doc__ or "").split("Args:")[0])
    parser.valid_keys = [name for name, _ in _keys(config_class)]
    reads_files = "config" not in parser.valid_keys  # else it is a setting like others
    if reads_files:
        parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    for name in positional:
        field = next(f for f in dataclasses.fields(config_class) if f.name == name)
        optional = field.default is not dataclasses.MISSING
        parser.add_argument(name, type=field.type, **({"nargs": "?", "default": field.default} if optional else {}))
    parser.add_class_arguments(config_class, skip=set(positional))
    argv = _spell_out(argv, config_class)
    for path in _config_files(argv) if reads_files else ():
        _check_keys(_read_yaml(path), config_class, path)
    namespace = parser.instantiate(parser.parse_args(argv))
    return config_class(**{f.name: namespace[f.name] for f in dataclasses.fields(config_class)})


def to_dict(config: typing.Any) -> dict:
    """The resolved settings as plain YAML-able values."""
    return dataclasses.asdict(config)


def save(config: typing.Any, path: str | Path) -> None:
    """Write the resolved settings as YAML; ``--config`` reads it back to the same values."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


class _Parser(ArgumentParser):
    valid_keys: typing.ClassVar[list[str]] = []

    def error(self, message, ex=None):
        text = " ".join(str(message).split())
        if text.startswith("unrecognized arguments:"):
            words = [w.lstrip("-").split("=")[0] for w in text.split(":", 1)[1].split() if w.startswith("--")]
            for word in words:
                text = f"unknown option --{word}{_nearest(word, self.valid_keys)}"
        raise BadInput(f"{text} (see --help)") from ex


def _nearest(key: str, valid: list[str]) -> str:
    leaf = {name.rsplit(".", 1)[-1]: name for name in valid}
    match = difflib.get_close_matches(key, valid, 1, 0.6) or [
        leaf[m] for m in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaf), 1, 0.6)
    ]
    return f"; did you mean {match[0]}?" if match else ""


def _inner_dataclass(kind: typing.Any) -> type | None:
    """The dataclass inside ``X``, ``X | None`` or ``list[X]``, if there is one."""
    for candidate in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _keys(config_class: type, prefix: str = "") -> typing.Iterator[tuple[str, typing.Any]]:
    """Every setting's dotted name and type."""
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield prefix + field.name, kinds[field.name]
        inner = _inner_dataclass(kinds[field.name])
        if inner is not None:
            yield from _keys(inner, f"{prefix}{field.name}.")


def _check_keys(values: typing.Any, config_class: type, path: str, prefix: str = "") -> None:
    if not isinstance(values, dict):
        raise BadInput(f"{path}: {prefix.rstrip('.') or 'the file'} must be a mapping of settings, found {values!r}")
    kinds = typing.get_type_hints(config_class)
    for key, value in values.items():
        if key not in kinds:
            near = _nearest(str(key), list(kinds)) or _nearest(str(key), [name for name, _ in _keys(config_class)])
            raise BadInput(f"{path}: unknown key {prefix}{key}{near}")
        inner = _inner_dataclass(kinds[key])
        if inner is None or value is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            _check_keys(item, inner, path, f"{prefix}{key}.")


def _config_files(argv: list[str]) -> list[str]:
    following = [b for a, b in itertools.pairwise(argv) if a == "--config"]
    return following + [word.split("=", 1)[1] for word in argv if word.startswith("--config=")]


def _read_yaml(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file) or {}
    except OSError as error:
        raise BadInput(f"{path}: cannot read the config: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error


def _spell_out(argv: list[str], config_class: type) -> list[str]:
    """The customary short forms: ``--batch-size``, ``--resume`` for ``true``, ``--languages en de`` for a list, and
    ``--model uniter`` for ``--model.kind uniter``, where a group has a kind."""
    kinds = dict(_keys(config_class))
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if (value if equals else "".join(rest[:1])) in typing.get_args(kinds.get(f"{name}.kind")):
            name += ".kind"
        words.append(f"--{name}{equals}{value}")
        if equals or name not in kinds:
            continue
        following = list(itertools.takewhile(lambda w: not w.startswith("--"), rest))
        is_switch = bool in (kinds[name], *typing.get_args(kinds[name]))
        if is_switch and (not following or following[0].lower() not in ("true", "false", "yes", "no", "null")):
            words.append("true")
        elif following and _is_list_of_scalars(kinds[name]) and not following[0].startswith("["):
            words.append(json.dumps([yaml.safe_load(w) for w in following]))
            del rest[: len(following)]
    return words


def _is_list_of_scalars(kind: typing.Any) -> bool:
    lists = [k for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is list]
    items = [typing.get_args(k)[0] for k in lists]
    return any(item in (str, int, float) or typing.get_origin(item) is typing.Literal for item in items)
