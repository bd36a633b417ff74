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


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(BadInput, match="a named pipe"):
        unpack_archive(tmp_path / "a.zip", tmp_path / "out")
