"""Dataclass configs: YAML file, command line and ``--help`` from one definition.

``run(main, Config, often="lr out")`` is the last line of every command. Values come from the dataclass defaults, then ``--config
file.yaml``, then the command line (``--optim.lr 1e-4``). Unknown keys are errors that suggest the nearest valid one;
former names of settings (`configs.settings.FORMER_NAMES`) are read as those of today.
A command whose settings depend on what it makes gives a ``Choice`` of configs instead of one.
Exit status: 0; 2 with one line on stderr for anything the user must fix; 75 when a signal stopped a run that is to be
started again; 130 when Ctrl-C stopped another command.
"""

import dataclasses
import functools
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from configs import INTERRUPTED, INTERRUPTED_LINE
from configs.help import Page, short_help, whole_help
from configs.machine_errors import MACHINE_ERRORS, TOLD, end_quietly, line_of_machine_error, watch_threads
from configs.settings import (
    Settings,
    check_number,
    current_name,
    described,
    inner_dataclass,
    is_optional,
    is_switch,
    is_text,
    list_items,
    typed,
)
from configs.streams import set_up_streams
from configs.yaml_file import (
    NOT_TEXT,
    Assigned,
    ItemTexts,
    assignments,
    bracketed_texts,
    chosen_value,
    group_assignments,
    read_mapping,
)
from data.errors import STOPPED, BadInput, InterruptTold, Stopped
from data.notices import shortened
from data.storage.own_files import note_named
from data.storage.processes import check_workers
from data.storage.text_files import is_utf8

Config = typing.TypeVar("Config")
REQUIRED = "the following arguments are required: "  # as argparse says it
WRONG_VALUE = re.compile(r'Parser key "(?P<name>[^"]+)": .*(Got|Given) value: (?P<value>.*)')  # as jsonargparse says it


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


def run(main: Callable[[Config], None], config: type[Config] | Choice, positional: tuple[str, ...] = (), often: str = "") -> None:
    """Parse ``sys.argv`` into a config, call ``main`` with it; ``BadInput`` becomes one line and status 2,
    ``Stopped`` one line and status 75, Ctrl-C one line and status 130. So does what the machine refuses: no space, no memory, a
    stack that is too deep.

    Args:
        main: of the command's module, whose docstring ``--help`` shows
        positional: as of `parse`
        often: names of the settings that people change, with spaces between, which ``--help`` shows; empty: all
    """
    watch_threads()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer's threads do not survive a fork
    set_up_streams()
    message, status = None, 2
    try:
        main(note_named(parse(config, sys.argv[1:], positional, Page(main.__globals__["__doc__"] or "", often))))
        sys.stdout.flush()  # a full disk shows here
    except BadInput as error:
        message = str(error).rpartition("data.errors.BadInput: ")[2]  # a worker's comes with its traceback in front
        TOLD.add(message)
    except Stopped as stopped:
        message, status = str(stopped), STOPPED
    except KeyboardInterrupt as error:
        message, status = "" if isinstance(error, InterruptTold) else INTERRUPTED_LINE, INTERRUPTED
    except BrokenPipeError:  # `... | head`: the reader has what it wanted
        sys.stderr.close()
    except MACHINE_ERRORS as error:  # of RuntimeError and ValueError, what the machine is at fault of
        message = line_of_machine_error(error)
        if message is None:
            raise
        TOLD.add(message)
        try:
            sys.stdout.flush()
        except OSError:  # it is what could not be written to, and would be tried again at the end
            sys.stdout = open(os.devnull, "w")
    end_quietly()
    if message is not None:  # out here the exception is gone, and the progress bars it held have ended their lines
        if message or status == 2:
            print(f"{'error: ' * (status == 2)}{shortened(' '.join(message.split()))}", file=sys.stderr)
        sys.exit(status)


def parse(
    config: type[Config] | Choice, argv: list[str], positional: tuple[str, ...] = (), page: Page | None = None
) -> Config:
    """Build a config from command-line words.

    What is typed for a text setting is that text: ``no``, ``null``, ``2016``, ``#1``. In a YAML file it is what stands
    there, except that ``null`` means None for a setting that may be None; on the command line ``--no-NAME`` sets it to
    None. Lists of texts take words (``--languages en no``) or brackets (``--languages [en,no]``).

    Args:
        config: a dataclass, or a ``Choice`` of some; fields may be dataclasses, or lists of them. Its ``__post_init__``
            may raise BadInput
        argv: the words after the program's name; what follows ``--`` is positional
        positional: names of the fields that are given without ``--``, in order; the last may be a list of texts, of one or more
        page: what ``--help`` says besides the settings

    Raises:
        BadInput: an unknown key (with the nearest valid one), a value of the wrong type or too large, an unreadable YAML file.
    """
    for word in argv:
        _check_text(word, "the command line")
    found = _parsed(config, argv, positional, page or Page())
    for name, value in _values_of(found, ""):
        if isinstance(value, str):
            _check_text(value, name)
        elif isinstance(value, int | float):
            check_number(name, value)
    return found


def _parsed(config: type[Config] | Choice, argv: list[str], positional: tuple[str, ...], page: Page) -> Config:
    options, before, after = _options_of(argv)
    if isinstance(config, Choice):
        config_class, settings = _choose(config, options)
    else:
        config_class, settings = config, Settings.of(config)
    _show_help(options, page, config, config_class, positional)
    words, texts, loose, in_file = [], {}, before, {}
    for option in options:
        assigned, left_over = _spell_out(option, config_class, settings)
        loose = loose + left_over
        for setting in assigned:
            whole = setting.name.removesuffix("+")
            if isinstance(setting.text, ItemTexts):
                before = texts.get(whole) if whole != setting.name else None
                texts[whole] = ItemTexts([*(before.items if before else []), *setting.text.items])
            else:
                texts[setting.name] = setting.text
                if whole != setting.name:  # jsonargparse puts it behind what there is
                    texts.pop(whole, None)
            if option.name == "config" and setting.name in positional:
                in_file[setting.name] = setting.word
            else:
                words.append(f"--{setting.name}" if setting.word is None else f"--{setting.name}={setting.word}")
    loose = loose + after
    texts |= {name: word for name, word in zip(positional, loose, strict=False) if is_text(settings.types[name])}
    if positional and is_text(list_items(settings.types[positional[-1]])):  # it takes all words that are left
        texts[positional[-1]] = loose[len(positional) - 1 :] or NOT_TEXT
    loose = loose + [in_file[name] for name in positional[len(loose) :] if name in in_file]
    parser = _parser(config_class, settings, positional)
    try:
        namespace = parser.parse_args([*words, *["--"][: len(after)], *loose])
    except BadInput:
        raise
    except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError) as error:  # what YAML makes of a tag that does not fit: !!int ''
        raise BadInput(f"a value is not YAML that can be read ({error!r}), of {' '.join(words)[:200]} (see --help)") from error
    _put_texts(texts, namespace)
    instance = parser.instantiate(namespace)
    found = config_class(**{f.name: instance[f.name] for f in dataclasses.fields(config_class)})
    if isinstance(config, Choice) and not isinstance(found, config.classes[_get(found, config.setting)]):
        raise BadInput(f"{config.setting}: give it by itself, as --{config.setting} {_get(found, config.setting)}")
    check_workers(getattr(found, "workers", None))
    return found


def _put_texts(texts: dict[str, typing.Any], namespace: typing.Any) -> None:
    """Put what was typed for text settings in the place of what jsonargparse, which has read them as YAML, made of it."""
    for name, text in texts.items():
        if isinstance(text, ItemTexts):
            for item, own in zip(reversed(namespace[name] or []), reversed(text.items), strict=False):
                for key, word in own.items():
                    item[key] = word
        elif text is not NOT_TEXT:
            namespace[name] = text


def _check_text(text: str, where: str) -> None:
    """Refuse what no file, database or page can hold as text: half of a surrogate pair, as bytes that are no UTF-8 become, and NUL."""
    if "\0" in text or not is_utf8(text):
        raise BadInput(f"{where}: {text!a} is not UTF-8 text; give a file or folder a name that is")


def _values_of(value: typing.Any, name: str) -> Iterator[tuple[str, typing.Any]]:
    """Every plain value in resolved settings, with the dotted name of its setting."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _values_of(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values_of(inner, name)
    else:
        yield name, value


def to_dict(config: typing.Any) -> dict:
    """The resolved settings as plain YAML-able values."""
    return dataclasses.asdict(config)


def save(config: typing.Any, path: str | Path) -> None:
    """Write the resolved settings as YAML; ``--config`` reads it back to the same values."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


class _Parser(ArgumentParser):
    settings = Settings({})  # of a parser that jsonargparse makes for an item of a list
    positional: tuple[str, ...] = ()

    def error(self, message, ex=None):
        text = " ".join(str(message).split())
        if text.startswith("unrecognized arguments:"):
            words = [w.lstrip("-").split("=")[0] for w in text.split(":", 1)[1].split() if w.startswith("--")]
            for word in words:
                text = f"unknown option {typed(word)}{self.settings.hint(word)}"
        if (refused := WRONG_VALUE.fullmatch(text)) and refused["name"] in self.settings.types:
            kind = self.settings.types[refused["name"]]
            text = f"{refused['name']}: expected {described(kind)}, found {refused['value']}"
        if text.startswith(REQUIRED):
            names = [name if name in self.positional else typed(name) for name in text.removeprefix(REQUIRED).split(", ")]
            text = f"{REQUIRED}{', '.join(names)}"
        raise BadInput(f"{text} (see --help)") from ex


def _parser(config_class: type, settings: Settings, positional: tuple[str, ...]) -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.settings, parser.positional = settings, positional
    if "config" not in settings.types:  # else it is a setting like others
        parser.add_argument("--config", action="config")
    for name in positional:
        field = next(f for f in dataclasses.fields(config_class) if f.name == name)
        optional = field.default is not dataclasses.MISSING
        items = list_items(settings.types[name])
        more = {"nargs": "?", "default": field.default} if optional else {"nargs": "+"} if items is not None else {}
        parser.add_argument(name, type=field.type if items is None else items, **more)
    parser.add_class_arguments(config_class, skip=set(positional))
    return parser


def _choose(choice: Choice, options: list["_Option"]) -> tuple[type, Settings]:
    """The class that the command line and its YAML files choose, and what it reads."""
    group, _, leaf = choice.setting.rpartition(".")
    chosen = next(iter(choice.classes))
    for option in options:
        if option.name == choice.setting or (option.name == group and option.value in choice.classes):
            chosen = option.value or chosen  # one without a value is refused further on
        if option.name == "config" and option.value is not None:
            chosen = chosen_value(read_mapping(option.value), group, leaf) or chosen
    if chosen not in choice.classes:
        raise BadInput(f"{choice.setting}: expected {' or '.join(choice.classes)}, found {chosen} (see --help)")
    settings, elsewhere = Settings.of(choice.classes[chosen]), {}
    for kind, config_class in choice.classes.items():
        only_there = [name for name in Settings.of(config_class).types if name not in settings.types]
        elsewhere |= dict.fromkeys(only_there, f"; it is read with {choice.setting} {kind}, not with {chosen}")
    return choice.classes[chosen], Settings(settings.types, elsewhere)


def _get(config: typing.Any, name: str) -> typing.Any:
    return functools.reduce(getattr, name.split("."), config)


def _show_help(
    options: list["_Option"], page: Page, config: type | Choice, config_class: type, positional: tuple[str, ...]
) -> None:
    """Print the help that is asked for, and leave."""
    for name, text_of in (("help", short_help), ("help_all", whole_help)):
        if any(option.name == name for option in options):
            prog, others = Path(sys.argv[0]).name, []
            if isinstance(config, Choice):
                group = config.setting.rpartition(".")[0]
                others = [f"--{group} {kind}" for kind, other in config.classes.items() if other is not config_class]
            remarks = [f"other settings with {other}: {prog} {other} --help" for other in others]
            print(text_of(prog, page, config_class, positional, remarks))
            sys.exit(0)


@dataclass(frozen=True)
class _Option:
    """An option of the command line with the words up to the next one, as typed.

    Attributes:
        name: as the config class spells it
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

    @property
    def left_over(self) -> list[str]:
        """The words after the one of ``value``."""
        return self.following[self.assigned is None :]


def _options_of(argv: list[str]) -> tuple[list[_Option], list[str], list[str]]:
    """The options, and the words before the first of them and after ``--``."""
    end = argv.index("--") if "--" in argv else len(argv)
    options, before = [], []
    for word in argv[:end]:
        if word.startswith("--"):
            name, equals, assigned = word[2:].partition("=")
            options.append(_Option(name.replace("-", "_"), assigned if equals else None, []))
        elif word == "-h":
            options.append(_Option("help", None, []))
        else:
            (options[-1].following if options else before).append(word)
    return options, before, argv[end + 1 :]


def _spell_out(option: _Option, config_class: type, settings: Settings) -> tuple[list[Assigned], list[str]]:
    """What an option sets, and the words behind it that are not its own.

    jsonargparse does not know the customary short forms: ``--batch-size``, ``--resume`` for ``true``, ``--no-resume``,
    ``--languages en de`` for a list, ``--model uniter`` for ``--model.kind uniter`` where a group has a kind.
    """
    name, value = current_name(option.name, settings.types), option.value
    if name.startswith("no_"):
        name = f"no_{current_name(name.removeprefix('no_'), settings.types)}"
    if name == "config" and name not in settings.types and value is not None:
        return list(assignments(read_mapping(value), config_class, value, settings)), option.left_over
    if value is not None and value in typing.get_args(settings.types.get(f"{name}.kind")):
        name = f"{name}.kind"
    kind = settings.types.get(name.removesuffix("+"))
    if kind is None:
        unset = settings.types.get(name.removeprefix("no_"))
        if name.startswith("no_") and option.assigned is None and (is_switch(unset) or is_optional(unset)):
            text = None if is_text(unset) or is_text(list_items(unset)) else NOT_TEXT
            word = "false" if is_switch(unset) else "null"
            return [Assigned(name.removeprefix("no_"), word, text)], option.following
        if name == "print_config":
            return [Assigned(name, option.assigned)], option.following
        return [Assigned(name, value)], option.left_over  # unknown
    settings.check_is_in_no_list(name)
    if is_switch(kind) and option.assigned is None:
        if value is None or value.lower() not in ("true", "false", "yes", "no", "null"):
            return [Assigned(name, "true")], option.following
    if value is None:
        return [Assigned(name, None)], []
    if inner_dataclass(kind) is not None:
        return list(group_assignments(name, kind, value, settings)), option.left_over
    if list_items(kind) is not None:
        return _spell_out_list(option, name, list_items(kind))
    return [Assigned(name, value, value if is_text(kind) else NOT_TEXT)], option.left_over


def _spell_out_list(option: _Option, name: str, item_kind: typing.Any) -> tuple[list[Assigned], list[str]]:
    in_brackets = option.value.startswith("[") and option.value.endswith("]")
    if not is_text(item_kind) and in_brackets:
        return [Assigned(name, option.value)], option.left_over
    texts, left_over = bracketed_texts(option.value), option.left_over
    if texts is None and option.assigned is None:
        texts, left_over = option.following, []
    texts = [option.assigned] if texts is None else texts
    if not is_text(item_kind):
        return [Assigned(name, f"[{', '.join(texts)}]")], left_over
    return [Assigned(name, json.dumps(texts, ensure_ascii=False), texts)], left_over
