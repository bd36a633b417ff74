"""Bodies of requests, which are read up to a limit, pictures among them; and the answer to what is refused."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import anyio
from PIL import UnidentifiedImageError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from data.errors import BadInput
from data.storage.picture_files import opened_picture

PIXELS = 40_000_000  # of a picture of one's own
READ_WITHIN = 30.0  # seconds that a body may take to arrive
BYTES, PICTURE_BYTES = 256 << 10, 20 << 20  # of JSON, and of a form with a picture
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
SUFFIXES = FORMATS | {"MPO": ".jpg"}  # Pillow's name of a JPEG with two pictures, as telephones write them


class TooLarge(Exception):
    """A body has more bytes than a request may have."""


def refusal(status: int, sentence: str, seconds: int | None = None) -> JSONResponse:
    """An answer that says why there is none."""
    return JSONResponse({"error": " ".join(sentence.split())}, status, {} if seconds is None else {"Retry-After": str(seconds)})


def most_bytes(headers: Headers) -> int:
    """What the body of a request may have."""
    return PICTURE_BYTES if headers.get("content-type", "").startswith("multipart/") else BYTES


def limited(receive, headers: Headers):
    """``receive``, which raises TooLarge where more comes than may, whatever the headers say."""
    taken, most = 0, most_bytes(headers)

    async def receive_limited():
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise TooLarge(f"the body has more than {most:,} bytes")
        return message

    return receive_limited


async def in_time(reading: Awaitable[Any]) -> Any:
    """What reading a body gives. Raises HTTPException where it takes too long to arrive."""
    try:
        with anyio.fail_after(READ_WITHIN):
            return await reading
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {READ_WITHIN:.0f} seconds") from None


async def stored_picture(upload: Any, folder: Path) -> Path:
    """The file of a form as a file in ``folder``, for its one user to delete. Raises BadInput for what is no picture, or too large."""
    if not isinstance(upload, UploadFile):
        raise BadInput("the form has no file named picture")
    data = await upload.read()
    try:
        with opened_picture(data, list(FORMATS)) as image:
            kind, (width, height) = image.format, image.size
    except UnidentifiedImageError:
        raise BadInput(f"the file is no picture that can be read: give one of {', '.join(FORMATS)}") from None
    except OSError as error:
        raise BadInput(f"the picture cannot be read: {error}") from None
    if width * height > PIXELS:
        raise BadInput(f"the picture has {width} x {height} pixels, expected at most {PIXELS:,}: scale it down")
    with NamedTemporaryFile(dir=folder, suffix=SUFFIXES[kind], delete=False) as file:
        try:
            file.write(data)
            file.flush()
        except OSError:  # of a full disk: what is half there would keep it full
            Path(file.name).unlink()
            raise
    return Path(file.name)
