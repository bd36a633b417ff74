"""What is remembered of large files."""

import os

import pytest

from data.storage import file_facts


@pytest.fixture
def find(tmp_path, monkeypatch):
    """``fact_of_file`` of a file that counts as large, and the calls of the function that reads it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_facts, "REMEMBERED_FROM", 4)
    calls = []

    def read() -> str:
        calls.append(1)
        return (tmp_path / "file").read_text()

    def find(kind="words") -> tuple[str, int]:
        calls.clear()
        return file_facts.fact_of_file(tmp_path / "file", kind, read), len(calls)

    return find


def write_long_ago(path, text, seconds):
    path.write_text(text)
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_a_large_file_is_read_once_until_it_changes(tmp_path, find):
    write_long_ago(tmp_path / "file", "first", 10)
    assert [find(), find(), find("letters"), find()] == [("first", 1), ("first", 0), ("first", 1), ("first", 0)]
    write_long_ago(tmp_path / "file", "other", 5)
    assert [find(), find()] == [("other", 1), ("other", 0)]


def test_a_user_without_a_home_directory_has_it_read_each_time(tmp_path, find, homeless):
    write_long_ago(tmp_path / "file", "first", 10)
    assert [find(), find()] == [("first", 1)] * 2


def test_a_file_that_was_written_just_now_is_read_again(tmp_path, find):
    (tmp_path / "file").write_text("first")
    assert [find(), find()] == [("first", 1), ("first", 1)]


def test_a_small_file_is_read_again_and_a_damaged_note_is_written_anew(tmp_path, find):
    write_long_ago(tmp_path / "file", "abc", 10)
    assert [find(), find()] == [("abc", 1), ("abc", 1)]
    write_long_ago(tmp_path / "file", "first", 10)
    find()
    for note in (tmp_path / "cache").rglob("*.json"):
        note.write_text("{")
    assert [find(), find()] == [("first", 1), ("first", 0)]
