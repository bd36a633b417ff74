"""Pictures from anywhere: whatever is wrong with one is an OSError, nothing is run to read it, and no memory is taken that its bytes do
not warrant."""

import io
import os
import random
import struct
import zlib

import pytest
from PIL import Image

from data.errors import BadInput
from data.storage import picture_files
from data.storage.picture_files import opened_picture


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey picture that says it has so many pixels, and has few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes((width + 1) * min(height, 10))))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(b"zTXt", text) for text in chunks) + body + chunk(b"IEND", b"")


def test_what_is_no_picture_is_an_oserror_whatever_pillow_raises(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    whole, draw = buffer.getvalue(), random.Random(0)
    text = b"Comment\0\0" + zlib.compress(bytes(3 << 20))  # more text than Pillow unpacks
    for content in [b"", b"no picture", png(40, 30, text), *(whole[:size] for size in range(0, len(whole) - 40, 5))]:
        with pytest.raises(OSError), opened_picture(content) as picture:
            picture.convert("RGB")
    for _ in range(100):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        try:
            with opened_picture(bytes(content)) as picture:
                picture.convert("RGB")
        except OSError:
            pass


def test_pixels_are_refused_before_they_are_decoded(monkeypatch):
    with opened_picture(png(300, 20)) as picture:
        assert picture.size == (300, 20)
    with pytest.raises(OSError, match="12000 x 9000 pixels would take 324,000,000 bytes"), opened_picture(png(12_000, 9_000)):
        pass
    with pytest.raises(OSError, match="40000 x 40000 pixels are more than can be decoded"), opened_picture(png(40_000, 40_000)):
        pass
    buffer = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 9)).save(buffer, "PNG")
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 500)
    with pytest.raises(OSError, match="more than can be decoded"), opened_picture(buffer.getvalue()):
        pass  # 400 pixels of four channels


def test_what_pillow_gives_to_another_program_and_what_never_ends_is_not_read(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(OSError, match="no picture of a format"), opened_picture(buffer.getvalue()):
        pass
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadInput, match="a named pipe"), opened_picture(tmp_path / "a.jpg"):
        pass
