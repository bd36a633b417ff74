"""Archives that would fill the disk are refused before a file of them is written."""

import io
import os
import tarfile
import zipfile

import pytest

from data.downloads.archives import unpack_archive
from data.errors import BadInput
from data.storage import inflating


def packed(path, size: int):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", bytes(size))
    else:
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("a")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_what_becomes_too_much_is_not_unpacked(tmp_path, monkeypatch, name):
    path = packed(tmp_path / name, 3_000_000)
    monkeypatch.setattr(inflating, "ALWAYS", 100_000)
    with pytest.raises(BadInput, match=rf"{name}: cannot be unpacked \(its files would take 3,000,000 bytes"):
        unpack_archive(path, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("a"))
    monkeypatch.undo()
    assert unpack_archive(path, tmp_path / "out") == 1 and (tmp_path / "out/a").stat().st_size == 3_000_000


@pytest.mark.parametrize("name", ["../a", "b/../../a", "/a", "..\\a", "\\a", "C:\\a", "c:a"])
def test_a_zip_whose_names_lead_out_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("first..txt", "x")
        archive.writestr(name, "x")
    with pytest.raises(BadInput, match=r"a\.zip: cannot be unpacked \(.* leads out of the folder"):
        unpack_archive(tmp_path / "a.zip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.zip"]


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(BadInput, match="a named pipe"):
        unpack_archive(tmp_path / "a.zip", tmp_path / "out")


def tar_of(path, members: dict[str, str | None]):
    """A tar of folders (``d/``), links (name → target) and files of one byte (None)."""
    with tarfile.open(path, "w") as archive:
        for name, target in members.items():
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            elif target is not None:
                member.type, member.linkname = tarfile.SYMTYPE, target
            else:
                member.size = 1
            archive.addfile(member, io.BytesIO(b"x") if member.size else None)
    return path


@pytest.mark.parametrize("target", ["d", ".", "nowhere", "a_link"])
def test_links_of_an_archive_stay_links(tmp_path, target):
    path, out = tar_of(tmp_path / "a.tar", {"a_link": target, "d/": None, "d/f": None}), tmp_path / "out"
    (out / "d").mkdir(parents=True)
    (out / "d/before").touch()
    assert unpack_archive(path, out) == 3
    assert os.readlink(out / "a_link") == target and sorted(os.listdir(out / "d")) == ["before", "f"]
    (out / ".a.tar.unpacked").unlink()
    assert unpack_archive(path, out) == 3 and sorted(os.listdir(out)) == [".a.tar.unpacked", "a_link", "d"]


def test_a_file_in_the_way_of_an_archive_is_one_line(tmp_path):
    path = tar_of(tmp_path / "a.tar", {"d/f": None})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/d").touch()
    with pytest.raises(BadInput, match="out/d: cannot be written: Not a directory"):
        unpack_archive(path, tmp_path / "out")
    path = tar_of(tmp_path / "b.tar", {"g": None})
    (tmp_path / "out/g").mkdir()
    with pytest.raises(BadInput, match="out/g: cannot be written: Is a directory"):
        unpack_archive(path, tmp_path / "out")
