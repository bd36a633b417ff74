"""Write LMDB databases: all of one or nothing appears, and one process writes it at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import lmdb

from data.errors import BadInput, CannotWrite
from data.storage.atomic import atomic_file, beside, exchange
from data.storage.digest import RecordsDigest, remember_digest
from data.storage.lmdb_env import MAX_KEY_BYTES
from data.storage.lmdb_pages import check_pages
from data.storage.locks import only_writer
from data.storage.own_files import check_only_own
from data.storage.processes import ctrl_c_held
from data.storage.record_sums import RecordSums, SumsWriter

_BATCH_BYTES = 64 << 20  # of values kept in memory between commits, so that a batch can be written again


class LmdbWriter:
    """Write a new database: all of it or nothing appears under `folder`.

    Records go to ``<folder>.partial``, which takes the place of `folder` when the ``with`` block ends without an
    exception; an older database of that name is replaced only then. Other files of the database are put into
    `partial` before the block ends.

    Args:
        folder: final folder of the database (``data.mdb`` in it)
        map_size: first size of the memory map in bytes; it doubles whenever it is full
        commit_every: records per transaction
        keep: when the block ends with an exception, or the process is killed, what was committed stays in `partial`, and
            the next writer goes on from there
        head_bytes: as `SumsWriter` takes it

    Raises:
        CannotWrite: the disk is full or not writable.
        BadInput: a key is empty or too long, `folder` holds something else, another process is writing it.
    """

    def __init__(
        self,
        folder: str | Path,
        map_size: int = 1 << 30,
        commit_every: int = 1000,
        keep: bool = False,
        head_bytes: Callable[[bytes], int] | None = None,
    ):
        self.folder = Path(folder)
        self.partial, self._replaced = beside(self.folder, "", ".partial"), beside(self.folder, ".", ".replaced")
        self.commit_every = commit_every
        self.keep = keep
        self._map_size = map_size
        self._claims = ExitStack()
        self._batch: list[tuple[bytes, bytes]] = []
        self._batch_bytes = 0
        self._digest: RecordsDigest | None = None  # of what is committed
        self._sums = SumsWriter(head_bytes)

    def __enter__(self) -> LmdbWriter:
        if self.folder.exists() and not (self.folder / "data.mdb").exists() and any(self.folder.iterdir()):
            raise BadInput(
                f"{self.folder}: exists and is no LMDB database, it will not be replaced; choose another folder"
            )
        check_only_own(self.folder)
        self._claims.enter_context(only_writer(self.partial))
        try:
            if self._replaced.exists() and not self.folder.exists():  # by a run that was killed between two names
                self._replaced.rename(self.folder)
            if not self.keep:
                _remove(self.partial)  # of a run that was killed
            self.partial.mkdir(parents=True, exist_ok=True)
            if (self.partial / "data.mdb").exists():
                check_pages(self.partial / "data.mdb", for_writing=True)
            # no lock file and no sync per commit, unless to go on from it: nobody else sees this folder before it is renamed
            self._env = lmdb.open(str(self.partial), map_size=self._map_size, lock=False, sync=self.keep)
            self._digest = RecordsDigest()
            with self._env.begin() as txn:
                for key, value in txn.cursor():  # what another process has written, from which this one goes on
                    self._digest.add(key, value)
                    self._sums.add([(key, value)])
        except BadInput as error:
            self._claims.close()
            raise BadInput(f"{error}; to begin anew, delete {self.partial}") from None
        except (OSError, lmdb.Error) as error:
            self._claims.close()
            raise self._cannot_write(error) from None
        return self

    def put(self, key: bytes, value: bytes) -> None:
        """Store one record; a later value of the same key replaces an earlier one."""
        if not 0 < len(key) <= MAX_KEY_BYTES:
            raise BadInput(
                f"{self.folder}: key {bytes(key)!r} has {len(key)} bytes; LMDB keys have 1 to {MAX_KEY_BYTES}, "
                "use a shorter name"
            )
        self._batch.append((key, value))
        self._batch_bytes += len(value)
        if len(self._batch) >= self.commit_every or self._batch_bytes >= _BATCH_BYTES:
            self._commit()

    def write_file(self, name: str, text: str) -> None:
        """Put another file, such as a table in JSON, beside the LMDB."""
        try:
            with atomic_file(self.partial / name) as partial:
                partial.write_text(text, encoding="utf-8")
        except (OSError, BadInput) as error:
            raise self._cannot_write(error) from None

    def write_checksums(self) -> RecordSums:
        """Commit what was put, and write the checksums of all records beside it: those."""
        self._commit()
        try:
            return self._sums.write(self.partial, self._env)
        except BadInput as error:
            raise self._cannot_write(error) from None

    def _commit(self) -> None:
        while self._batch:
            digest = None if self._digest is None else self._digest.copy()
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in self._batch:
                        if digest is not None:
                            old = txn.get(key)
                            if old is not None:
                                digest.remove(key, old)
                            digest.add(key, value)
                        txn.put(key, value)
            except lmdb.MapFullError:
                self._map_size *= 2
                self._env.set_mapsize(self._map_size)
                continue
            except (OSError, lmdb.Error) as error:
                raise self._cannot_write(error) from None
            self._sums.add(self._batch)
            self._batch, self._batch_bytes, self._digest = [], 0, digest

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._env.close()
            if not self.keep:
                shutil.rmtree(self.partial, ignore_errors=True)
            self._claims.close()

    def _finish(self) -> None:
        """Write what is left and rename; a subclass adds its last records before."""
        self.write_checksums()
        old = self._replaced
        try:
            self._env.sync(True)
            self._env.close()
            if self._digest is not None:
                remember_digest(self.partial, self._digest)
            _remove(old)
            if not self.folder.is_symlink() and exchange(self.partial, self.folder):
                old = self.partial
            else:
                with ctrl_c_held():
                    if self.folder.exists():
                        self.folder.rename(old)
                    self.partial.rename(self.folder)
            _remove(old)
        except (OSError, lmdb.Error) as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: Exception) -> CannotWrite:
        return CannotWrite(
            f"{self.folder}: cannot write the database ({error}); free disk space or choose another folder"
        )


def _remove(folder: Path) -> None:
    """Delete a folder, as far as that can be done; of a link to one the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
