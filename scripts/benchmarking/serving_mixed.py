"""Minutes of mixed load on a service whose index changes meanwhile: what came back wrong, and how much memory it holds."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from scripts.benchmarking.serving_galleries import ServedGallery
from scripts.benchmarking.serving_load import Request, load_service, search_request

CHANGED = 0.1  # share of the images that come and go
MEMORY_EVERY = 1.0  # seconds
MALFORMED = (b"{", b'{"text": ""}', b'{"text": "a", "k": 0}', b'{"txt": "a"}', b'{"text": ["a", 5]}', b'{"text": "a", "backend": "x"}')


@dataclass
class MixedOptions:
    """Mixed load.

    Args:
        minutes: how long it lasts; 0: there is none
        gallery: on which it is, "demo" or "drawn"
        clients: connections
        update_every: seconds between two updates of the index on the disk
        malformed: share of requests that are wrong
    """

    minutes: float = 10.0
    gallery: str = "demo"
    clients: int = 32
    update_every: float = 20.0
    malformed: float = 0.01


class Updates:
    """Takes a tenth of the images out of an index and puts them back, again and again, on a thread of its own."""

    def __init__(self, gallery: ServedGallery, every: float):
        self.gallery, self.every, self.number = gallery, every, 0
        count = len(gallery.ids)
        self.rows = np.random.default_rng(1).choice(count, max(1, int(CHANGED * count)), replace=False)
        self._names = [gallery.ids[row] for row in self.rows]
        index = EmbeddingIndex(gallery.index)
        self._vectors = index.vectors(np.array([index.row_of(name) for name in self._names])).copy()
        index.close()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="updates", daemon=True)

    def __enter__(self) -> Updates:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self.every):
            with IndexEditor(self.gallery.index, self.gallery.fingerprint) as editor:
                if self.number % 2:
                    editor.add(self._names, self._vectors)
                else:
                    editor.delete(self._names)
            self.number += 1


class Memory:
    """Bytes that a process holds, by the second."""

    def __init__(self, process: int):
        self._status, self.samples = Path(f"/proc/{process}/status"), []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while True:
            lines = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
            held, own = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))
            self.samples.append({"seconds": time.monotonic() - started, "bytes": held, "own_bytes": own})
            if self._over.wait(MEMORY_EVERY):
                return


def mixed_load(gallery: ServedGallery, port: int, process: int, options: MixedOptions) -> dict[str, Any]:
    """What clients saw, how often the index changed, and memory over time; ``own_bytes`` without what is mapped of files."""
    rng, texts = np.random.default_rng(2), gallery.texts
    with Updates(gallery, options.update_every) as updates, Memory(process) as memory:
        kept = [name for row, name in enumerate(gallery.ids) if row not in set(updates.rows.tolist())]

        def request(client: int, number: int) -> Request:
            chance, query, k = rng.random(), int(rng.integers(len(texts))), int(rng.choice([1, 5, 10, 20]))
            if chance < options.malformed:
                return Request("POST", "/api/search", MALFORMED[number % len(MALFORMED)], 400)
            if chance < 0.1:
                return search_request(image=kept[int(rng.integers(len(kept)))], find="images", k=k)
            if chance < 0.15:
                return search_request(text=texts[query : query + 3], k=k)
            if chance < 0.2:
                return Request("GET", f"/api/item/{kept[int(rng.integers(len(kept)))]}")
            if chance < 0.25 and "--photos" in gallery.words:
                return Request("GET", f"/api/image/{kept[int(rng.integers(len(kept)))]}?size={rng.choice([64, 128])}")
            return search_request(lambda body: _is_one_of_both(gallery, updates.rows, query, k, body), text=texts[query], k=k)

        load = load_service(port, options.clients, 60 * options.minutes, request)
    # the first samples are of a service that has not met everything yet
    steady = [each["own_bytes"] for each in memory.samples[len(memory.samples) // 5 :]]
    growth = float(np.polyfit(np.arange(len(steady)), steady, 1)[0] * len(steady)) if len(steady) > 1 else 0.0
    return load.as_json() | {"updates": updates.number, "memory": memory.samples, "grown_bytes": growth}


def _is_one_of_both(gallery: ServedGallery, rows: np.ndarray, query: int, k: int, body: bytes) -> bool:
    """Whether an answer is right before an update or after it."""
    return gallery.is_right(query, k, body) or gallery.is_right(query, k, body, rows)
