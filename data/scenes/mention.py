"""What a noun phrase of a caption says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mention:
    """One object as a caption names it; None: not said."""

    shape: str
    colour: str
    size: str | None
    texture: str | None
