"""YAML files of settings, with the text of text settings as it stands in the file.

YAML reads ``no`` as false, ``2024-01-05`` as a date and ``1e3`` or ``2016`` as a number. Which of them is meant is known
from the setting's type, so files are read as far as YAML's nodes, whose scalars are the text as written.
"""

import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from configs.settings import Settings, current_name, inner_dataclass, is_optional, is_text, list_items, nearest
from data.errors import BadInput
from data.storage.bounded_yaml import MOST_CHARACTERS, BoundedLoader
from data.storage.regular_files import open_regular

NOT_TEXT = object()
NULL = "tag:yaml.org,2002:null"
STRING = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class ItemTexts:
    """What the text settings of a list of groups are set to: for each item, key → text or list of texts."""

    items: list[dict[str, typing.Any]]


@dataclass(frozen=True)
class Assigned:
    """A setting and what it is set to.

    Attributes:
        name: its dotted name
        word: the value as YAML on one command-line word; None where none was typed
        text: the value of a text setting: one, a list of them, or None; of a list of groups its `ItemTexts`; NOT_TEXT for other
            settings
    """

    name: str
    word: str | None
    text: typing.Any = NOT_TEXT


def read_mapping(path: str) -> yaml.MappingNode:
    """The settings of a file.

    Raises:
        BadInput: the file cannot be read, is no YAML, or holds something else.
    """
    try:
        with open_regular(path, "r", encoding="utf-8") as file:
            return parse_mapping(file.read(MOST_CHARACTERS + 1), path)  # of more the loader says so
    except OSError as error:
        raise BadInput(f"{path}: cannot read the config: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text: {error}") from error


def parse_mapping(text: str, source: str) -> yaml.MappingNode:
    """The same of a text; ``source`` is named in errors."""
    try:
        node = yaml.compose(text, Loader=BoundedLoader)
    except yaml.YAMLError as error:
        raise BadInput(f"{source}: not valid YAML: {error}") from error
    if node is None or node.tag == NULL:
        node = yaml.MappingNode("tag:yaml.org,2002:map", [])
    return _mapping(node, source, "the file")


def assignments(
    node: yaml.MappingNode, config_class: type, source: str, settings: Settings, prefix: str = ""
) -> Iterator[Assigned]:
    """Every setting of a mapping that stands under ``prefix`` in ``settings``.

    Raises:
        BadInput: a key that ``config_class`` does not have, a key twice, or a text setting that is set to something
            else; ``source`` and the key are named.
    """
    for key, kind, value in _entries(node, config_class, source, settings, prefix):
        name = f"{prefix}{key}"
        inner = inner_dataclass(kind)
        if inner is not None and _is_null(value):
            continue
        if inner is not None:
            yield from _of_group(value, kind, source, settings, name)
        else:
            yield _assigned(name, kind, value, source)


def group_assignments(name: str, kind: typing.Any, word: str, settings: Settings) -> Iterator[Assigned]:
    """The same of a group, or a list of groups, that is given as YAML on one word: ``--optim '{lr: 1}'``."""
    try:
        node = yaml.compose(word, Loader=BoundedLoader)
    except yaml.YAMLError as error:
        raise BadInput(f"--{name}: not valid YAML: {error}") from error
    if isinstance(node, yaml.CollectionNode):
        yield from _of_group(node, kind, "the command line", settings, name)
    else:
        yield Assigned(name, word)


def _of_group(node: yaml.Node, kind: typing.Any, source: str, settings: Settings, name: str) -> Iterator[Assigned]:
    inner = inner_dataclass(kind)
    if typing.get_origin(kind) is list:
        texts = _quote_texts(node, inner, source, settings, name)
        if not name.endswith("+"):
            yield Assigned(name, "[]", ItemTexts([]))  # else jsonargparse takes what an item does not say from the one before it
        yield Assigned(name, yaml.serialize(node), ItemTexts(texts))
    else:
        yield from assignments(_mapping(node, source, name), inner, source, settings, f"{name}.")


def chosen_value(node: yaml.MappingNode, group: str, leaf: str) -> str | None:
    """What the setting ``leaf`` of ``group`` is set to, if it is; of something that is no scalar, its YAML."""
    for key, value in node.value:
        if key.value == group and isinstance(value, yaml.MappingNode):
            for inner_key, inner in value.value:
                if inner_key.value == leaf:
                    return inner.value if isinstance(inner, yaml.ScalarNode) else yaml.serialize(inner).strip()
    return None


def bracketed_texts(word: str) -> list[str] | None:
    """The texts of ``[en, no]`` or ``["en", "no"]``, as they stand there; None for a word that is no such list."""
    if not (word.startswith("[") and word.endswith("]")):
        return None
    try:
        found = json.loads(word)  # first: YAML does not know JSON's pairs of surrogates
        if all(isinstance(item, str) for item in found):
            return found
    except ValueError:
        pass
    try:
        node = yaml.compose(word, Loader=BoundedLoader)
    except yaml.YAMLError:
        return None
    if not (isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value)):
        return None
    return [item.value for item in node.value]


def _entries(
    node: yaml.MappingNode, config_class: type, source: str, settings: Settings, prefix: str
) -> Iterator[tuple[str, typing.Any, yaml.Node]]:
    """Key, type and value of every entry of a mapping."""
    types = typing.get_type_hints(config_class)
    keys = [_key(key, types) for key, _ in node.value]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise BadInput(f"{source}: {prefix}{twice[0]} stands there twice; keep one")
    try:
        yaml.SafeLoader("").flatten_mapping(node)  # `<<: *other`; what it brings stands first, and own keys win
    except yaml.YAMLError as error:
        raise BadInput(f"{source}: {prefix or 'the file'}: not a mapping that can be merged: {error}") from error
    node.value = list({yaml.serialize(key): (key, value) for key, value in node.value}.values())
    for key, value in node.value:
        key = _key(key, types)
        if key not in types:
            near = nearest(key, list(types)) or nearest(key, list(settings.types))
            name = f"{prefix}{key}"
            raise BadInput(f"{source}: unknown key {name}{settings.elsewhere.get(name) or near}")
        yield key, types[key], value


def _key(node: yaml.Node, types: dict[str, typing.Any]) -> str:
    """The key as the class has it; one that was called otherwise before is renamed."""
    if isinstance(node, yaml.ScalarNode):
        node.value = current_name(node.value, types)
        return node.value
    return yaml.serialize(node).strip()


def _mapping(node: yaml.Node, source: str, name: str) -> yaml.MappingNode:
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(f"{source}: {name} must be a mapping of settings, found {_shown(node)}")
    return node


def _is_null(node: yaml.Node) -> bool:
    return node.tag == NULL


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else yaml.serialize(node).strip()


def _assigned(name: str, kind: typing.Any, node: yaml.Node, source: str) -> Assigned:
    if _is_null(node) and is_optional(kind):
        return Assigned(name, "null", None if is_text(kind) or is_text(list_items(kind)) else NOT_TEXT)
    if isinstance(node, yaml.ScalarNode) and is_text(kind):
        return Assigned(name, node.value, _text(node, source, name))
    if is_text(list_items(kind)):
        if not isinstance(node, yaml.SequenceNode):
            raise BadInput(f"{source}: {name}: expected a list, as [{node.value}], found {_shown(node)}")
        texts = [_text(item, source, name) for item in node.value]
        return Assigned(name, json.dumps(texts, ensure_ascii=False), texts)
    if is_text(kind):
        raise BadInput(f"{source}: {name}: expected a text, found {_shown(node)}")
    return Assigned(name, node.value if isinstance(node, yaml.ScalarNode) else yaml.serialize(node))


def _text(node: yaml.Node, source: str, name: str) -> str:
    """A scalar as it stands in the file: ``null`` too, where a text must stand."""
    if not isinstance(node, yaml.ScalarNode):
        raise BadInput(f"{source}: {name}: expected a text, found {_shown(node)}")
    if _is_null(node) and not node.value:
        raise BadInput(f'{source}: {name}: expected a text, found nothing (an empty text is "")')
    return node.value


def _quote_texts(
    node: yaml.Node, inner: type, source: str, settings: Settings, name: str
) -> list[dict[str, str | list[str]]]:
    """Mark the texts of a list of settings as texts for whoever reads it as YAML → those of each item, by key; keys are checked
    on the way."""
    found: list[dict[str, str | list[str]]] = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        found.append({})
        for key, inner_kind, value in _entries(_mapping(item, source, name), inner, source, settings, f"{name}."):
            if _is_null(value) and is_optional(inner_kind):
                continue
            in_list = isinstance(value, yaml.SequenceNode) and is_text(list_items(inner_kind))
            if is_text(list_items(inner_kind)) and not (in_list or is_text(inner_kind)):
                raise BadInput(f"{source}: {name}.{key}: expected a list, found {_shown(value)}")
            texts = value.value if in_list else [value] * is_text(inner_kind)
            for text in texts:
                text.value, text.tag, text.style = _text(text, source, f"{name}.{key}"), STRING, '"'
            if texts:
                found[-1][key] = [text.value for text in texts] if in_list else value.value
    return found
