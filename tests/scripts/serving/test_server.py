"""What comes over a connection: what is no HTTP, when nothing was answered yet, and when it was; a picture that finds no room."""

import asyncio
import io
import os
import re
import tempfile

import pytest
import uvicorn
from PIL import Image
from starlette.datastructures import UploadFile
from uvicorn.server import ServerState

from data.errors import BadInput
from scripts.serving.bodies import stored_picture
from scripts.serving.server import Protocol, bound_socket

ANSWERED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


async def answer(scope, receive, send):
    """An application that answers before it knows the body."""
    await send({"type": "http.response.start", "status": 405, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def statuses_and_errors(pieces: list[bytes]) -> tuple[list[bytes], list[dict]]:
    """The statuses that came back for the pieces, sent one behind the other's answer, and what the event loop has caught."""
    loop, errors = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    config = uvicorn.Config(answer, http=Protocol, ws="none", log_level="critical")
    config.load()
    server = await loop.create_server(lambda: Protocol(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        answers = b""
        for piece in pieces[:-1]:
            writer.write(piece)
            answers += await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        writer.write(pieces[-1])
        answers += await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return re.findall(rb"HTTP/1.1 (\d+)", answers), errors


@pytest.mark.parametrize(("pieces", "statuses"), [
    ([b"\x16\x03\x01\r\n\r\n"], [b"400"]),
    ([ANSWERED + b"zz\r\n"], [b"400"]),
    ([ANSWERED, b"zz\r\n"], [b"405"]),
])  # fmt: skip
def test_what_is_no_http_is_answered_once(pieces, statuses):
    found, errors = asyncio.run(statuses_and_errors(pieces))
    assert found == statuses and not errors, (found, errors)


def test_a_picture_that_a_full_disk_cuts_is_not_left_there(tmp_path, monkeypatch):
    def full(*words, **settings):
        file = tempfile.NamedTemporaryFile(*words, **settings)
        file.write = lambda data: os.write(os.open("/dev/full", os.O_WRONLY), data)
        return file

    monkeypatch.setattr("scripts.serving.bodies.NamedTemporaryFile", full)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    picture.seek(0)
    with pytest.raises(OSError, match="No space left on device"):
        asyncio.run(stored_picture(UploadFile(picture), tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_host_that_no_machine_is_called_is_one_line(host):
    with pytest.raises(BadInput, match=f"--host {host} --port 0: cannot listen there .it is no name of a machine.; choose another"):
        bound_socket(host, 0)
