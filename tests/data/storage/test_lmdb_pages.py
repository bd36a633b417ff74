"""Damaged LMDB files: each is refused in one line, or read and written without harm. LMDB alone ends the process on many of them."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.storage import lmdb_env
from data.storage.lmdb_env import close_env, is_whole, reader
from data.storage.lmdb_pages import check_pages

PSIZE = os.sysconf("SC_PAGESIZE")
SIZES = (0, 1, 7, 50, 400, 1500, 2100, 5000, 30_000)  # of values: short ones, and long ones that take pages of their own


def database(folder: Path, records: int = 600, seed: int = 0, rounds: int = 3) -> Path:
    """A tree of three levels that was written, overwritten and thinned out in several transactions, so that it has free pages."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 28, lock=False, sync=False) as env:
        for _ in range(rounds):
            with env.begin(write=True) as txn:
                for number in draw.sample(range(records), records // 2):
                    key = f"{'a long name of a picture in a folder ' * (number % 5)}{number:07d}".encode()
                    if draw.random() < 0.3:
                        txn.delete(key)
                    else:
                        txn.put(key, draw.randbytes(draw.choice(SIZES[: 6 + 3 * (number % 9 == 0)])))
        with env.begin(write=True) as txn:
            txn.put(b"at the end", bytes(9000))  # else LMDB may leave the file short
        os.truncate(folder / "data.mdb", lmdb_env.promised_bytes(env))
    return folder


def mutated(content: bytearray, kind: str, draw: random.Random) -> None:
    """Change a file in a place that LMDB trusts, or anywhere."""
    pages = len(content) // PSIZE
    trees = [n for n in range(pages) if content[n * PSIZE + 10] in (1, 2)]  # branch and leaf pages, free ones among them
    page = draw.choice([draw.choice(trees), draw.randrange(2), draw.randrange(pages)])
    if kind == "bits":
        for _ in range(draw.choice((1, 1, 8))):
            near = draw.choice((24, 200, PSIZE))  # of the page's header, its entries, or anywhere in it
            content[page * PSIZE + draw.randrange(near)] ^= 1 << draw.randrange(8)
    elif kind == "words":
        at = page * PSIZE + 2 * draw.randrange(draw.choice((12, 60)))
        content[at : at + 2] = draw.choice((0, 1, 0xFFFF, 0x7FFF, 15, 16, 17, PSIZE, draw.randrange(1 << 16))).to_bytes(2, "little")
    elif kind == "zeroed":
        content[page * PSIZE : (page + 1) * PSIZE] = bytes(PSIZE)
    elif kind == "swapped":
        other = draw.choice(trees)
        here, there = slice(page * PSIZE, (page + 1) * PSIZE), slice(other * PSIZE, (other + 1) * PSIZE)
        content[here], content[there] = content[there], content[here]
    else:
        del content[draw.randrange(len(content)) :]


READ = """
import lmdb, random, shutil, sys
from pathlib import Path
from data.errors import BadInput
from data.storage import lmdb_env
from tests.data.storage.test_lmdb_pages import mutated

whole, scratch, kind, first, last = bytes(Path(sys.argv[1], "data.mdb").read_bytes()), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])
refused = written = 0
for seed in range(first, last):
    print("case", kind, seed, flush=True)
    draw = random.Random(seed)
    content = bytearray(whole)
    mutated(content, kind, draw)
    folder = scratch / f"{kind}-{seed}"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(content)
    try:
        txn = lmdb_env.reader(folder)
        keys = []
        for key, value in txn.cursor():
            keys.append(bytes(key))
            sum(value[::512]), bytes(value[-1:])
        for key in keys[::7]:
            txn.get(key)
        list(txn.cursor().iterprev(values=False))
    except (BadInput, lmdb.Error):
        refused += 1
        keys = [b"x"]
    lmdb_env.close_env(folder)
    if lmdb_env.is_whole(folder):
        written += 1
        try:
            with lmdb.open(str(folder), map_size=1 << 28, lock=False, sync=False) as env:
                for _ in range(3):
                    with env.begin(write=True) as txn:
                        for key in draw.sample(keys, min(60, len(keys))):
                            txn.delete(key) if draw.random() < 0.5 else txn.put(key, bytes(draw.choice((9, 3000, 20_000))))
        except lmdb.Error:
            pass
    shutil.rmtree(folder)
print("refused", refused, "written", written)
"""


@pytest.mark.parametrize("kind", ["bits", "words", "zeroed", "swapped", "cut"])
def test_no_damage_ends_the_process_that_reads_or_writes(tmp_path, kind):
    database(tmp_path / "db")
    first = int(os.environ.get("LMDB_SEED", 0))
    words = [sys.executable, "-c", READ, tmp_path / "db", tmp_path, kind, str(first), str(first + int(os.environ.get("LMDB_CASES", 60)))]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr[-2000:]
    assert int(done.stdout.split()[-3]) > 5, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("seed", range(8))
def test_what_lmdb_wrote_is_never_refused(tmp_path, seed):
    folder = database(tmp_path / "db", (3, 40, 700, 6000)[seed % 4], seed, rounds=1 + seed)
    with lmdb.open(str(folder), readonly=True, lock=False) as env:
        stat = env.stat()
    check_pages(folder / "data.mdb", for_writing=True)
    assert check_pages(folder / "data.mdb") == stat["branch_pages"] + stat["leaf_pages"]


def test_empty_and_compacted_databases(tmp_path):
    with lmdb.open(str(tmp_path / "empty"), lock=False):
        pass
    assert check_pages(tmp_path / "empty/data.mdb", for_writing=True) == 0
    with lmdb.open(str(database(tmp_path / "db")), readonly=True, lock=False) as env:
        (tmp_path / "copy").mkdir()
        env.copy(str(tmp_path / "copy"), compact=True)
    check_pages(tmp_path / "copy/data.mdb", for_writing=True)


def change(path: Path, at: int, value: int, size: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(value.to_bytes(size, "little"))


def root_of(path: Path) -> tuple[int, bytes]:
    """The root page of a file's records, and the page that it was read from."""
    content = path.read_bytes()
    metas = [np.frombuffer(content, "<u8", 19, page * PSIZE) for page in (0, 1)]
    root = int(max(metas, key=lambda meta: meta[18])[16])
    return root, content[root * PSIZE : (root + 1) * PSIZE]


def test_messages_name_the_file_and_the_page(tmp_path):
    path = database(tmp_path / "db") / "data.mdb"
    whole, (root, page) = path.read_bytes(), root_of(path)
    entry = root * PSIZE + int.from_bytes(page[16:18], "little")
    for at, value, size, message in [
        (root * PSIZE + 10, 2, 2, f"damaged, page {root} has a damaged header"),
        (root * PSIZE + 12, 17, 2, f"damaged, page {root} has a damaged header"),
        (root * PSIZE + 16, 0xFFFF, 2, f"damaged, page {root} has a damaged entry"),
        (entry, 0xFFFF, 2, rf"damaged, a branch page \({root} or after\) names page 65535 of"),
        (entry, root, 2, rf"damaged, a branch page \({root} or after\) names a page that is named already"),
        (entry + 6, 5000, 2, f"damaged, page {root} has an entry that is longer than the page"),
        (16, 0, 4, "cannot be opened as LMDB"),
        (PSIZE + 16, 0, 4, "cannot be opened as LMDB"),
        (24 + 16, 0, 4, "cannot be opened as LMDB"),
    ]:
        path.write_bytes(whole)
        change(path, at, value, size)
        with pytest.raises(BadInput, match=rf"data\.mdb: {message}") as caught:
            reader(tmp_path / "db")
        assert "copy or build the database again" in str(caught.value)


def test_a_writer_refuses_what_a_reader_need_not_follow(tmp_path):
    path = database(tmp_path / "db") / "data.mdb"
    content = path.read_bytes()
    long = next(n for n in range(2, len(content) // PSIZE) if content[n * PSIZE + 10] == 4)  # a long value's first page
    assert is_whole(tmp_path / "db")
    used = [n for n in range(2, len(content) // PSIZE) if content[n * PSIZE + 10] == 4]
    for long in used:
        change(path, long * PSIZE + 12, 1 << 31, 4)  # how many pages it takes
    check_pages(path)
    with pytest.raises(BadInput, match="has a damaged header"):
        check_pages(path, for_writing=True)
    assert not is_whole(tmp_path / "db")


def test_a_large_file_is_looked_at_once_and_again_when_it_was_changed_behind_its_times(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_env, "_MANY_PAGES", 10)
    monkeypatch.setattr(lmdb_env, "_LARGE", 0)
    folder = database(tmp_path / "db")
    path, looked_at = folder / "data.mdb", []
    monkeypatch.setattr(lmdb_env, "check_pages", lambda *words: (looked_at.append(words), check_pages(*words))[1])
    for _ in range(2):  # as two processes
        assert reader(folder).stat()["entries"]
        close_env(folder)
        lmdb_env._checked.clear()
    assert len(looked_at) == 1
    before, root = path.stat(), root_of(path)[0]
    change(path, root * PSIZE + 10, 2, 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BadInput, match="damaged"):
        reader(folder)
    shutil.copytree(database(tmp_path / "other", seed=1), tmp_path / "copy")  # another file has not been looked at
    reader(tmp_path / "copy")
    assert len(looked_at) == 3


def test_a_database_that_is_being_written_to_is_not_taken_for_damaged(tmp_path):
    env = lmdb.open(str(tmp_path / "db"), map_size=1 << 26, sync=False)
    rng, done, looked = np.random.default_rng(0), threading.Event(), 0

    def write():
        while not done.is_set():
            with env.begin(write=True) as txn:
                for key in rng.integers(0, 3000, 40).tolist():
                    txn.put(f"key {key}".encode(), bytes(int(rng.integers(1, 6000))))
            time.sleep(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until = time.monotonic() + 2
        while looked < 20 or time.monotonic() < until:
            check_pages(tmp_path / "db" / "data.mdb")
            looked += 1
    finally:
        done.set()
        writer.join()
        env.close()
