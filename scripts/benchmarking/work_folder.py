"""The folder in which a benchmark works, deleted at the end, or by the next one where it was killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import BadInput
from data.storage.atomic import atomic_folder, beside
from data.storage.locks import only_writer

MARK = "of_a_benchmark.txt"  # file in it that nobody else's folder has


@contextmanager
def work_folder(path: str, note: str = "", on_left: Callable[[str], None] = lambda note: None) -> Iterator[Path]:
    """A folder of this process's own while the block lasts.

    Args:
        note: what the benchmark has elsewhere, for who finds the folder left behind
        on_left: is called with the note of a benchmark that was killed, before the folder of that is deleted

    Raises:
        BadInput: a folder or file of another kind is there, or another benchmark works in it.
    """
    work = Path(path)
    with only_writer(work):
        if (work / MARK).is_file():
            on_left((work / MARK).read_text(encoding="utf-8", errors="replace"))
            _delete(work)
        if os.path.lexists(work):
            raise BadInput(f"work: {work} exists; it is deleted at the end: give a folder that does not")
        with atomic_folder(work) as partial:
            (partial / MARK).write_text(note, encoding="utf-8")
        try:
            yield work
        finally:
            _delete(work)


def _delete(work: Path) -> None:
    """Under another name, so that what is left where this is killed is cleared away by the next one, too."""
    leaving = beside(work, ".", ".partial")
    shutil.rmtree(leaving, ignore_errors=True)
    with suppress(OSError):
        os.replace(work, leaving)
    shutil.rmtree(leaving, ignore_errors=True)
