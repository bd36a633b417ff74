"""What is read from the environment: numbers that launchers put there."""

from __future__ import annotations

import os

from data.errors import BadInput


def number_in_environment(name: str, default: int | None = None) -> int:
    """The whole number of a variable, of at least 0.

    Args:
        default: where the variable is not set; None: it must be

    Raises:
        BadInput: it is no such number, or is not set.
    """
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise BadInput(f"{name} in the environment: found {value!r}, expected a whole number, as launchers such as torchrun put there")
    return int(value)
