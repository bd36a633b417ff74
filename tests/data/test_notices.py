"""A number larger than the data is lowered, and said once."""

import pytest

from data.notices import lowered, say_once


@pytest.fixture(autouse=True)
def nothing_said():
    say_once.cache_clear()


def test_a_number_larger_than_the_data_is_lowered_and_said_once(capsys):
    assert [lowered(asked, 6, "index/img: k", "images") for asked in (1, 6, 10, 10)] == [1, 6, 6, 6]
    assert capsys.readouterr().err == "index/img: k 10 is lowered to 6: there are no more images\n"


def test_of_several_processes_the_first_says_it(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert lowered(10, 6, "index/img: k", "images") == 6 and capsys.readouterr().err == ""
