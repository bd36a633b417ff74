"""The one reader of lines and the one reader and writer of JSON."""

import gzip
import io
import json
import os

import pytest

from data import progress
from data.errors import BadInput
from data.regions.precomputed import source_items
from data.storage import inflating, text_files
from data.storage.text_files import parse_json, read_json, read_lines, read_yaml, write_json


def test_only_newlines_end_a_line(tmp_path):
    text = "a\u2028b\x0bc\r\n\n  d \ne\x85"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write(text.encode())
    for name in ("a.txt", "a.txt.gz"):
        assert list(read_lines(tmp_path / name)) == ["a\u2028b\x0bc", "", "  d ", "e\x85"]


def test_lines_that_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match=r"absent: cannot be read \(No such file or directory\); give a list$"):
        list(read_lines(tmp_path / "absent", "give a list"))
    with pytest.raises(BadInput, match="cannot be read"):
        list(read_lines(tmp_path))
    (tmp_path / "a").write_bytes(b"caf\xe9\n")
    with pytest.raises(BadInput, match="a: not UTF-8 text"):
        list(read_lines(tmp_path / "a"))
    with gzip.open(tmp_path / "b.gz", "wb") as file:
        file.write(os.urandom(1000).hex().encode())
    (tmp_path / "b.gz").write_bytes((tmp_path / "b.gz").read_bytes()[:500])
    with pytest.raises(BadInput, match=r"b\.gz: cannot be read"):
        list(read_lines(tmp_path / "b.gz"))


@pytest.mark.parametrize("value", [{}, {"a": [1, None, "ü\u2028"]}, [], ["\udcff.jpg", "日本"], "x", 3, None])
def test_json_comes_back(tmp_path, value):
    path = tmp_path / "folder" / "a.json"
    for indent in (2, None):
        write_json(path, value, indent)
        assert read_json(path, expected=object) == value == json.loads(path.read_text(encoding="utf-8"))
        assert os.listdir(path.parent) == ["a.json"] and path.read_bytes().endswith(b"\n")


def test_a_line_end_within_a_text_survives(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a":\r\n "b\xe2\x80\xa8c"}')
    assert read_json(tmp_path / "a.json") == {"a": "b\u2028c"}


@pytest.mark.parametrize(
    ("content", "expected", "message"),
    [
        ("{", dict, r"a\.json: the file is not JSON \(.*\); build it again$"),
        ("[" * 100000, dict, "is not JSON"),
        ("[]", dict, r"a\.json: holds a list, expected an object; build it again$"),
        ("{}", list, "holds an object, expected a list"),
        ("null", list, "holds null, expected a list"),
    ],
)
def test_other_content(tmp_path, content, expected, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        read_json(tmp_path / "a.json", "build it again", expected)


def test_text_that_is_not_json():
    with pytest.raises(BadInput, match=r"^a: line 2 is not JSON \(.*\)$"):
        parse_json("{", "a: line 2")


def test_json_that_is_nested_deeper_than_data():
    for text in ("[" * 100 + "]" * 100, '{"a": ' * 100 + "1" + "}" * 100, "[" + "[], " * 500 + "{}]", json.dumps({"a": "[" * 500})):
        assert parse_json(text, "x") == json.loads(text)
    for text in ("[" * 101 + "]" * 101, '{"a": ' * 101 + "1" + "}" * 101, "[" + "[], " * 500 + "[" * 100 + "]" * 101, "[" * 1_000_000):
        with pytest.raises(BadInput, match=r"^x is not JSON \("):
            parse_json(text, "x")


def test_long_json_is_read_as_short_is_and_shows_how_far_it_is(tmp_path, monkeypatch):
    value = {"images": [{"id": n, "of": {"name": "a {brace"}} for n in range(50)], "twice": {}}
    path, log = tmp_path / "x.json", io.StringIO()
    write_json(path, value)
    for name, least in (("DELAY", 0), ("BETWEEN_LINES", 0), ("BETWEEN_LOOKS", {True: 0, False: 0})):
        monkeypatch.setattr(progress, name, least)
    monkeypatch.setattr("sys.stderr", log)
    assert text_files.read_json(path) == value and log.getvalue() == ""
    monkeypatch.setattr(text_files, "LONG", 100)
    monkeypatch.setattr(text_files, "BETWEEN_MOVES", 10)
    assert text_files.read_json(path) == value
    assert log.getvalue().startswith(f"reading {path}: ") and " of 152 objects [" in log.getvalue()
    path.write_text(path.read_text()[:-3])
    with pytest.raises(BadInput, match=r"x\.json: the file is not JSON"):
        text_files.read_json(path)


def test_a_long_table_without_objects_is_told(monkeypatch, capsys):
    monkeypatch.setattr(text_files, "LONG", 100)
    monkeypatch.setattr(text_files, "SLOW", 1_000_000)
    table = {str(n): n for n in range(100_000)}
    for values in (table, dict(list(table.items())[:50_000])):
        assert text_files.parse_json(json.dumps(values), "x", progress="reading x") == values
    assert capsys.readouterr().err == "reading x: 2 MB in one step, without a rate\n"



def test_compressed_text_that_becomes_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(inflating, "ALWAYS", 1000)
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    for text, read in (("[" + "1, " * 500_000 + "1]", read_json), ("a\n" + "b" * 500_000 + "\nc", lambda *words: list(read_lines(words[0])))):
        (tmp_path / "a.gz").write_bytes(gzip.compress(text.encode()))
        with pytest.raises(BadInput, match=r"a\.gz: .* is longer than [0-9,]+ characters"):
            read(tmp_path / "a.gz", "", object)
        (tmp_path / "a").write_text(text)
        with monkeypatch.context() as patch:  # uncompressed, it has the bytes
            patch.setattr(text_files, "LONGEST_LINE", 1_000_000)
            read(tmp_path / "a", "", object)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"a\n\n" * 2000 + b"b"))
    assert list(read_lines(tmp_path / "b.gz")) == ["a", ""] * 2000 + ["b"]


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    os.mkfifo(tmp_path / "a.gz")
    for read in (read_json, lambda path: list(read_lines(path))):
        for name in ("a.json", "a.gz"):
            with pytest.raises(BadInput, match=rf"^{tmp_path}/{name}: a named pipe"):
                read(tmp_path / name)


def test_what_was_there_stays_when_writing_fails(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(BadInput, match="cannot be written"):
        write_json(tmp_path / "a.json" / "b.json", {})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_file_of_nothing_that_is_larger_than_the_memory(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(BadInput, match=r"a\.json: its content: 8,192.0 GiB, and this machine has"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", r"a\.yaml: the file is not YAML \(.*\); put it back$"),
        (b"a: 2024-13-45", "not YAML .month must be in 1..12"),
        (b"a: caf\xe9", "a.yaml: not UTF-8 text"),
        (b"a: !!python/object/apply:os.system [ls]", "not YAML .could not determine a constructor"),
        (b"a: !!int ''", "not YAML"),
        (b"[" * 5000, "not YAML"),
        (b"- 1", r"a\.yaml: holds a list, expected an object; put it back$"),
        (b"5: 1", r"holds an object, expected keys that are texts, not 5; put it back$"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_line(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_yaml(tmp_path / "a.yaml", "put it back", {str: object})
    (tmp_path / "a.yaml").write_text("a: {b: 1.5, c: 'ü'}")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1.5, "c": "ü"}}


def test_names_that_no_file_has(tmp_path):
    for name in ("a\0b", "\ud800"):
        with pytest.raises(BadInput, match="cannot be read"):
            read_json(tmp_path / name)


@pytest.mark.parametrize("reads", [lambda path: list(read_lines(path)), lambda path: list(source_items(str(path))[1]())], ids=["lines", "regions"])
def test_a_hole_of_gigabytes_is_no_line(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 5_000_000)
    with open(tmp_path / "a.tsv", "wb") as file:
        file.truncate(1 << 38)  # a sparse file: it takes no disk
    with pytest.raises(BadInput, match=r"a\.tsv: a line is longer than 5,000,000 characters"):
        reads(tmp_path / "a.tsv")


def test_lines_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 5)
    (tmp_path / "a.txt").write_text("abc\nde\r\n\nfgh")
    assert list(read_lines(tmp_path / "a.txt")) == ["abc", "de", "", "fgh"]
