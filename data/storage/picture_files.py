"""Opening pictures that come from anywhere: only formats that are read by code made for that, and no more pixels than fit."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from data.errors import BadInput
from data.storage.regular_files import open_regular

MAX_PIXELS = 256 << 20  # what is decoded at most, 0.8 GB as RGB
ANY_PIXELS, MOST_TIMES = 64 << 20, 100  # a screen of one colour packs by any factor; beyond so many pixels there must be bytes for them
# Not EPS, which Pillow gives to Ghostscript, and none of those that nobody keeps photographs in.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "AVIF", "HEIF")


@contextmanager
def opened_picture(source: str | Path | bytes, formats: Sequence[str] = FORMATS, side: int | None = None) -> Iterator[Image.Image]:
    """A picture of a file, or of its bytes, whose pixels are decoded when they are asked for, in the ``with`` block.

    Args:
        formats: Pillow's names of those that are tried
        side: pixels; a JPEG whose longer side has more is decoded smaller at once, where it can be

    Raises:
        BadInput: the file is a pipe or a device.
        OSError: it is not there, is no picture (``UnidentifiedImageError``), is too large, or is damaged, also where that is found in the
            block.
    """
    data = source if isinstance(source, bytes) else _content(source)
    Image.init()
    known = [name for name in formats if name in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a large picture (there is a limit below) and of odd metadata
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(io.BytesIO(data), formats=known) as image:
                if side is not None and (shrink := side / max(image.size)) < 1:
                    image.draft(None, tuple(max(int(length * shrink), 1) for length in image.size))
                _check_pixels(image, len(data))
                yield image
        except UnidentifiedImageError:  # Pillow says the address of an object
            raise UnidentifiedImageError("no picture of a format that is read") from None
        except (OSError, BadInput):
            raise
        except Exception as error:  # Pillow raises many kinds on what is damaged
            raise OSError(str(error) or type(error).__name__) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_pixels(image: Image.Image, num_bytes: int) -> None:
    """Refuse a picture that takes more memory than there may be, or than its bytes warrant."""
    (width, height), channels = image.size, max(len(image.getbands()), 3)  # all become RGB
    if width * height * channels > 3 * MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than can be decoded ({MAX_PIXELS}); scale it down")
    if width * height > ANY_PIXELS and width * height * channels > MOST_TIMES * num_bytes:
        raise ValueError(
            f"{width} x {height} pixels would take {width * height * channels:,} bytes, {num_bytes:,} are stored: more than {MOST_TIMES} times "
            "as many are not decoded"
        )


def _content(path: str | Path) -> bytes:
    with open_regular(path) as file:
        return file.read()
