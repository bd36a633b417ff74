"""Two processes on one output: the second is refused, and told which the first is."""

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import BadInput
from data.storage import locks
from data.storage.lmdb_writer import LmdbWriter
from data.storage.locks import claim_output, only_writer

ROOT = Path(__file__).resolve().parents[3]
HOLD = "import sys; sys.path.insert(0, {root!r}); from data.storage.locks import {name}; {statement}; print('held', flush=True); sys.stdin.read()"


def holder(statement: str, name: str) -> subprocess.Popen:
    """A process that holds a lock until it is killed or its input ends."""
    words = [sys.executable, "-c", HOLD.format(root=str(ROOT), name=name, statement=statement)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("name", ["claim_output", "only_writer"])
@pytest.mark.parametrize("ending", ["end", "kill"])
def test_the_second_process_is_refused_until_the_first_is_gone(tmp_path, name, ending):
    statement = f"claim_output({str(tmp_path / 'new/out')!r})" if name == "claim_output" else (
        f"held = only_writer({str(tmp_path / 'new/out')!r}); held.__enter__()"
    )  # fmt: skip
    with holder(statement, name) as process:
        (tmp_path / "link").symlink_to(tmp_path / "new")
        said = rf"out: process {process.pid} on {re.escape(platform.node())} .*is writing there"
        for path in ("new/out", "new/out/", "new/../new/out", "link/out"):
            with pytest.raises(BadInput, match=said), only_writer(tmp_path / path):
                pass
        with only_writer(tmp_path / "new/other"):  # another output is nobody's
            pass
        if ending == "kill":
            process.send_signal(signal.SIGKILL)
        else:
            process.stdin.close()
        process.wait()
        with only_writer(tmp_path / "new/out"):
            pass
    assert ending == "kill" or not (tmp_path / "new").exists()  # nothing is left of a command that wrote nothing
    assert not list(tmp_path.glob("new/*"))


def test_a_claim_may_be_repeated_and_a_block_may_not(tmp_path):
    claim_output(tmp_path / "out")
    claim_output(str(tmp_path / "out") + "/")
    with only_writer(tmp_path / "block"):
        with pytest.raises(BadInput, match=f"process {os.getpid()} on"), only_writer(tmp_path / "block"):
            pass
    with only_writer(tmp_path / "block"), only_writer(tmp_path / ".block.partial"):
        pass
    locks._unlock_all()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_still_names_a_killed_process_names_the_holder(tmp_path, monkeypatch):
    """Between getting a lock and saying who has it, the file says what it said before."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    with only_writer(tmp_path / "out"):
        (tmp_path / ".out.lock").write_text(f"process {gone.pid} on {platform.node()} (x.py)")
        late = [f"process {os.getpid()} on {platform.node()} (y.py)"]
        monkeypatch.setattr(locks.time, "sleep", lambda _: (tmp_path / ".out.lock").write_text(late.pop()))
        with pytest.raises(BadInput, match=f"out: process {os.getpid()} on .* is writing there"), only_writer(tmp_path / "out"):
            pass
        assert not late


def test_a_folder_that_another_command_takes_away_is_made_again(tmp_path, monkeypatch):
    made = []

    def taken_away(path, *mode, **more):
        if not made:
            made.append(path)
            Path(path).parent.rmdir()
        return open(path, *mode, **more)

    monkeypatch.setattr(locks, "open", taken_away, raising=False)
    with only_writer(tmp_path / "new" / "out"):
        assert (tmp_path / "new" / ".out.lock").exists() and made


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "others").write_text("kept")
    (tmp_path / ".out.lock").symlink_to("others")
    with pytest.raises(BadInput, match=r"\.out\.lock: is the lock of .*out, and a link"), only_writer(tmp_path / "out"):
        pass
    assert (tmp_path / "others").read_text() == "kept"


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path):
    reading, writing = os.pipe()
    with only_writer(tmp_path / "out"):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    with only_writer(tmp_path / "out"):  # while the child lives
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.close(writing)
        os.waitpid(child, 0)
    os.close(reading)


def test_where_no_lock_can_be_had_work_goes_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with only_writer(tmp_path / "file" / "out"):  # no folder: who writes there says so
        pass

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with only_writer(tmp_path / "out"), only_writer(tmp_path / "out"):
        pass


def test_two_writers_of_one_database_do_not_meet(tmp_path):
    with LmdbWriter(tmp_path / "db") as writer:
        writer.put(b"a", b"1")
        with pytest.raises(BadInput, match=f"process {os.getpid()} on .* is writing there"), LmdbWriter(tmp_path / "db"):
            pass
        writer.put(b"b", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["db"]
