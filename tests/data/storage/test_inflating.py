"""Compressed data is unpacked to what its size warrants, whatever it says of itself."""

import struct
import tracemalloc

import lz4.frame
import pytest

from data.storage import inflating
from data.storage.inflating import check_inflated, inflate_lz4


@pytest.mark.parametrize("options", [{}, {"store_size": False}, {"block_linked": False, "content_checksum": True}])
@pytest.mark.parametrize("size", [0, 1, 300, 400_000])
def test_frames_as_lz4_writes_them(options, size):
    content = bytes(range(256)) * (size // 256 + 1)
    frame = lz4.frame.compress(content[:size], **options)
    assert inflate_lz4(memoryview(frame)) == lz4.frame.decompress(frame) == content[:size]


def frame_of(said: int, megabytes: int) -> bytes:
    """Zeros in a frame that says that it has so many."""
    compressor = lz4.frame.LZ4FrameCompressor()
    parts = [compressor.begin(source_size=said)]
    return b"".join([*parts, *(compressor.compress(bytes(1 << 20)) for _ in range(megabytes))])


def test_what_becomes_too_much_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(inflating, "ALWAYS", 1 << 20)
    monkeypatch.setattr(inflating, "MOST_TIMES", 10)
    for frame in (frame_of(1 << 50, 1), frame_of(0, 50), frame_of(1000, 50), lz4.frame.compress(bytes(50 << 20), store_size=False)):
        tracemalloc.start()
        with pytest.raises((ValueError, RuntimeError)):
            inflate_lz4(frame)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()
    with pytest.raises((ValueError, RuntimeError)):
        inflate_lz4(lz4.frame.compress(bytes(1000))[:-9])


def test_the_message_has_both_numbers():
    check_inflated(64 << 20, 1, "x")
    with pytest.raises(ValueError, match="x would take 100,000,001 bytes, 1,000,000 are stored: more than 30 times as many"):
        check_inflated(100_000_001, 1_000_000, "x")


def test_damaged_headers():
    for bad in (b"", b"\x04\x22\x4d\x18", struct.pack("<I", 0x184D2204) + bytes(20)):
        with pytest.raises((ValueError, RuntimeError)):
            inflate_lz4(bad)
