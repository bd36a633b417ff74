"""Write-then-rename: nobody ever sees half a file, whatever stops the writer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.errors import BadInput
from data.storage.atomic import atomic_file, atomic_folder, beside, exchange

ROOT = Path(__file__).parents[3]


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"  # its folders are made
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent and not path.exists()
    assert path.read_text() == "new" and os.listdir(path.parent) == ["x.json"]
    with atomic_file(str(path)) as partial:
        partial.write_text("newer")
        assert path.read_text() == "new"
    assert path.read_text() == "newer" and os.listdir(path.parent) == ["x.json"]


def test_a_folder_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "checkpoint"
    left_over = path.with_name(".checkpoint.partial")
    left_over.mkdir(parents=True)
    (left_over / "old").touch()  # of a run that was killed
    with atomic_folder(path) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "x").write_text("x")
        assert not path.exists()
        written = (partial / "inner" / "x").stat().st_ino
    assert (path / "inner" / "x").stat().st_ino == written  # renamed, not copied: all of it at once
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*")) == ["inner", "inner/x"]
    assert os.listdir(path.parent) == ["checkpoint"]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_leaves_the_old_one(tmp_path, error):
    file, folder = tmp_path / "x.json", tmp_path / "checkpoint"
    file.write_text("old")
    with pytest.raises(type(error)), atomic_file(file) as partial:
        partial.write_text("half")
        raise error
    with pytest.raises(type(error)), atomic_folder(folder) as partial:
        (partial / "x").write_text("half")
        raise error
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "others").write_text("kept")
    (tmp_path / ".x.json.partial").symlink_to("others")
    with atomic_file(tmp_path / "x.json") as partial:
        partial.write_text("new")
    assert [(tmp_path / name).read_text() for name in ("others", "x.json")] == ["kept", "new"] and len(os.listdir(tmp_path)) == 2
    assert not (tmp_path / "x.json").is_symlink()


def test_two_folders_take_each_others_place_and_where_one_is_absent_nothing_happens(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two names")
    assert [(tmp_path / name / "file").read_text() for name in "ab"] == ["b", "a"]
    assert not exchange(tmp_path / "a", tmp_path / "absent") and not exchange(tmp_path / "absent", tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for write in (atomic_file, atomic_folder):
        for path in (tmp_path / "file" / "x", tmp_path / "file" / "deeper" / "x"):
            with pytest.raises(BadInput, match=f"^{path}: cannot be written: .*; nothing saved before is lost"):
                with write(path) as partial:
                    partial.write_text("x")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(BadInput, match=f"^{tmp_path / 'folder'}: cannot be written"):
        with atomic_file(tmp_path / "folder") as partial:
            partial.write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_full_disk_is_bad_input_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    code = f"""
import resource, signal
from data.storage.atomic import atomic_file
# a limit on file size makes writes fail in the kernel as on a full disk, without needing one
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with atomic_file({str(path)!r}) as partial:
    partial.write_bytes(bytes(5000))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr.strip().splitlines()[-1].startswith(f"data.errors.BadInput: {path}: cannot be written: ")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_a_reader_never_sees_half_a_file_though_the_writer_is_killed(tmp_path):
    path = tmp_path / "x"
    code = f"""
import itertools
from data.storage.atomic import atomic_file
for n in itertools.count():
    with atomic_file({str(path)!r}) as partial, open(partial, "w") as file:
        for _ in range(2000):
            file.write(str(n % 10))
            file.flush()
"""
    seen = set()
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        until = time.monotonic() + 240
        started, looks = path.stat().st_mtime_ns if path.exists() else None, 0
        while (looks < 200 or len(seen) < 2) and time.monotonic() < until:
            if path.exists() and path.stat().st_mtime_ns != started:  # at work
                text = path.read_text()
                assert len(text) == 2000 and set(text) == {text[0]}
                seen.add(text[0])
                looks += 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert looks >= 200
        text = path.read_text()
        assert len(text) == 2000 and set(text) == {text[0]}
    assert len(seen) > 1


def test_what_stands_beside_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert beside("a/b", ".", ".partial") == Path("a/.b.partial")
    assert beside(".", "", ".partial") == tmp_path.with_name(f"{tmp_path.name}.partial") and beside("a/..", ".", "") == beside(".", ".", "")
    with pytest.raises(BadInput, match=r"^/: has no name"):
        beside("/", "", ".partial")
    for place in (".", "a", "a/.."):
        with pytest.raises(BadInput, match="cannot be written"), atomic_file(place) as path:
            path.write_text("x")
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_to_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(BadInput, match="link: cannot be written: Is a directory"):
        with atomic_file(tmp_path / "link") as path:
            path.write_text("new")
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path)) == ["folder", "link"]
