"""A search service in a process of its own, and a client that says what came back."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
JSON = {"Content-Type": "application/json"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """Requests to one address; any thread may use it."""

    def __init__(self, port: int, process: subprocess.Popen | None = None):
        self.port, self.process = port, process

    def request(self, method, path, body=None, headers=()) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path, **headers) -> Reply:
        return self.request("GET", path, headers=headers)

    def search(self, headers=(), **asked) -> Reply:
        return self.request("POST", "/api/search", json.dumps(asked), JSON | dict(headers))

    def send_picture(self, data: bytes, name="picture", times=1, **fields) -> Reply:
        lines = [
            f'--edge\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode() for key, value in fields.items()
        ]
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        body = b"".join([*lines, *[head.encode(), data, b"\r\n"] * times, b"--edge--\r\n"])
        return self.request("POST", "/api/search", body, {"Content-Type": "multipart/form-data; boundary=edge"})


@contextlib.contextmanager
def serving(*words) -> Iterator[Client]:
    """``scripts/serve.py`` with these words, on a free port; it is stopped at the end."""
    command = [sys.executable, str(ROOT / "scripts/serve.py"), "--port", "0", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()[1]
        client = Client(int(line.split("/")[2].split(":")[1]), process)
        client.get("/api/healthz")  # waits until it answers
        yield client
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()
