"""One process that listens at an address until it is told to stop."""

from __future__ import annotations

import signal
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from data.errors import BadInput
from scripts.serving.bodies import refusal
from scripts.serving.guard import HEADERS

BACKLOG = 1024  # connections that wait to be accepted
STOP_WITHIN = 30  # seconds for requests in flight


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that holds an address from now on; port 0 is any that is free. Raises BadInput where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # so named, asyncio sends small answers at once
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        return found
    except OverflowError:
        raise BadInput(f"--port {port}: expected 0 to 65535") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a name of which no part may be empty or longer than 63 letters
        reason = getattr(error, "strerror", None) or "it is no name of a machine"
        raise BadInput(f"--host {host} --port {port}: cannot listen there ({reason}); choose another with --host or --port") from None


def address_of(listening: socket.socket, host: str) -> str:
    """Where a browser finds it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{listening.getsockname()[1]}/"


class Protocol(H11Protocol):
    """HTTP/1.1, where what is none is answered as everything else that is refused."""

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else it was answered before the rest of it came
            answer = refusal(400, "the request is no HTTP/1.1 that can be read")
            headers = [*answer.headers.items(), *HEADERS.items(), ("connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers, reason="Bad Request"), h11.Data(data=answer.body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


def serve(app, listening: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C; requests in flight are answered."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=STOP_WITHIN, http=Protocol, ws="none", backlog=BACKLOG,
    )  # fmt: skip
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:  # uvicorn takes the signals while it runs, and sends itself those that it got again when it has stopped
        uvicorn.Server(config).run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
