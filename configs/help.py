"""What ``--help`` and ``--help-all`` print: what the command does, examples, and its settings as one types them.

Texts come from docstrings: those of a command from its module's, those of a setting from its dataclass's ``Args:``.
"""

import dataclasses
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from docstring_parser import parse as parse_docstring

from configs.settings import inner_dataclass, is_switch, list_items, typed

EXAMPLES = 3  # that --help shows
BRIEF = 104  # characters of an explanation there
WIDEST = 110  # columns of text; a wider terminal is not filled
SIGNATURE = 26  # columns in which the names of settings stand, where they fit
CONFIG = "--config FILE", "YAML file with any of the settings"
COMMAND = re.compile(r"(python|torchrun|horovodrun|git|curl) \S")


@dataclass(frozen=True)
class Page:
    """What a command says of itself.

    Attributes:
        text: its module's docstring: what it does in one paragraph, a block of commands as examples, what else is to be known
        often: names of the settings that people change, with spaces between: what ``--help`` shows besides those that are
            required; empty: all, of a command that has few
    """

    text: str = ""
    often: str = ""

    def paragraphs(self) -> list[str]:
        """The text without its examples."""
        blocks = textwrap.dedent(self.text).strip().split("\n\n")
        return [" ".join(block.split()) for block in blocks if block.strip() and not COMMAND.match(block)]

    def examples(self) -> list[str]:
        """The commands, one with its further lines each."""
        found: list[str] = []
        for line in (line for block in self.text.split("\n\n") if COMMAND.match(block.strip()) for line in block.strip().splitlines()):
            if found and found[-1].endswith("\\"):
                found[-1] += f"\n{line}"
            else:
                found.append(line)
        return found


@dataclass(frozen=True)
class Row:
    """A setting.

    Attributes:
        name: its dotted name
        kind: its type
        default: MISSING where it must be given
        text: what its docstring says
        in_list: it is a key of each item of a list, and cannot be typed by itself
    """

    name: str
    kind: typing.Any
    default: typing.Any
    text: str
    in_list: bool = False

    def signature(self, positional: tuple[str, ...]) -> str:
        """It as one types it: ``--batch-size N``."""
        leaf = re.split(r"[._]", self.name)[-1].upper()
        more = " ..." * (list_items(self.kind) is not None)
        if self.name in positional:
            leaf = self.name.upper()
            return f"[{leaf}]" * (self.default is not dataclasses.MISSING) or f"{leaf}{more}"
        if is_switch(self.kind):
            return typed(self.name) + f", --no-{typed(self.name)[2:]}" * (self.default is True)
        return f"{self.name.rpartition('.')[2] if self.in_list else typed(self.name)} {self._value(leaf)}{more}"

    def _value(self, leaf: str) -> str:
        kinds = [list_items(kind) or kind for kind in typing.get_args(self.kind) or (self.kind,)]
        if typing.get_origin(self.kind) is tuple:
            return f"[{','.join('X' for _ in self.default)}]"
        if self.choices():
            return f"{{{','.join(self.choices())}}}" if self._is_short() else leaf
        if inner_dataclass(self.kind) or any(kind is dict or typing.get_origin(kind) is dict for kind in (self.kind, *kinds)):
            return "YAML"
        return next(({int: "N", float: "X"}[kind] for kind in (list_items(self.kind), *kinds) if kind in (int, float)), leaf)

    def choices(self) -> list[str]:
        """The values of a setting that has but some."""
        return [str(value) for kind in _literals(self.kind) for value in typing.get_args(kind)]

    def _is_short(self) -> bool:
        return len(",".join(self.choices())) <= SIGNATURE

    def explanation(self, brief: bool = False) -> str:
        """What it does, and its default; ``brief``: without what goes beyond two lines or so."""
        text = self.text.split(". ")[0] if brief else self.text
        if brief and len(text) > BRIEF:
            text = re.match(r"(\([^()]*\)|[^(;:]|[;:]\S)*", text)[0]  # to the first ; or : that is in no brackets
        parts = [text] * bool(text)
        if not self._is_short() and any(word not in text for word in self.choices()):
            parts.append(f"one of {', '.join(self.choices())}")
        default = "" if self.in_list else _shown_default(self.default)
        return f"{'; '.join(parts)}{default}".strip()


def short_help(prog: str, page: Page, config_class: type, positional: tuple[str, ...], remarks: list[str]) -> str:
    """The text of ``--help``: at most 45 lines.

    Args:
        prog: name of the command
        positional: names of the settings that are given without ``--``
        remarks: its last lines
    """
    rows = {row.name: row for row in rows_of(config_class) if not row.in_list and not _is_group(row)}
    often = [name for name in page.often.split() if name in rows]
    shown = list(positional) + [name for name in rows if name not in positional and rows[name].default is dataclasses.MISSING]
    shown += [name for name in often or rows if name not in shown]
    is_whole = len(shown) == len(rows)
    lines = [_usage(prog, rows.values(), positional), "", *_wrapped((page.paragraphs() or [_first_paragraph(config_class)])[0]), ""]
    lines += _examples(page.examples()[:EXAMPLES])
    lines.append("settings:" if is_whole else "settings that people change:")
    lines += _table([(rows[name].signature(positional), rows[name].explanation(brief=True)) for name in shown])
    lines += [] if "config" in rows else _table([CONFIG])
    return "\n".join([*lines, "", f"{'more' if is_whole else f'all {len(rows)} settings'}: {prog} --help-all", *remarks])


def whole_help(prog: str, page: Page, config_class: type, positional: tuple[str, ...], remarks: list[str]) -> str:
    """The text of ``--help-all``; arguments as of `short_help`."""
    rows = list(rows_of(config_class))
    lines = [_usage(prog, rows, positional)]
    for paragraph in (page.paragraphs() or [_first_paragraph(config_class)]) + _further_paragraphs(config_class):
        lines += ["", *_wrapped(paragraph)]
    lines += ["", *_examples(page.examples()), "settings:"]
    top = sorted((row for row in rows if "." not in row.name and not _is_group(row)), key=lambda row: row.name not in positional)
    lines += _table([(row.signature(positional), row.explanation()) for row in top])
    lines += [] if any(row.name == "config" for row in top) else _table([CONFIG])
    lines += _table([("--print-config", "print the settings as YAML, and do nothing else")])
    for group in (row for row in rows if inner_dataclass(row.kind)):
        inner = [row for row in rows if row.name.rpartition(".")[0] == group.name and not _is_group(row)]
        of = f"{typed(group.name)} YAML, a list of groups of keys" if typing.get_origin(group.kind) is list else group.name
        lines += ["", *_wrapped(f"{of}: {group.text}"), *_table([(row.signature(()), row.explanation()) for row in inner])]
    return "\n".join([*lines, *([""] * bool(remarks)), *remarks])


def rows_of(config_class: type, prefix: str = "", values: typing.Any = None, in_list: bool = False) -> Iterator[Row]:
    """Every setting of a config class, groups and what is in them included.

    Args:
        prefix: of the names
        values: an instance, whose values are the defaults; None: the class's own
        in_list: whether the class is that of a list's items
    """
    kinds, texts = typing.get_type_hints(config_class), _explanations(config_class)
    for field in dataclasses.fields(config_class):
        kind, name = kinds[field.name], f"{prefix}{field.name}"
        default = _default_of(field) if values is None else getattr(values, field.name)
        yield Row(name, kind, default, texts.get(field.name, ""), in_list)
        inner = inner_dataclass(kind)
        if inner is not None:
            is_list = typing.get_origin(kind) is list
            yield from rows_of(inner, f"{name}.", default if dataclasses.is_dataclass(default) else None, in_list or is_list)


def _default_of(field: dataclasses.Field) -> typing.Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _explanations(config_class: type) -> dict[str, str]:
    """Setting → what the docstrings of the class and of those that it comes from say of it."""
    found, kinds = {}, typing.get_type_hints(config_class)
    for kind in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(kind):
            for param in parse_docstring(kind.__doc__ or "").params:
                text = " ".join((param.description or "").replace("``", "`").split())
                found |= dict.fromkeys(param.arg_name.split(", "), text)  # several may share a text
    for name in found:  # the names of others as one types them
        for other in (other for other in kinds if "_" in other):
            found[name] = re.sub(rf"\b{other}\b", other.replace("_", "-"), found[name])
    return found


def _own_paragraphs(config_class: type) -> list[str]:
    text = (config_class.__doc__ or "").split("Args:")[0]
    return [" ".join(block.split()) for block in textwrap.dedent(text).strip().split("\n\n") if block.strip()]


def _first_paragraph(config_class: type) -> str:
    return next(iter(_own_paragraphs(config_class)), "")


def _further_paragraphs(config_class: type) -> list[str]:
    return _own_paragraphs(config_class)[1:]


def _literals(kind: typing.Any) -> list[typing.Any]:
    kinds = (kind, *typing.get_args(kind), *(inner for each in typing.get_args(kind) for inner in typing.get_args(each)))
    return [each for each in kinds if typing.get_origin(each) is typing.Literal]


def _is_group(row: Row) -> bool:
    return inner_dataclass(row.kind) is not None and typing.get_origin(row.kind) is not list


def _shown_default(default: typing.Any) -> str:
    if default is dataclasses.MISSING:
        return " (required)"
    if default is None or isinstance(default, bool | dict) or dataclasses.is_dataclass(default) or default in ("", [], ()):
        return ""
    values = [f"{value:g}" if isinstance(value, float) else str(value) for value in (default if isinstance(default, list | tuple) else [default])]
    return f" (default: [{','.join(values)}])" if isinstance(default, tuple) else f" (default: {' '.join(values)})"


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, 80), WIDEST)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False, break_long_words=False)


def _usage(prog: str, rows: typing.Iterable[Row], positional: tuple[str, ...]) -> str:
    rows = [row for row in rows if "." not in row.name]
    words = [row.signature(positional) for name in positional for row in rows if row.name == name]
    words += [row.signature(()) for row in rows if row.default is dataclasses.MISSING and row.name not in positional]
    return textwrap.fill(
        f"usage: {prog} {' '.join(words)} [settings]".replace("  ", " "), _width(), subsequent_indent="  ", break_on_hyphens=False
    )


def _examples(examples: list[str]) -> list[str]:
    return ["examples:", *(f"  {line}" for example in examples for line in example.splitlines()), ""] if examples else []


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Names at the left, explanations beside them, or below those that are too long."""
    lines = []
    for name, text in rows:
        beside = textwrap.wrap(text, _width() - SIGNATURE - 4, break_on_hyphens=False, break_long_words=False) or [""]
        if len(name) > SIGNATURE:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {start:{SIGNATURE}}  {line}".rstrip() for start, line in zip((name, *[""] * len(beside)), beside)]
    return lines
