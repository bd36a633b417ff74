"""How much compressed data may become. A few kilobytes that unpack to gigabytes are no data of ours or of anybody's: what is read says
first how large it will be, and what is far more than its own size warrants is refused before it is unpacked."""

from __future__ import annotations

MOST_TIMES = 100  # features, ids and texts pack to a half, a tenth at best
ALWAYS = 64 << 20  # bytes that may be unpacked from anything: small arrays of zeros pack by any factor


def most_inflated(packed: int) -> int:
    """How many bytes so many packed ones may become."""
    return max(ALWAYS, MOST_TIMES * packed)


def check_inflated(size: int, packed: int, what: str) -> None:
    """Refuse what becomes more.

    Args:
        size, packed: bytes when it is unpacked, and now
        what: what it is, as the message's subject

    Raises:
        ValueError: it is more than its size warrants.
    """
    if size > most_inflated(packed):
        raise ValueError(f"{what} would take {size:,} bytes, {packed:,} are stored: more than {MOST_TIMES} times as many are not unpacked")
