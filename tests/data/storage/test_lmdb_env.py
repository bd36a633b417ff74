"""Opening and writing LMDB: damage, forks, replacement, full disks."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from data.errors import BadInput
from data.storage import lmdb_writer
from data.storage.atomic import exchange
from data.storage.lmdb_env import Records, close_env, open_env, reader
from data.storage.lmdb_writer import LmdbWriter

RECORDS = {b"%03d" % i: bytes([i]) * 6000 for i in range(100)}


def write(folder, records, **options):
    with LmdbWriter(folder, **options) as writer:
        for key, value in records.items():
            writer.put(key, value)
    return folder


def stored(folder):
    return {bytes(key): bytes(value) for key, value in reader(folder).cursor()}


def test_round_trip_and_views(tmp_path):
    folder = write(tmp_path / "db", RECORDS)
    assert stored(folder) == RECORDS
    view = reader(folder).get(b"007")
    assert isinstance(view, memoryview) and view.readonly
    assert sorted(os.listdir(folder)) == ["checksums.npz", "data.mdb", "digest.json"]  # no lock file: readers never lock
    assert os.listdir(tmp_path) == ["db"]


def test_map_grows(tmp_path):
    records = {**RECORDS, b"huge": b"x" * 3_000_000}
    assert stored(write(tmp_path / "db", records, map_size=1 << 16, commit_every=7)) == records


def test_nothing_appears_before_the_end_or_after_an_exception(tmp_path):
    folder = write(tmp_path / "db", {b"old": b"1"})
    with pytest.raises(RuntimeError):
        with LmdbWriter(folder, commit_every=1) as writer:
            writer.put(b"new", b"2")
            assert stored(folder) == {b"old": b"1"}
            raise RuntimeError
    assert stored(folder) == {b"old": b"1"}
    assert os.listdir(tmp_path) == ["db"]


def test_leftover_of_a_killed_run_is_replaced(tmp_path):
    write(tmp_path / "db.partial", {b"half": b"1"})
    assert stored(write(tmp_path / "db", {b"a": b"1"})) == {b"a": b"1"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_database_that_is_replaced_is_there_all_the_time(tmp_path, monkeypatch, can_exchange):
    folder, absent, own = tmp_path / "db", [], Path.rename
    write(folder, {b"old": b"1"})
    if can_exchange and not exchange(folder, folder):
        pytest.skip("this file system cannot exchange two names")

    def rename(self, target):
        own(self, target)
        absent.append(not (folder / "data.mdb").exists())

    monkeypatch.setattr(Path, "rename", rename)
    if not can_exchange:
        monkeypatch.setattr(lmdb_writer, "exchange", lambda one, other: False)
    write(folder, {b"new": b"2"})
    assert absent == ([] if can_exchange else [True, False])
    assert stored(folder) == {b"new": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["db"]


def test_a_link_to_a_database_is_replaced_and_what_it_leads_to_stays(tmp_path):
    write(tmp_path / "elsewhere", {b"old": b"1"})
    (tmp_path / "db").symlink_to(tmp_path / "elsewhere")
    for value in (b"2", b"3"):
        write(tmp_path / "db", {b"new": value})
        assert stored(tmp_path / "db") == {b"new": value} and sorted(os.listdir(tmp_path)) == ["db", "elsewhere"]
    (tmp_path / "db.partial").symlink_to(tmp_path / "elsewhere")  # left by whatever
    write(tmp_path / "db", {b"new": b"4"})
    assert stored(tmp_path / "elsewhere") == {b"old": b"1"} and sorted(os.listdir(tmp_path)) == ["db", "elsewhere"]


def test_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"picture")
    with pytest.raises(BadInput, match=r"photos: exists and is no LMDB database"):
        write(tmp_path / "photos", RECORDS)
    assert os.listdir(tmp_path / "photos") == ["1.jpg"]


def test_key_length(tmp_path):
    write(tmp_path / "db", {b"k" * 511: b""})
    for key in (b"k" * 512, b""):
        with pytest.raises(BadInput, match=f"db2: key .* has {len(key)} bytes"):
            write(tmp_path / "db2", {key: b""})


def test_full_disk_is_one_line(tmp_path):
    # a limit on file size makes writes fail in the kernel as on a full disk, without needing one
    code = f"""
import resource
from data.storage.lmdb_writer import LmdbWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with LmdbWriter({str(tmp_path / "db")!r}) as writer:
    for i in range(1000):
        writer.put(b"%d" % i, bytes(9000))
"""
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("data.errors.CannotWrite:") and str(tmp_path / "db") in last and "free disk space" in last
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 100, 4096, 5000, 8192, 100_000, -4096, -1])
def test_truncated(tmp_path, size):
    path = write(tmp_path / "db", RECORDS) / "data.mdb"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    for _ in range(2):  # the failed opening is not kept
        with pytest.raises(BadInput, match=r"db.data\.mdb: "):
            open_env(tmp_path / "db")


def test_truncated_later_and_mended(tmp_path):
    folder = write(tmp_path / "db", RECORDS)
    assert stored(folder) == RECORDS
    whole = (folder / "data.mdb").read_bytes()
    os.truncate(folder / "data.mdb", len(whole) // 2)
    with pytest.raises(BadInput, match=f"truncated, {len(whole) // 2} bytes where its header promises {len(whole)}"):
        reader(folder)
    (folder / "data.mdb").write_bytes(whole)
    assert stored(folder) == RECORDS


def test_whole_file_that_lmdb_left_short_is_refused_and_mended_as_told(tmp_path):
    folder = tmp_path / "db"
    with lmdb.open(str(folder), lock=False) as env:
        for steps in [
            [(b"a", 9000)],
            [(b"a", 100)],
            [(b"a", 100), (b"a", 9000)],
            [(b"k", 5), (b"a", 50_000), (b"a", 0)],
        ]:
            with env.begin(write=True) as txn:
                for key, size in steps:
                    txn.put(key, bytes(size)) if size else txn.delete(key)
    with pytest.raises(BadInput, match="truncated") as caught:
        open_env(folder)
    command = str(caught.value).split("`")[1].replace("python", sys.executable, 1).replace("NEW", str(tmp_path / "new"))
    subprocess.run(command.split(), check=True, capture_output=True)
    assert stored(tmp_path / "new") == {b"k": bytes(5)}


def test_missing_or_not_lmdb(tmp_path):
    with pytest.raises(BadInput, match="absent: not an LMDB database"):
        open_env(tmp_path / "absent")
    (tmp_path / "data.mdb").write_bytes(b"no database" * 10_000)
    with pytest.raises(BadInput, match=r"data\.mdb: cannot be opened as LMDB"):
        open_env(tmp_path)


def test_two_names_are_one_environment(tmp_path, monkeypatch):
    folder = write(tmp_path / "db", RECORDS)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert open_env(folder) is open_env("db") is open_env("link") is open_env(str(tmp_path / "link" / ".." / "db"))


def test_replaced_database_is_seen_and_old_views_stay(tmp_path):
    folder = write(tmp_path / "db", RECORDS)
    old_env, view = open_env(folder), reader(folder).get(b"005")
    write(folder, {b"005": b"new"})
    assert stored(folder) == {b"005": b"new"}
    assert bytes(view) == RECORDS[b"005"]
    assert open_env(folder) is not old_env

    write(tmp_path / "other", {b"moved": b"1"})
    shutil.rmtree(folder)
    (tmp_path / "other").rename(folder)
    assert stored(folder) == {b"moved": b"1"}


def test_database_changed_in_place_is_seen(tmp_path):
    folder = write(tmp_path / "db", RECORDS)
    assert len(stored(folder)) == 100
    writer = (
        "import lmdb, sys; e = lmdb.open(sys.argv[1], lock=False)\nwith e.begin(write=True) as t: t.put(b'z', b'1')"
    )
    subprocess.run([sys.executable, "-c", writer, folder], check=True)
    assert stored(folder) == {**RECORDS, b"z": b"1"}

    close_env(folder)  # py-lmdb refuses a second opening in one process
    with lmdb.open(str(folder), lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"zz", b"2")
    assert stored(folder)[b"zz"] == b"2"


def _check_in_child(folder, env_id, queue):
    ok = stored(folder) == RECORDS and (env_id is None or id(open_env(folder)) == env_id)
    write(f"{folder}-{os.getpid()}", {b"child": b"1"})  # a child opens others of its own
    queue.put(ok and stored(f"{folder}-{os.getpid()}") == {b"child": b"1"})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_parent_has_open(tmp_path, method):
    folder = write(tmp_path / "db", RECORDS)
    txn = reader(folder)
    view = txn.get(b"009")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    env_id = id(open_env(folder)) if method == "fork" else None  # a fork goes on with what it inherits
    workers = [context.Process(target=_check_in_child, args=(folder, env_id, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=240) for _ in workers] == [True, True]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert bytes(view) == RECORDS[b"009"] and stored(folder) == RECORDS  # the parent is untouched


# ---- records, which every process opens itself -----------------------------------------------------------------------


def mapped(folder):
    """How often this process has the database mapped."""
    return Path("/proc/self/maps").read_text().count(f"{os.path.realpath(folder)}/data.mdb")


def _read_in_child(records, queue):
    before = mapped(records.folder)
    content = {bytes(key): bytes(value) for key, value in records.txn.cursor()}
    again = Records(records.folder)
    queue.put((before, mapped(records.folder), content == RECORDS, again.txn is records.txn))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_their_own(tmp_path, method):
    folder = write(tmp_path / "db", RECORDS)
    records = Records(folder)
    txn = records.txn
    view = txn.get(b"009")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=_read_in_child, args=(records, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=240) for _ in workers] == [(0, 1, True, True)] * 2  # nothing is left of the parent's map
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert records.txn is txn and bytes(view) == RECORDS[b"009"] and mapped(folder) == 1


def in_fork(work):
    """Whether `work()` is true in a forked child."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(not work())
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def test_views_that_somebody_holds_survive_a_fork(tmp_path):
    folder, other = write(tmp_path / "db", RECORDS), write(tmp_path / "other", RECORDS)
    records, elsewhere = Records(folder), Records(other)
    view = reader(folder).get(b"005")

    def work():
        return (
            (mapped(folder), mapped(other)) == (1, 0)
            and bytes(view) == bytes(records.txn.get(b"005")) == bytes(elsewhere.txn.get(b"005")) == RECORDS[b"005"]
        )

    assert in_fork(work) and in_fork(lambda: in_fork(work))
    subprocess.run(
        [sys.executable, "-c", "import lmdb, sys; e = lmdb.open(sys.argv[1], lock=False)\n"
         "with e.begin(write=True) as t: t.put(b'z', b'1')", folder], check=True,
    )  # fmt: skip
    assert bytes(Records(folder).txn.get(b"z")) == b"1" and records.txn.get(b"z") is None  # an older snapshot
    assert in_fork(lambda: bytes(view) == RECORDS[b"005"] and records.txn.get(b"z") is None)


def test_records_that_hand_out_views_survive_a_fork_and_a_replacement(tmp_path):
    folder = write(tmp_path / "db", RECORDS)
    records = Records(folder, keep_views=True)
    view = records.txn.get(b"005")
    again = pickle.loads(pickle.dumps(records))
    write(folder, {b"005": b"new"})
    assert bytes(Records(folder, keep_views=True).txn.get(b"005")) == b"new"  # opened anew, so that none of its views is of the old
    assert in_fork(lambda: bytes(view) == bytes(records.txn.get(b"005")) == RECORDS[b"005"])
    with pytest.raises(BadInput, match="replaced while it was being read"):
        _ = again.txn


def test_child_after_a_change_in_place(tmp_path):
    folder = write(tmp_path / "db", RECORDS)
    old = Records(folder)
    writer = "import lmdb, sys; e = lmdb.open(sys.argv[1], lock=False)\nwith e.begin(write=True) as t: t.put(b'z', b'1')"
    subprocess.run([sys.executable, "-c", writer, folder], check=True)
    new = Records(folder)
    assert old.txn.get(b"z") is None and bytes(new.txn.get(b"z")) == b"1"
    assert in_fork(lambda: mapped(folder) == 0 and bytes(old.txn.get(b"z")) == bytes(new.txn.get(b"z")) == b"1")
    close_env(folder)
    assert mapped(folder) == 0 and bytes(old.txn.get(b"z")) == b"1"


def test_a_worker_never_reads_another_database_than_its_parent(tmp_path):
    folder = write(tmp_path / "db", RECORDS)
    records = Records(folder)
    write(folder, {b"005": b"new"})

    def refused():
        with pytest.raises(BadInput, match="db: the database was replaced while it was being read; start again"):
            records.txn.get(b"005")
        return True

    assert in_fork(refused) and bytes(records.txn.get(b"005")) == RECORDS[b"005"]
    assert bytes(Records(folder).txn.get(b"005")) == b"new"  # seen here: the old map is kept for who reads it
    assert in_fork(lambda: bytes(records.txn.get(b"005")) == RECORDS[b"005"])
