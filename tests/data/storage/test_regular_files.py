"""Pipes and devices are refused at once, in one line; files, folders and what is missing are as with `open`."""

import os

import pytest

from data.errors import BadInput
from data.storage.regular_files import check_folder, check_regular, check_tree, open_regular


def test_a_file_is_opened_as_by_open(tmp_path):
    (tmp_path / "a").write_text("Čáp\n", encoding="utf-8")
    (tmp_path / "link").symlink_to("a")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == "Čáp\n".encode()
    with open_regular(tmp_path / "a", "r", encoding="utf-8") as file:
        assert file.read() == "Čáp\n"
    check_regular(tmp_path / "a")
    for name, before in (("a", "Čáp\n"), ("new", "")):
        with open_regular(tmp_path / name, "a", encoding="utf-8") as file:
            file.write("é\n")
        assert (tmp_path / name).read_text(encoding="utf-8") == before + "é\n" and not os.access(tmp_path / name, os.X_OK)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match=f"{tmp_path}/pipe: a named pipe"):
        open_regular(tmp_path / "pipe", "a")
    for path, kind in [(tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device")]:
        for refuse in (open_regular, check_regular):
            with pytest.raises(BadInput, match=f"{path}: {kind}, and only files are read"):
                refuse(path)


def test_a_pipe_at_any_depth_of_a_folder_is_refused(tmp_path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("")
    check_tree(tmp_path)
    check_tree(tmp_path / "absent")
    os.mkfifo(deep / "pipe")
    check_folder(tmp_path)  # the same of what stands in it
    for path in (tmp_path, deep / "pipe"):
        with pytest.raises(BadInput, match=f"{deep}/pipe: a named pipe"):
            check_tree(path)


def test_folders_and_what_is_missing_are_left_to_who_opens_them(tmp_path):
    check_regular(tmp_path)
    check_regular(tmp_path / "absent")
    check_folder(tmp_path / "absent")
    check_folder(tmp_path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")
