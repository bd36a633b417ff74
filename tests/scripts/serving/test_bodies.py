"""A picture that is sent is stored under a name by which it is read as the pictures of a folder are, or refused with the reason."""

import asyncio
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.datastructures import UploadFile

from data.errors import BadInput
from data.regions.photos import Photo, read_photo
from scripts.serving.bodies import stored_picture


def sent(data: bytes, folder):
    return asyncio.run(stored_picture(UploadFile(io.BytesIO(data), filename="a"), folder))


def saved(kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 40, 30)).save(buffer, kind, **more)
    return buffer.getvalue()


def test_two_pictures_in_a_jpeg_as_telephones_write_them(tmp_path):
    """Pillow calls it an MPO."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = sent(saved("MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))], exif=exif), tmp_path)
    picture = read_photo(Photo("a", "a", path, path.name))
    assert path.suffix == ".jpg" and picture.size == (30, 40)
    assert np.abs(np.asarray(picture, int) - (200, 40, 30)).max() < 6


def test_why_a_picture_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + saved("PNG")[33:]
    text = PngInfo()
    text.add_text("x", "y" * 3_000_000, zip=True)
    for data, reason in ((huge, "more than can be decoded"), (saved("PNG", pnginfo=text), "Decompressed data too large"), (b"<svg/>", "give one of JPEG, PNG")):
        with pytest.raises(BadInput, match=reason):
            sent(data, tmp_path)
    assert not list(tmp_path.iterdir())
