"""A connection on which comes what is no HTTP: when nothing was answered yet, and when it was."""

import asyncio
import re

import pytest
import uvicorn
from uvicorn.server import ServerState

from scripts.serving.server import Protocol

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
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.05)
        answers = await asyncio.wait_for(reader.read(), 10)
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
