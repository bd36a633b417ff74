"""Annotation files: what is read, and every way they can be wrong."""

import json

import pytest

from data.annotations import read_captions
from data.annotations.jsonl import read_jsonl
from data.annotations.karpathy import read_karpathy
from data.annotations.photographs import read_excluded_photos
from data.annotations.records import Caption
from data.errors import BadInput

LINE = {"image": "folder/dog.jpg", "captions": {"en": ["A dog.", "Dogs"], "cs": ["Pes žere."]}, "split": "train"}
SENTENCE = {"raw": "Two dogs.", "tokens": ["two", "dogs"], "imgid": 0, "sentid": 7}
IMAGE = {"filename": "1000.jpg", "split": "restval", "imgid": 0, "sentids": [7], "sentences": [SENTENCE]}


def write_lines(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_jsonl(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", LINE, "", {**LINE, "image": "cat.v2.png", "split": "val", "more": 1})
    captions = list(read_jsonl(path))
    assert captions == list(read_captions(path, "jsonl"))
    assert captions[:3] == [
        Caption("folder/dog.jpg", "A dog.", "dog#en0", "train", "en"),
        Caption("folder/dog.jpg", "Dogs", "dog#en1", "train", "en"),
        Caption("folder/dog.jpg", "Pes žere.", "dog#cs0", "train", "cs"),
    ]
    assert [c.caption_id for c in captions[3:]] == ["cat.v2#en0", "cat.v2#en1", "cat.v2#cs0"]


def test_captions_of_a_picture_on_several_lines_are_numbered_on(tmp_path):
    texts = [("one", "train"), ("two", "train"), ("three", "test")]
    lines = [{"image": "a.jpg", "captions": {"en": [text], "de": ["x"]}, "split": split} for text, split in texts]
    captions = list(read_jsonl(write_lines(tmp_path / "a.jsonl", *lines)))
    assert [(c.caption_id, c.text, c.split) for c in captions if c.language == "en"] == [
        ("a#en0", "one", "train"), ("a#en1", "two", "train"), ("a#en2", "three", "test"),
    ]  # fmt: skip
    assert [c.caption_id for c in captions if c.language == "de"] == ["a#de0", "a#de1", "a#de2"]


def test_karpathy(tmp_path):
    coco = {**IMAGE, "filename": "COCO_val2014_000000000042.jpg", "cocoid": 42, "split": "test"}
    coco["sentences"] = [{"raw": "A cat", "sentid": 8}]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": [IMAGE, coco], "dataset": "mine"}))
    captions = list(read_karpathy(path))
    assert captions == list(read_captions(path, "karpathy"))
    assert captions == [
        Caption("1000.jpg", "Two dogs.", "7", "restval", "en", ("two", "dogs")),
        Caption("COCO_val2014_000000000042.jpg", "A cat", "8", "test", "en", None, 42),
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image": ', "line 2 is not JSON"),
        ("[1]", "line 2 has list, expected an object with image, captions and split"),
        ({"image": "a.jpg", "captions": {}}, r"line 2 has \['captions', 'image'\], expected"),
        ({**LINE, "image": ""}, "line 2: image is '', expected a file name"),
        ({**LINE, "image": "."}, "line 2: image is '.', expected a file name"),
        ({**LINE, "image": "a/.."}, "line 2: image is 'a/..', expected a file name"),
        ({**LINE, "image": "b.jpg", "split": 1}, "line 2: split is '1', expected a name"),
        ({**LINE, "image": "b.jpg", "split": "../evil"}, "line 2: split is '../evil', expected a name .* without /"),
        ("[" * 100000, "line 2 is not JSON"),
        ({**LINE, "image": "b.jpg", "captions": ["a dog"]}, r"line 2: captions is \"\['a dog'\]\", expected an object"),
        (
            {**LINE, "image": "b.jpg", "captions": {"en": "a dog"}},
            "line 2: captions of language en is 'a dog', expected a list",
        ),
        (
            {**LINE, "image": "b.jpg", "captions": {"en": ["a", " \t"]}},
            "line 2: caption b#en1 is ' .*', expected a text",
        ),
        ({**LINE, "image": "b.jpg", "captions": {"en": [None]}}, "line 2: caption b#en0 is 'None', expected a text"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line, message):
    path = write_lines(tmp_path / "a.jsonl", LINE, line)
    with pytest.raises(BadInput, match=f"a.jsonl: {message}"):
        list(read_jsonl(path))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "the file is not JSON"),
        ("[]", "images is 'None', expected a list"),
        ({"images": [{**IMAGE, "filename": 3}]}, r"images\[0\]: filename is '3', expected a file name"),
        ({"images": [IMAGE, IMAGE]}, r"images\[1\] \(1000.jpg\): caption id 7 was used before"),
        ({"images": [{**IMAGE, "split": None}]}, r"images\[0\] \(1000.jpg\): split is 'None', expected a name"),
        ({"images": [{**IMAGE, "split": ["x"]}]}, r"images\[0\] \(1000.jpg\): split is .*, expected a name"),
        ({"images": [{**IMAGE, "split": ".."}]}, r"images\[0\] \(1000.jpg\): split is '..', expected a name"),
        ({"images": [{**IMAGE, "cocoid": [1]}]}, r"images\[0\] \(1000.jpg\): cocoid is '\[1\]', expected a number"),
        ({"images": [{**IMAGE, "filename": "/"}]}, r"images\[0\]: filename is '/', expected a file name"),
        ("[" * 100000, "the file is not JSON"),
        ({"images": [{"split": "train"}]}, r"images\[0\]: filename is 'None', expected a file name"),
        ({"images": [{**IMAGE, "sentences": [{"raw": "x"}]}]}, r"images\[0\] \(1000.jpg\): sentence 1 of 1 lacks something .*sentid"),
        ({"images": [{**IMAGE, "sentences": [{**SENTENCE, "raw": ""}]}]}, r"images\[0\] .*: caption 7 is ''"),
        ({"images": ["a.jpg"]}, r"images\[0\]: it is 'a.jpg', expected an object"),
    ],
)
def test_bad_karpathy_names_file_and_picture(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BadInput, match=f"dataset.json: {message}"):
        list(read_karpathy(path))


@pytest.mark.parametrize("form", ["jsonl", "karpathy"])
def test_unreadable(tmp_path, form):
    with pytest.raises(BadInput, match="absent: cannot be read"):
        list(read_captions(tmp_path / "absent", form))
    (tmp_path / "latin1").write_bytes('{"image": "größe"}'.encode("latin1"))
    with pytest.raises(BadInput, match="latin1: not UTF-8"):
        list(read_captions(tmp_path / "latin1", form))


def test_a_byte_order_mark_is_no_text(tmp_path):
    files = {"jsonl": LINE, "karpathy": {"images": [IMAGE]}}
    for form, content in files.items():
        (tmp_path / form).write_text(json.dumps(content), encoding="utf-8-sig")
        assert next(read_captions(tmp_path / form, form)).text in ("A dog.", "Two dogs.")
    (tmp_path / "results.token").write_text("a.jpg#0\tA dog\n", encoding="utf-8-sig")
    assert next(read_captions(tmp_path / "results.token", "token")).image == "a.jpg"


def test_a_list_of_excluded_pictures_in_the_other_unicode_form(tmp_path):
    (tmp_path / "a.txt").write_text("cafe\u0301.jpg\n")
    assert read_excluded_photos(str(tmp_path / "a.txt")) == {"name:caf\u00e9"}
    (tmp_path / "a.jsonl").write_text('{"image": "cafe\u0301.jpg", "captions": {"en": ["a"]}, "split": "train"}\n')
    assert [c.image for c in read_captions(tmp_path / "a.jsonl", "jsonl")] == ["caf\u00e9.jpg"]
