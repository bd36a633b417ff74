"""Dataclass configs: YAML file, command line and ``--help`` from one definition.

``run(main, Config)`` is the last line of every command. Values come from the dataclass defaults, then ``--config
file.yaml``, then the command line (``--optim.lr 1e-4``). Unknown keys are errors that suggest the nearest valid one.
A command whose settings depend on what it makes gives a ``Choice`` of configs instead of one.
Exit status: 0; 2 with one line on stderr for anything the user must fix; 75 when a signal stopped a run that is to be
started again.
"""

import dataclasses
import difflib
import functools
import json
import os
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from data.errors import BadInput, Stopped

Config = typing.TypeVar("Config")

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


@dataclass(frozen=True)
class Choice:
    """Several config classes of one command; a setting chooses which of them is read.

        CONFIGS = cli.Choice("model.kind", {"lightningdot": RetrievalConfig, "uniter": RerankingConfig})
        cli.run(main, CONFIGS)                       # main is called with a config of one of the classes
        cli.parse(CONFIGS, ["--model", "uniter"])    # a RerankingConfig

    The setting stands on the command line (``--model.kind uniter``, or ``--model uniter`` for short) or in the YAML file
    (``model: {kind: uniter}``); where several say it, the last one counts, and where none does, the first class is meant.
    A setting that the chosen class does not have is an unknown key, and the error says when another class reads it.

    Every class has the setting itself, as a ``Literal`` of all values whose default is the class's own, so that a saved
    config chooses its class again. No class has a field ``config``: that is the YAML file.

    Attributes:
        setting: dotted name ``group.kind`` of the setting that chooses
        classes: its value → config class
    """

    setting: str
    classes: dict[str, type]


def run(main: Callable[[Config], None], config: type[Config] | Choice, positional: tuple[str, ...] = ()) -> None:
    """Parse ``sys.argv`` into a config, call ``main`` with it; ``BadInput`` becomes one line and status 2,
    ``Stopped`` one line and status 75."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer's threads do not survive a fork
    message, status = None, 2
    try:
        main(parse(config, sys.argv[1:], positional))
    except BadInput as error:
        message = str(error).rpartition("data.errors.BadInput: ")[2]  # a worker's comes with its traceback in front
    except Stopped as stopped:
        message, status = str(stopped), STOPPED
    except BrokenPipeError:  # `... | head`: the reader has what it wanted
        sys.stderr.close()
    if message is not None:  # out here the exception is gone, and the progress bars it held have ended their lines
        print(f"{'error: ' * (status == 2)}{' '.join(message.split())}", file=sys.stderr)
        sys.exit(status)


def parse(config: type[Config] | Choice, argv: list[str], positional: tuple[str, ...] = ()) -> Config:
    """Build a config from command-line words.

    Args:
        config: a dataclass, or a ``Choice`` of some; fields may be dataclasses, or lists of them. Its ``__post_init__``
            may raise BadInput
        argv: the words after the program's name
        positional: names of the fields that are given without ``--``, in order

    Raises:
        BadInput: an unknown key (with the nearest valid one), a value of the wrong type, an unreadable YAML file.
    """
    options = _options_of(argv)
    if isinstance(config, Choice):
        config_class, settings = _choose(config, options)
    else:
        config_class, settings = config, _Settings(dict(_keys(config)))
    parser = _Parser(prog=Path(sys.argv[0]).name, description=_description(config, config_class))
    parser.settings = settings
    if "config" not in settings.types:  # else it is a setting like others
        parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
        for path in _config_files(options):
            _check_keys(_read_yaml(path), config_class, path, settings)
    for name in positional:
        field = next(f for f in dataclasses.fields(config_class) if f.name == name)
        optional = field.default is not dataclasses.MISSING
        parser.add_argument(name, type=field.type, **({"nargs": "?", "default": field.default} if optional else {}))
    parser.add_class_arguments(config_class, skip=set(positional))
    words = [word for option in options for word in _spell_out(option, settings.types)]
    namespace = parser.instantiate(parser.parse_args(words))
    found = config_class(**{f.name: namespace[f.name] for f in dataclasses.fields(config_class)})
    if isinstance(config, Choice) and not isinstance(found, config.classes[_get(found, config.setting)]):
        raise BadInput(f"{config.setting}: give it by itself, as --{config.setting} {_get(found, config.setting)}")
    return found


def to_dict(config: typing.Any) -> dict:
    """The resolved settings as plain YAML-able values."""
    return dataclasses.asdict(config)


def save(config: typing.Any, path: str | Path) -> None:
    """Write the resolved settings as YAML; ``--config`` reads it back to the same values."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


@dataclass(frozen=True)
class _Settings:
    """What a config class reads.

    Attributes:
        types: dotted name of every setting, groups included → its type
        elsewhere: name of a setting that only other classes of a ``Choice`` read → what to say of it
    """

    types: dict[str, typing.Any]
    elsewhere: dict[str, str] = dataclasses.field(default_factory=dict)

    def hint(self, key: str) -> str:
        """What to add to the message that ``key`` is unknown."""
        return self.elsewhere.get(key) or _nearest(key, list(self.types))


class _Parser(ArgumentParser):
    settings: _Settings

    def error(self, message, ex=None):
        text = " ".join(str(message).split())
        if text.startswith("unrecognized arguments:"):
            words = [w.lstrip("-").split("=")[0] for w in text.split(":", 1)[1].split() if w.startswith("--")]
            for word in words:
                text = f"unknown option --{word}{self.settings.hint(word)}"
        raise BadInput(f"{text} (see --help)") from ex


def _choose(choice: Choice, options: list["_Option"]) -> tuple[type, _Settings]:
    """The class that the command line and its YAML files choose, and what it reads."""
    group, _, leaf = choice.setting.rpartition(".")
    chosen = next(iter(choice.classes))
    for option in options:
        if option.name == choice.setting or (option.name == group and option.value in choice.classes):
            chosen = option.value or chosen  # one without a value is refused further on
        for path in _config_files([option]):
            values = _read_yaml(path)
            inner = values.get(group) if isinstance(values, dict) else None
            chosen = inner.get(leaf, chosen) if isinstance(inner, dict) else chosen
    if chosen not in list(choice.classes):  # a list: YAML's value may be unhashable
        raise BadInput(f"{choice.setting}: expected {' or '.join(choice.classes)}, found {chosen} (see --help)")
    types, elsewhere = dict(_keys(choice.classes[chosen])), {}
    for kind, config_class in choice.classes.items():
        only_there = [name for name, _ in _keys(config_class) if name not in types]
        elsewhere |= dict.fromkeys(only_there, f"; it is read with {choice.setting} {kind}, not with {chosen}")
    return choice.classes[chosen], _Settings(types, elsewhere)


def _get(config: typing.Any, name: str) -> typing.Any:
    return functools.reduce(getattr, name.split("."), config)


def _description(config: type | Choice, config_class: type) -> str:
    text = (config_class.__doc__ or "").split("Args:")[0]
    if isinstance(config, Choice):
        group = config.setting.rpartition(".")[0]
        others = [f"--{group} {kind} --help" for kind, other in config.classes.items() if other is not config_class]
        text = f"{text.rstrip()} Other settings: {', '.join(others)}."
    return text


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
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield prefix + field.name, types[field.name]
        inner = _inner_dataclass(types[field.name])
        if inner is not None:
            yield from _keys(inner, f"{prefix}{field.name}.")


def _check_keys(values: typing.Any, config_class: type, path: str, settings: _Settings, prefix: str = "") -> None:
    """Refuse keys of a YAML file that ``config_class``, which stands under ``prefix`` in ``settings``, does not have."""
    if not isinstance(values, dict):
        raise BadInput(f"{path}: {prefix.rstrip('.') or 'the file'} must be a mapping of settings, found {values!r}")
    types = typing.get_type_hints(config_class)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in types:
            near = _nearest(str(key), list(types)) or _nearest(str(key), list(settings.types))
            hint = settings.elsewhere.get(name) or near
            raise BadInput(f"{path}: unknown key {name}{hint}")
        inner = _inner_dataclass(types[key])
        if inner is None or value is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            _check_keys(item, inner, path, settings, f"{name}.")


def _read_yaml(path: str) -> typing.Any:
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file) or {}
    except OSError as error:
        raise BadInput(f"{path}: cannot read the config: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error


@dataclass(frozen=True)
class _Option:
    """An option of the command line with the words up to the next one, as typed.

    Attributes:
        name: as the config class spells it; empty for the words before the first option
        assigned: the value of ``--name=value``
        following: the words after it
    """

    name: str
    assigned: str | None
    following: list[str]

    @property
    def value(self) -> str | None:
        """What a setting of one word is set to."""
        return self.assigned if self.assigned is not None else next(iter(self.following), None)


def _options_of(argv: list[str]) -> list[_Option]:
    options = [_Option("", None, [])]
    for word in argv:
        if word.startswith("--"):
            name, equals, assigned = word[2:].partition("=")
            options.append(_Option(name.replace("-", "_"), assigned if equals else None, []))
        else:
            options[-1].following.append(word)
    return options


def _config_files(options: list[_Option]) -> list[str]:
    return [option.value for option in options if option.name == "config" and option.value is not None]


def _spell_out(option: _Option, types: dict[str, typing.Any]) -> list[str]:
    """The words for jsonargparse, which does not know the customary short forms: ``--batch-size``, ``--resume`` for
    ``true``, ``--languages en de`` for a list, ``--model uniter`` for ``--model.kind uniter`` where a group has a kind."""
    name, following = option.name, option.following
    if not name:
        return following
    if option.value in typing.get_args(types.get(f"{name}.kind")):
        name = f"{name}.kind"
    if option.assigned is not None:
        return [f"--{name}={option.assigned}", *following]
    if _is_switch(types.get(name)):
        if not following or following[0].lower() not in ("true", "false", "yes", "no", "null"):
            following = ["true", *following]
    elif _is_list_of_scalars(types.get(name)):
        if following and not following[0].startswith("["):
            following = [json.dumps([yaml.safe_load(word) for word in following])]
    return [f"--{name}", *following]


def _is_switch(kind: typing.Any) -> bool:
    return bool in (kind, *typing.get_args(kind))


def _is_list_of_scalars(kind: typing.Any) -> bool:
    lists = [k for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is list]
    items = [typing.get_args(k)[0] for k in lists]
    return any(item in (str, int, float) or typing.get_origin(item) is typing.Literal for item in items)
