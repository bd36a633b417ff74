"""YAML of settings and reports, which nobody nests by the hundred: a text of a kilobyte whose aliases name one another would stand for
billions of values, and one of many brackets would end the stack."""

from __future__ import annotations

from typing import Any

import yaml

MOST_CHARACTERS = 4 << 20
DEEPEST = 50  # levels of lists and mappings
MOST_VALUES = 200_000  # that a text stands for, with what its aliases name counted wherever they stand


class BoundedLoader(yaml.SafeLoader):
    """Loads plain values, as its base class does, and refuses (``yaml.YAMLError``) a text that stands for too many."""

    def __init__(self, stream: Any):
        if isinstance(stream, str) and len(stream) > MOST_CHARACTERS:
            raise yaml.YAMLError(f"{len(stream):,} characters, at most {MOST_CHARACTERS:,} are read")
        super().__init__(stream)
        self._depth, self._values = 0, 0
        self._inside: dict[int, int] = {}  # values that a node stands for, those inside it with it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        before, mark = self._values, self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        self._values += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels, one inside the other", mark)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._inside:
            raise yaml.composer.ComposerError(None, None, "an alias inside of what it names", mark)
        if is_alias:
            self._values += self._inside[id(node)]
        if self._values > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_VALUES:,} values, with what its aliases name", mark)
        if not is_alias:
            self._inside[id(node)] = self._values - before
        self._depth -= 1
        return node
