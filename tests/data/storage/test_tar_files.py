"""Tar files that lead back, that tell more than they are, and what counts as their end."""

import gzip
import io
import tarfile

import pytest

from data.storage import tar_files
from data.storage.tar_files import LONGEST_END, ends_as_a_tar, open_tar


@pytest.mark.parametrize(
    ("behind", "expected"),
    [(512, True), (10_240, True), (LONGEST_END, True), (0, False), (511, False), (LONGEST_END + (1 << 20), False), (1 << 38, False)],
)
def test_zeros_are_an_end_where_they_fill_a_record_and_no_more(tmp_path, behind, expected):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    with open(path, "r+b") as file:
        file.truncate(1024)
        file.truncate(1024 + behind)  # of 2**38, a sparse file: it takes no disk
    with tarfile.open(path, "r:") as archive:
        assert [each.name for each in archive] == ["a.txt"]
        assert ends_as_a_tar(archive) is expected


def header_of(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def settings_of(**settings: int) -> bytes:
    """A pax header with its settings, 1,024 bytes."""
    lines = b"".join(b"%d %s\n" % (len(text) + 4, text) for text in (f"{name}={value}".encode() for name, value in settings.items()))
    return header_of("p", len(lines), tarfile.XHDTYPE) + lines.ljust(512, b"\0")


@pytest.mark.parametrize("tar", [
    header_of("a.jpg", -512) + bytes(1024),
    header_of("a.jpg", -1) + bytes(1024),
    settings_of(size=-1536) + header_of("a.jpg", 0) + bytes(1024),
    settings_of(size=-512) + header_of("a.jpg", 0) + bytes(1024),
], ids=["to itself", "by a byte", "to its settings", "to what it is"])  # fmt: skip
def test_a_header_that_leads_back_is_followed_once(tmp_path, tar):
    (tmp_path / "a.tar").write_bytes(tar)
    with pytest.raises(tarfile.ReadError, match="byte"), open_tar(tmp_path / "a.tar") as archive:
        for number, _ in enumerate(archive):
            assert number < 3


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_megabytes_is_not_read(tmp_path, kind):
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        file.write(header_of("name", 2 << 20, kind) + bytes(2 << 20) + header_of("a.jpg", 0) + bytes(1024))
    with pytest.raises(tarfile.ReadError, match="2,097,152 bytes"):
        open_tar(tmp_path / "a.tar.gz")


def test_what_becomes_more_than_it_warrants_is_not_gone_through(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(header_of("a.jpg", 1 << 20) + bytes(1 << 20) + header_of("b.jpg", 0) + bytes(1024))
    with open_tar(tmp_path / "a.tar.gz") as archive:
        assert archive.getnames() == ["a.jpg", "b.jpg"]
    monkeypatch.setattr(tar_files, "most_inflated", lambda packed: 100 * packed)
    with pytest.raises(tarfile.ReadError, match="byte 1,049,088"), open_tar(tmp_path / "a.tar.gz") as archive:
        archive.getnames()


def test_the_places_of_a_sparse_file_are_not_read(tmp_path):
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9", "GNU.sparse.name": "a.jpg"}
    member = tarfile.TarInfo("a.jpg")
    member.size, member.pax_headers = 512, pax
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(b"99999999999\n".ljust(512, b"\n")))
    with open_tar(tmp_path / "a.tar") as archive:
        assert [(each.name, bool(each.sparse)) for each in archive] == [("a.jpg", True)]
    many = bytearray(header_of("a.jpg", 0, tarfile.GNUTYPE_SPARSE))
    many[482] = 1  # more places follow
    many[148:156] = b" " * 8
    many[148:156] = b"%06o\0 " % sum(many)
    (tmp_path / "b.tar").write_bytes(bytes(many) + bytes(2048))
    with pytest.raises(tarfile.ReadError, match="sparse"):
        open_tar(tmp_path / "b.tar")
