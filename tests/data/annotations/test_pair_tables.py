"""Tables of pairs: header lines, either order of columns, separators; an address is never a caption."""

import json

import pytest

from data.annotations.records import ReadingOptions
from data.annotations.web_pairs import read_downloaded, read_pairs
from data.errors import BadInput


def pairs_and_bad(path, content, **how):
    path.write_bytes(content.encode())
    bad = []
    settings = ReadingOptions(on_bad_record=lambda line, captions: bad.append(line), **how)
    return [(c.image, c.text) for c in read_pairs(path, settings)], bad


EXPECTED = [("a.jpg", "A dog"), ("b.jpg", "A cat")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "filepath\ttitle\na.jpg\tA dog\nb.jpg\tA cat\n"),
        ("a.tsv", "title\tfilepath\nA dog\ta.jpg\nA cat\tb.jpg\n"),
        ("a.tsv", "image\tcaption\na.jpg\tA dog\nb.jpg\tA cat\n"),
        ("a.txt", "caption\tscore\timage\r\nA dog\t1\ta.jpg\r\nA cat\t2\tb.jpg\r\n"),
        ("a.csv", "\ufeffimage,caption\na.jpg,A dog\nb.jpg,A cat\n"),
        ("captions.txt", 'image,caption\n"a.jpg","A dog"\nb.jpg,A cat\n'),
        ("a.csv", "id,Title,FilePath\n1,A dog,a.jpg\n2,A cat,b.jpg\n"),
        ("results.csv", "image_name| comment_number| comment\na.jpg| 0| A dog\nb.jpg| 1| A cat\n"),
        ("a.tsv", "A dog\ta.jpg\nA cat\tb.jpg\n"),
        ("a.tsv", "a.jpg\tA dog\nb.jpg\tA cat\n"),
    ],
)
def test_columns_in_either_order(tmp_path, name, content):
    assert pairs_and_bad(tmp_path / name, content) == (EXPECTED, [])


def test_addresses_in_front(tmp_path):
    """CC12M's order; the order is the file's, told by the first line that can tell."""
    files = {"https://a/1.jpg": "1.jpg", "https://a/x y?id=2": "2.jpg", "nothing": "n.jpg"}
    content = "nothing\tto tell\nhttps://a/1.jpg\tA dog\nhttps://a/x y?id=2\tA cat, with a\ttab\n"
    found, bad = pairs_and_bad(tmp_path / "cc12m.tsv", content, downloaded=files)
    assert found == [("1.jpg", "A dog"), ("2.jpg", "A cat, with a")]
    assert len(bad) == 1 and "line 1 has 'nothing' where other lines have a picture's file or address" in bad[0]
    with pytest.raises(BadInput, match=r"line 1 gives the address https://a/1.jpg.*--downloaded"):
        pairs_and_bad(tmp_path / "cc12m.tsv", "https://a/1.jpg\tA dog\n")


@pytest.mark.parametrize("header", ["id\tname", "name\tid", "Bild\tText"])
def test_a_header_of_unknown_names_is_no_caption(tmp_path, header):
    found, bad = pairs_and_bad(tmp_path / "a.tsv", f"{header}\nA dog\ta.jpg\nA cat\tb.jpg\n")
    assert found == EXPECTED and len(bad) == 1
    assert "line 1 has" in bad[0] and "a header must call two columns caption and image, or as other data sets do" in bad[0]


@pytest.mark.parametrize(
    "content",
    [
        "split,image,caption\ntrain,a.jpg,A dog\ntest,b.jpg,A cat\n,c.jpg,A bird\na/b,d.jpg,A cow\n",
        '{"image": "a.jpg", "caption": "A dog", "split": "train"}\n{"image": "b.jpg", "caption": "A cat", "split": "test"}\n'
        '{"image": "c.jpg", "caption": "A bird"}\n{"image": "d.jpg", "caption": "A cow", "split": "a/b"}\n',
    ],
)
def test_a_split_that_the_table_says_counts(tmp_path, content):
    path = tmp_path / ("a.csv" if content.startswith("split") else "a.jsonl")
    path.write_text(content)
    bad = []
    settings = ReadingOptions(on_bad_record=lambda line, captions: bad.append(line), split="val")
    found = [(c.image, c.split) for c in read_pairs(path, settings)]
    assert found == [("a.jpg", "train"), ("b.jpg", "test"), ("c.jpg", "val")]
    assert len(bad) == 1 and "split is 'a/b', expected a name such as train" in bad[0]


def test_an_address_or_a_file_name_is_no_caption(tmp_path):
    content = "A dog\ta.jpg\nb.jpg\tA cat\nmy cat.PNG\tc.jpg\nhttps://x.org/d\td.jpg\n"
    found, bad = pairs_and_bad(tmp_path / "a.tsv", content)
    assert found == [("a.jpg", "A dog")] and len(bad) == 3
    assert "line 2 has 'A cat' where other lines have a picture's file or address" in bad[0]
    assert "line 3: caption 2 is 'my cat.PNG', expected a caption, not an address or a file name" in bad[1]


def test_rows_that_do_not_fit_the_header_are_reported(tmp_path):
    content = 'image,caption\na.jpg,A dog, and a cat\nb.jpg\nc.jpg,"open\nd.jpg,"A ""big"" bird, singing"\n'
    found, bad = pairs_and_bad(tmp_path / "a.csv", content)
    assert found == [("a.jpg", "A dog, and a cat"), ("d.jpg", 'A "big" bird, singing')]
    assert len(bad) == 2 and "line 3 has 1 columns, the header 2" in bad[0] and "line 4 is no line of comma-separated" in bad[1]
    found, bad = pairs_and_bad(tmp_path / "r.csv", "image_name| comment_number| comment\na.jpg| 4   A dog\nb.jpg| 0| a | b\n")
    assert found == [("b.jpg", "a | b")] and "line 2 has 2 columns, the header 3" in bad[0]
    found, bad = pairs_and_bad(tmp_path / "t.tsv", "caption\timage\na dog\tx\ta.jpg\n")
    assert not found and "line 2 has 3 columns" in bad[0]
    with pytest.raises(BadInput, match=r"n.csv: line 1 names no columns; expected a header such as image,caption"):
        pairs_and_bad(tmp_path / "n.csv", "a.jpg,A dog\n")
    assert pairs_and_bad(tmp_path / "empty.tsv", "") == ([], [])


def test_one_address_has_one_file(tmp_path):
    (tmp_path / "files.tsv").write_text("http://a\t1.jpg\nhttp://a\t1.jpg\nhttp://a\t2.jpg\n")
    with pytest.raises(BadInput, match=r"line 3: http://a is 2.jpg here and 1.jpg before"):
        read_downloaded(tmp_path / "files.tsv")


@pytest.mark.parametrize("name", [".", "..", "/", "a/.."])
def test_a_picture_whose_path_has_no_name_is_reported(tmp_path, name):
    found, bad = pairs_and_bad(tmp_path / "a.json", json.dumps([{"image": name, "caption": "A dog"}, {"image": "b.jpg", "caption": "A cat"}]))
    assert found == [("b.jpg", "A cat")] and "expected the name of a file" in bad[0]
