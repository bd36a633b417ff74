"""The campaign itself: it tells the outcomes apart, a case is the same again, and every way of damage leaves another file."""

import json
import multiprocessing
import os
import random
import shutil
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest

from tests.campaign import hostile, rooms
from tests.campaign.canonical import canonical_outputs
from tests.campaign.children import Child, Command
from tests.campaign.damage import damage_file
from tests.campaign.outcomes import BAD, GOOD, Result, markdown
from tests.campaign.rooms import Clean, judge
from tests.campaign.run import Campaign, shared_out
from tests.campaign.soak import first_bytes
from tests.campaign.targets import FILES

BODIES = {
    "identical": "print('x'); open('out', 'w').write('right')",
    "silent": "open('out', 'w').write('wrong')",
    "noticed": "import sys; print('left out', file=sys.stderr); open('out', 'w').write('wrong')",
    "refused": "import sys; print('error: bad', file=sys.stderr); sys.exit(2)",
    "untidy": "import sys; print('error: bad\\nand more', file=sys.stderr); sys.exit(2)",
    "traceback": "raise ValueError('x')",
    "crash": "import os; os.kill(os.getpid(), 11)",
    "hang": "import time; time.sleep(100)",
    "memory": "x = bytearray(1 << 29); x[::4096] = b'1' * len(x[::4096]); open('out', 'w').write('right')",
}


@pytest.fixture(scope="module")
def clean_process():
    """A process that has run nothing else: what is forked from one with threads in gRPC, as other tests leave it, may crash."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def outcome_of(body: str, base: Path, has_peak: bool) -> str:
    """What a command that is a script of this text is judged as; ``has_peak``: it may take 512 MiB less than it does."""
    rooms.IDLE = 1.5
    room = Campaign(0, 1, base).rooms[0]
    script = room.folder.parent / "script.py"
    script.write_text(body)

    def case():
        room.fill([])
        ended = room.run([str(script)], 20)
        (room.folder / "expected").mkdir()
        (room.folder / "expected" / "out").write_text("right")
        peak = ended.peak - (1 << 29) if has_peak else 1 << 40
        clean = Clean(canonical_outputs(room.folder / "expected", ["out"]), [], 1.0, peak)
        return judge(ended, clean, room, ["out"], False, False)

    return Child(case).result()[0]


@pytest.mark.parametrize("expected", BODIES)
def test_outcomes_are_told_apart(clean_process, expected):
    base = Path(tempfile.mkdtemp(prefix="campaign-test-"))  # and not tmp_path, which is closed to nobody
    assert clean_process.submit(outcome_of, BODIES[expected], base, expected == "memory").result() == expected
    shutil.rmtree(base)


def told_of_killed(base: Path) -> tuple[str, bool]:
    """What is told of a case whose process is killed while its command runs, and whether that one ends with it."""
    (base / "script.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    pid = base / "pid"

    def killed():
        Command([str(base / "script.py")], base, base / "log")
        while not (pid.is_file() and pid.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), 9)

    case = Child(killed)
    with pytest.raises(RuntimeError) as told:
        case.result()
    until = time.monotonic() + 240
    while is_alive(pid.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    return str(told.value), is_alive(pid.read_text())


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_case_whose_process_is_killed_does_not_stop_the_campaign(clean_process, tmp_path):
    assert clean_process.submit(told_of_killed, tmp_path).result(600) == ("the case's own process ended with -9", False)


def test_a_hole_of_any_size_is_not_read_whole(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    os.truncate(tmp_path / "a.jpg", 1 << 38)
    assert first_bytes(tmp_path / "a.jpg", 1000) == b"x" + bytes(999)


def files_of_each_kind(folder: Path) -> list[Path]:
    folder.mkdir()
    np.savez(folder / "a.npz", x=np.arange(12.0).reshape(3, 4), y=np.array(["a", "b"]))
    np.save(folder / "b.npy", np.arange(12).reshape(3, 4))
    (folder / "c.json").write_text(json.dumps({"a": 1, "b": [1, 2, {"c": "x"}]}))
    (folder / "d.jsonl").write_text('{"a": 1}\n{"b": [1]}\n')
    (folder / "e.yaml").write_text("a: 1\nb: [1, 2]\n")
    (folder / "f.txt").write_text("a\tb\nc d\n")
    (folder / "j.jpg").write_bytes(random.Random(0).randbytes(3000))
    with lmdb.open(str(folder), map_size=1 << 20, lock=False) as env, env.begin(write=True) as txn:
        for n in range(40):
            txn.put(b"%d" % n, b"v" * 200 + b"%d" % n)
    with tarfile.open(folder / "g.tar", "w") as archive:
        archive.add(folder / "f.txt", "f.txt")
    shutil.copy(folder / "a.npz", folder / "i.pt")
    return sorted(folder.iterdir())


def test_damage_is_a_function_of_the_seed_and_changes_the_file(tmp_path):
    said = []
    for number, path in enumerate(files_of_each_kind(tmp_path / "whole") * 6):
        before, again = path.read_bytes(), []
        for _ in range(2):
            shutil.copytree(path.parent, tmp_path / "box")
            copy = tmp_path / "box" / path.name
            again.append(damage_file(copy, random.Random(number)))
            regular = copy.is_file() and not copy.is_symlink() and copy.stat().st_size < 1 << 30
            again.append(copy.read_bytes() if regular and copy.stat().st_mode & 0o400 else None)
            shutil.rmtree(tmp_path / "box")
        assert again[0] == again[2] and (again[1] == again[3] or path.suffix in (".npz", ".pt", ".mdb", ".tar"))  # zips hold times
        said.append(again[1] != before)
    assert sum(said) > 0.85 * len(said)  # a byte may be set to what it was


def test_hostile_files_do_harm_to_who_trusts_them(tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    hostile.program(tmp_path / "x.pkl")
    pickle.loads((tmp_path / "x.pkl").read_bytes())
    assert (tmp_path / hostile.ESCAPED).exists()
    hostile.npz_bomb(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").stat().st_size < 8 << 20
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["scores"].nbytes == hostile.BOMB >> 3


def test_every_target_has_its_share_and_the_table_says_what_became_of_it():
    order = shared_out(FILES, 300)
    assert {target.name for target, _ in order} == {target.name for target in FILES}
    assert len({(target.name, number) for target, number in order}) == 300
    assert len({target.name for target in FILES}) == len(FILES)
    found = [Result("x", n, outcome, "done") for n, outcome in enumerate([*GOOD, *BAD])]
    table = markdown(found, 3, {})
    assert f"{len(BAD)} findings" in table and "--target 'x' --seed 3 --case" in table


def test_what_an_output_says_of_unread_bytes_of_the_input_is_not_compared(tmp_path):
    """An index knows the digest of the whole database, of which it takes a part; an inspection says how long the file is."""
    outputs = []
    for name, data, size, count in (("whole", "d0", "1 MB", 3), ("unread", "d1", "2 MB", 3), ("other", "d0", "1 MB", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({"databases": [{"kind": "x", "facts": {"size": size, "count": count}}]}))
        with lmdb.open(str(tmp_path / name), lock=False) as env, env.begin(write=True) as txn:
            txn.put(b"header", json.dumps({"data": data, "count": count}).encode())
        found = canonical_outputs(tmp_path / name, ["report.json", "data.mdb"])
        assert len(found) == 2 and not any(each.startswith("unreadable") for each in found.values())
        outputs.append(found)
    assert outputs[0] == outputs[1] and not set(outputs[0].values()) & set(outputs[2].values())


def test_what_went_on_behind_a_kill_is_as_what_was_not_disturbed(tmp_path):
    """Its report tells how much was there, the sums of its records how often they were committed."""
    stores = {"whole": ({"written": 9}, 3, "xyz"), "again": ({"written": 9, "from_an_earlier_run": 9}, 4, "xyz"), "other": ({"written": 9}, 3, "xyy")}
    outputs = []
    for name, (report, transaction, records) in stores.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({"from_an_earlier_run": 0} | report))
        np.savez(tmp_path / name / "checksums.npz", transaction=transaction, digest=[transaction], sums=np.frombuffer(records.encode(), np.uint8))
        outputs.append(list(canonical_outputs(tmp_path / name, ["report.json", "checksums.npz"]).values()))
    assert outputs[0] == outputs[1] != outputs[2]
