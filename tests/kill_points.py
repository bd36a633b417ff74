"""A command that is killed before each of its changes of files in turn, and is then given again.

    assert_goes_on(lambda: build_captions.main(options), tmp_path / "out")
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate", "shutil.rmtree", "shutil.move")
NOT_COMPARED = {"time", "size", "seconds", "photos_per_second", "from_an_earlier_run", "commits", "mtime_ns", "inode"}


def run_killed(main: Callable[[], None], root: Path, number: int | None) -> bool:
    """Run ``main`` in a child that is killed (SIGKILL) before its ``number``-th change of a file at or beside ``root``; None: in one
    that is not → whether it was killed; if not, it has come to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if number is not None:
                sys.addaudithook(_killer(str(root.parent), number))
            main()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"change {number}: {status}"
    return status != 0


def _killer(root: str, number: int) -> Callable[[str, tuple], None]:
    left = number

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event == "open":
            is_change = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)) if isinstance(arguments[2], int) else False
        else:
            is_change = event in CHANGES
        if is_change and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(root):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    return hook


def assert_goes_on(main: Callable[[], None], out: Path, before: Callable[[], None] = lambda: None, every: int = 1) -> int:
    """Kill ``main`` before each change in turn; the same command must end with what the uninterrupted one wrote → number of changes.

    Args:
        out: folder or file that the command writes
        before: makes what is there before it
        every: of the changes, so many-th are tried, for a command that takes long
    """

    def begin_anew() -> None:
        for path in out.parent.glob(f"*{out.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before()

    begin_anew()
    run_killed(main, out, None)
    whole, number = tree(out), 0
    assert whole
    while True:
        begin_anew()
        was_killed = run_killed(main, out, number)
        if was_killed:
            run_killed(main, out, None)
        now = tree(out)
        differing = {name: (now.get(name), whole.get(name)) for name in now | whole if now.get(name) != whole.get(name)}
        assert not differing, f"killed before change {number}: {str(differing)[:2000]}"
        if not was_killed:
            return number
        number += every


def tree(out: Path) -> dict[str, object]:
    """What a folder or file holds, without what differs between two runs of a command."""
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): _content(path) for path in files if path.suffix != ".lock"}


def _content(path: Path) -> object:
    if path.name == "data.mdb":
        with lmdb.open(str(path.parent), readonly=True, lock=False) as env, env.begin() as txn:
            records = dict(txn.cursor())
        return {key: _plain(json.loads(value)) if key == b"header" else value for key, value in records.items() if key != b"crc/header"}
    if path.name == "checksums.npz":  # it names the transaction of LMDB, which counts commits, and sums files that name folders
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays if name not in ("transaction", "digest", "files")}
    return _plain(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if name not in NOT_COMPARED}
    return value
