"""What counts as the end of a tar."""

import io
import tarfile

import pytest

from data.storage.tar_end import LONGEST_END, ends_as_a_tar


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
