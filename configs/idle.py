"""Settings that say something though nothing reads them, since another setting makes them idle: an error, and no silence."""

from __future__ import annotations

import dataclasses
import typing

from configs.settings import typed
from data.errors import BadInput

Rule = tuple[typing.Any, str, str]
"""What is true where the settings are idle; their names, with spaces between; and why, as "without --reranker"."""


def refuse_idle(settings: typing.Any, *rules: Rule) -> None:
    """Refuse settings that are not what they are by themselves though nothing reads them: ``--rerank 20`` without ``--reranker``.

    Args:
        settings: of a command
        rules: each says of some settings when they are idle

    Raises:
        BadInput: one of them says something; what is given as its default cannot be told from what is not given.
    """
    fields = {each.name: each for each in dataclasses.fields(settings)}
    for is_idle, names, why in rules:
        for field in [fields[name] for name in names.split() if is_idle]:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if getattr(settings, field.name) != default:
                advice = "give that too, or leave it out" if why.startswith("without") else "leave it out"
                raise BadInput(f"{typed(field.name)} has no effect {why}; {advice}")
