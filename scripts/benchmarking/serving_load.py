"""Clients of a search service: so many connections at once, each asking as soon as it is answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Request:
    """What is sent, and what is to come back.

    Attributes:
        method, path, body: of HTTP
        status: that is right
        is_right: whether what came is; None: any answer
    """

    method: str
    path: str
    body: bytes = b""
    status: int = 200
    is_right: Callable[[bytes], bool] | None = None

    def as_bytes(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n"
        return head.encode() + self.body


def search_request(is_right: Callable[[bytes], bool] | None = None, status: int = 200, **asked: Any) -> Request:
    """A search by JSON."""
    return Request("POST", "/api/search", json.dumps(asked).encode(), status, is_right)


@dataclass
class Load:
    """What clients saw.

    Attributes:
        seconds: of all answers but those that were refused for the queue was full
        statuses: how often each came
        wrong: answers that were not right: another status than it should be, or something else found
        examples: some of them
        took: seconds from the first request to the last answer
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    examples: list[str] = field(default_factory=list)
    took: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Requests per second, and milliseconds."""
        found = {"requests_per_second": len(self.seconds) / self.took, "answers": len(self.seconds), "wrong": self.wrong}
        if self.seconds:
            median, p95, p99 = (1000 * np.percentile(self.seconds, [50, 95, 99])).tolist()
            found |= {"median_ms": median, "p95_ms": p95, "p99_ms": p99}
        return found | {"statuses": {str(status): number for status, number in sorted(self.statuses.items())}, "examples": self.examples}


def load_service(port: int, clients: int, seconds: float, requests: Callable[[int, int], Request]) -> Load:
    """Ask for so many seconds, and once at least; what was asked last is waited for.

    Args:
        requests: number of the client, number of its request → what it asks
    """
    return asyncio.run(_load(port, clients, seconds, requests))


async def _load(port: int, clients: int, seconds: float, requests: Callable[[int, int], Request]) -> Load:
    load, started = Load(), time.perf_counter()
    everyone = asyncio.gather(*(_client(port, client, started + seconds, requests, load) for client in range(clients)))
    await asyncio.wait_for(everyone, seconds + 120)
    load.took = time.perf_counter() - started
    return load


async def _client(port: int, client: int, until: float, requests: Callable[[int, int], Request], load: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while number == 0 or time.perf_counter() < until:
        request, started = requests(client, number), time.perf_counter()
        number += 1
        writer.write(request.as_bytes())
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = await reader.readexactly(size)
        load.statuses[status] += 1
        if status == 503:
            await asyncio.sleep(0.05)  # less than Retry-After: the queue is to stay full
            continue
        load.seconds.append(time.perf_counter() - started)
        if status != request.status or (request.is_right is not None and not request.is_right(body)):
            load.wrong += 1
            if len(load.examples) < 5:
                load.examples.append(f"{request.path} {request.body[:200]!r}: {status} {body[:300]!r}")
    writer.close()
