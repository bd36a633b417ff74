"""Make a feature index; ``data.index.editor`` changes one.

    with IndexWriter("index/img", "img", dim=768, model=model.fingerprint, data=fingerprint) as writer:
        writer.add(["a.npz", "b.npz"], vectors)

Interrupted, it goes on where its last commit was, when it is started again.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from numpy.typing import ArrayLike

from data.errors import BadInput
from data.index.dtypes import DTYPES
from data.index.layout import KINDS, MAX_ID_BYTES, VERSION
from data.index.reader import EmbeddingIndex
from data.index.store import BlockStore
from data.storage.atomic import beside

BLOCK_BYTES = 8 << 20  # cheap to rewrite when rows are added later, and long enough to be read at full speed
COMMIT_SECONDS = 5.0  # of work that a kill may cost


class IndexWriter:
    """Write a new feature index; it appears under ``folder`` when the ``with`` block ends well, and not otherwise.

    What was committed of an interrupted one (every few seconds, in ``<folder>.partial``) is kept when kind, dim, dtype,
    model, data and ``info`` are the same: `done` names its ids, and only the others are to be added.

    Args:
        folder: the index; an index that stands there already is replaced, anything else is refused
        kind: "img" or "txt", what the vectors are embeddings of
        dim: width D of a vector
        model: fingerprint of the model that made the vectors
        data: fingerprint of what they were made from (``data_fingerprint``)
        dtype: "fp32", "fp16", "bf16" or "int8" (a scale per row), how they are stored
        info: anything JSON that says how they were made; kept in the header under ``created``

    Raises:
        BadInput: an unknown kind or dtype, no model fingerprint, a folder that holds something else or that another
            process writes.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        dim: int,
        model: str,
        data: str,
        dtype: str = "fp32",
        info: dict | None = None,
    ):
        self.folder = Path(folder)
        if kind not in KINDS or dtype not in DTYPES:
            raise BadInput(f"{folder}: kind {kind!r}, dtype {dtype!r}: expected kind {KINDS} and dtype {tuple(DTYPES)}")
        if not model:
            raise BadInput(f"{folder}: the model has no fingerprint; save it with save_pretrained and load that folder")
        commits = 0
        if self.folder.exists():
            try:
                commits = EmbeddingIndex(folder).header["commits"]
            except BadInput as error:
                raise BadInput(f"{folder}: not overwritten, choose another name or delete it: {error}") from None
        row_bytes = max(1, dim * DTYPES[dtype].itemsize)
        rows_per_block = 1 << min(12, max(8, (BLOCK_BYTES // row_bytes).bit_length() - 1))
        created = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(info or {})}
        self._store = BlockStore(self.folder, beside(self.folder, "", ".partial"))
        self._store.header = {
            "format": "feature-index", "version": VERSION, "kind": kind, "dim": dim, "dtype": dtype, "count": 0,
            "rows_per_block": rows_per_block, "max_norm": 0.0, "max_error": 0.0, "complete": False,
            "commits": commits + 1, "model": model, "data": data, "created": created, "checksums": True,
        }  # fmt: skip
        self.done: set[str] = set()
        self._num_committed = 0
        self._committed_at = time.monotonic()

    @property
    def header(self) -> dict:
        return self._store.header

    def __enter__(self) -> IndexWriter:
        self._store.open()
        try:
            if not self._go_on():
                self._store.empty()
        except BaseException:
            self._store.close(keep=True)
            raise
        return self

    def _go_on(self) -> bool:
        """Take over what is committed of the same index; False where it is another's."""
        try:
            header = self._store.committed_header()
        except BadInput:
            return False
        same = set(self.header) - {"count", "max_norm", "max_error", "commits", "created"}
        made = [{k: v for k, v in h["created"].items() if k != "time"} for h in (header, self.header)]
        if header["count"] == 0 or made[0] != made[1] or any(header.get(n) != self.header[n] for n in same):
            return False
        begun, self._store.header = self.header, header | {"commits": self.header["commits"]}
        try:
            for number in range(-(-header["count"] // header["rows_per_block"])):
                self.done.update(self._store.get(number).ids)
            self._store.check_rows()
        except BadInput as error:
            print(f"{error}; the index is begun anew", file=sys.stderr)
            self._store.header, self.done = begun, set()
            return False
        self._num_committed = header["count"]
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        published = False
        try:
            if kind is None:
                self.header["complete"] = True
                self._store.publish()
                published = True
        finally:
            self._store.close(keep=self._num_committed > 0 and not published)

    def add(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Append vectors.

        Args:
            ids: n names, each new to the index
            vectors: [n,D], anything NumPy takes; stored rounded to the index's dtype

        Raises:
            BadInput: wrong width, NaN or infinite (or too large for the dtype), a duplicate, empty or over-long id.
        """
        ids = list(ids)
        vectors = self._store.as_stored(ids, vectors)
        check_new_ids(ids, self.done.__contains__, self.folder)
        while ids:
            taken = self._store.append(ids, vectors)
            self.done.update(ids[:taken])
            ids, vectors = ids[taken:], vectors[taken:]
            full = self.header["count"] % self.header["rows_per_block"] == 0
            if full or time.monotonic() - self._committed_at >= COMMIT_SECONDS:
                self._store.commit()
                self._committed_at, self._num_committed = time.monotonic(), self.header["count"]


def check_new_ids(ids: Sequence[str], is_there: Callable[[str], bool], folder: Path) -> None:
    """Raise BadInput for an id that an index cannot have, has already, or that is named twice."""
    for name in ids:
        if not 0 < len(name.encode()) <= MAX_ID_BYTES:
            raise BadInput(f"{folder}: id {name!r} has {len(name.encode())} bytes, expected 1..{MAX_ID_BYTES}")
    twice = {name for name in ids if is_there(name)} or {name for name, n in Counter(ids).items() if n > 1}
    if twice:
        raise BadInput(f"{folder}: id {min(twice)!r} is added twice; ids of an index are unique")
