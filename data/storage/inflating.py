"""How much compressed data may become. A few kilobytes that unpack to gigabytes are no data of ours or of anybody's: what is read says
first how large it will be, and what is far more than its own size warrants is refused before it is unpacked."""

from __future__ import annotations

import lz4.frame

MOST_TIMES = 30  # features, ids and texts pack to a half, a tenth at best
ALWAYS = 64 << 20  # bytes that may be unpacked from anything: small arrays of zeros pack by any factor

_MOST_TIMES_LZ4 = 255  # lz4 cannot make more of a byte


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


def inflate_lz4(frame: memoryview | bytes) -> bytes:
    """The content of an lz4 frame, which says as a rule how long it will be.

    Raises:
        ValueError: it is more than its size warrants.
        RuntimeError: what lz4 raises on damaged bytes.
    """
    if len(frame) > 14 and frame[4] & 8:  # the flag, and the length that comes with it
        check_inflated(int.from_bytes(frame[6:14], "little"), len(frame), "the record")
        if len(frame) <= ALWAYS // _MOST_TIMES_LZ4:  # it cannot become too much, whatever it says; forty times as fast
            return lz4.frame.decompress(frame)
    inflate = lz4.frame.LZ4FrameDecompressor()
    content = inflate.decompress(frame, max_length=most_inflated(len(frame)))
    if not inflate.eof:
        raise ValueError("the record is cut off, or becomes more than its size warrants")
    return content
