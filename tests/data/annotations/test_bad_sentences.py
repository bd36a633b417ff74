"""What is wrong inside a record: a bad sentence costs one sentence, ids are what they are, captions have words."""

import json

import pytest

from data.annotations import read_captions
from data.annotations.coco import read_coco, split_of_name
from data.annotations.records import ReadingOptions, has_word
from data.errors import BadInput


def read(path, form, content, **how):
    """Captions, bad lines with their counts, pictures without captions."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    bad, silent = [], []
    settings = ReadingOptions(
        on_bad_record=lambda line, captions: bad.append((captions, line)), on_picture_without_captions=silent.append, **how
    )
    return list(read_captions(path, form, settings)), bad, silent


def test_one_bad_sentence_of_karpathy_costs_one_sentence(tmp_path):
    good = [{"raw": f"a dog {n}", "sentid": n} for n in range(4)]
    sentences = [good[0], {"sentid": 9}, *good[1:], 7, {"raw": "x", "sentid": None}, {"raw": "x", "sentid": 8, "tokens": 3}]
    images = [
        {"filename": "a.jpg", "split": "train", "sentences": sentences},
        {"filename": "b.jpg", "split": None, "sentences": good},
        {"filename": "c.jpg", "split": "val", "sentences": []},
        {"filename": "d.jpg", "split": "val", "sentences": {}},
    ]
    captions, bad, silent = read(tmp_path / "k.json", "karpathy", {"images": images})
    assert [c.caption_id for c in captions] == ["0", "1", "2", "3"] and silent == ["c.jpg"]
    assert [count for count, _ in bad] == [1, 1, 1, 1, 4, 1]
    assert "images[0] (a.jpg): sentence 2 of 8 lacks something (KeyError('raw'))" in bad[0][1]


def test_one_bad_sentence_of_json_lines_costs_one_sentence(tmp_path):
    line = {"image": "a.jpg", "split": "train", "captions": {"en": "text", "de": ["ein Hund", 7, "zwei"]}}
    lines = [line, {**line, "image": "b.jpg", "split": 3}, {**line, "image": "c.jpg", "captions": {"en": []}}]
    captions, bad, silent = read(tmp_path / "a.jsonl", "jsonl", "\n".join(map(json.dumps, lines)))
    assert [c.caption_id for c in captions] == ["a#de0", "a#de2"] and silent == ["c.jpg"]
    assert [count for count, _ in bad] == [1, 1, 4]


def test_several_captions_of_one_pair(tmp_path):
    content = [{"image": "a.jpg", "caption": ["one", None, "two"]}, {"image": "b.jpg", "caption": "three"}, {"image": "c.jpg", "caption": []}]
    captions, bad, silent = read(tmp_path / "pairs.json", "pairs", content)
    assert [(c.image, c.caption_id, c.text) for c in captions] == [("a.jpg", "0#0", "one"), ("a.jpg", "0#2", "two"), ("b.jpg", "1", "three")]
    assert [count for count, _ in bad] == [1] and silent == ["c.jpg"]


def test_one_bad_region_of_visual_genome_costs_one_region(tmp_path):
    regions = [{"region_id": n, "phrase": "a dog"} for n in range(3)]
    content = [{"id": 1, "regions": [regions[0], {"region_id": 9}, *regions[1:]]}, {"id": "x", "regions": regions}]
    captions, bad, _ = read(tmp_path / "r.json", "visual-genome", content)
    assert [c.caption_id for c in captions] == ["1#0", "1#1", "1#2"] and [count for count, _ in bad] == [1, 3]


def test_pictures_of_one_stem_have_ids_of_their_own(tmp_path):
    names = ["cats/1.jpg", "dogs/1.jpg", "cats/1.jpg", "dogs/1.png"]
    lines = [json.dumps({"image": n, "captions": {"en": ["x"]}, "split": "train"}) for n in names]
    captions, bad, _ = read(tmp_path / "a.jsonl", "jsonl", "\n".join(lines))
    assert [c.caption_id for c in captions] == ["1#en0", "dogs/1#en0", "1#en1", "dogs/1.png#en0"] and not bad


def test_karpathys_pictures_of_one_name_in_two_folders(tmp_path):
    images = [
        {"filepath": folder, "filename": name, "split": "train", "sentences": [{"raw": "x", "sentid": n}]}
        for n, (folder, name) in enumerate([("cats", "1.jpg"), ("dogs", "1.jpg"), ("dogs", "2.jpg")])
    ]
    captions, _, _ = read(tmp_path / "k.json", "karpathy", {"images": images})
    assert [c.image for c in captions] == ["cats/1.jpg", "dogs/1.jpg", "2.jpg"]


# ---- COCO's ids and names of files -----------------------------------------------------------------------------------


def test_a_repeated_image_id_is_never_overwritten(tmp_path):
    """Case 4."""
    images = [{"id": 1, "file_name": "cat.jpg"}, {"id": "1", "file_name": "dog.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    said = [{"id": n, "image_id": image, "caption": "a cat"} for n, image in enumerate([1, "1", 2])]
    captions, bad, silent = read(tmp_path / "x.json", "coco", {"images": [*images, images[2]], "annotations": said})
    assert [(c.image, c.caption_id) for c in captions] == [("b.jpg", "2")] and not silent
    assert [count for count, _ in bad] == [1, 1] and "image_id 1 is the id of cat.jpg and of dog.jpg" in bad[0][1]
    with pytest.raises(BadInput, match=r"annotations\[0\]: image_id 1 is the id of cat.jpg and of dog.jpg"):
        list(read_coco(tmp_path / "x.json"))


def test_ids_of_another_type_are_the_same_ids(tmp_path):
    images = [{"id": "1", "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": True, "file_name": "c.jpg"}]
    said = [{"id": 1, "image_id": 1, "caption": "x"}, {"id": "2", "image_id": "2", "caption": "y"}]
    captions, bad, silent = read(tmp_path / "x.json", "coco", {"images": images, "annotations": said})
    assert [(c.image, c.caption_id, c.image_id) for c in captions] == [("a.jpg", "1", 1), ("b.jpg", "2", 2)]
    assert [count for count, _ in bad] == [0] and "images[2]: id is 'True', expected a number or a text" in bad[0][1]
    _, _, silent = read(tmp_path / "x.json", "coco", {"images": images[:2], "annotations": said[:1]})
    assert silent == ["b.jpg"]


def test_the_split_in_a_files_name_is_a_word_and_an_option_wins(tmp_path):
    names = {
        "captions_val2017.json": "val", "captions_val2017_head.json": "val", "train2014.json": "train",
        "captions_latest2023.json": None, "captions_val20171.json": None, "upval2017.json": None, "captions_test1234.json": None,
    }  # fmt: skip
    assert {name: split_of_name(name) for name in names} == names
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}
    for how, split in (({"split": "dev"}, "val"), ({"split": "dev", "split_is_given": True}, "dev")):
        captions, _, _ = read(tmp_path / "captions_val2017.json", "coco", content, **how)
        assert captions[0].split == split


# ---- texts that are no captions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\u200b", False), ("\xa0", False), ("\x00", False), ("\u2028\x85\t", False), ("\ufffd\u0301", False), ("\ufe0f", False),
     ("...", True), ("\u200bdog", True), ("犬", True), ("🐶", True), ("7", True)],
)  # fmt: skip
def test_what_a_caption_has(text, expected):
    assert has_word(text) == expected


BAD_TEXTS = ["half \ud83d", "\u200b", "\xa0", "\x00", "http://x.org/a.jpg"]


@pytest.mark.parametrize("form", ["jsonl", "karpathy", "coco", "pairs", "visual-genome"])
def test_texts_without_words_and_half_surrogates_are_bad_captions(tmp_path, form):
    """Case 13, in every format that has JSON's escapes."""
    texts = list(enumerate(["a dog", *BAD_TEXTS]))
    sentences = [{"raw": text, "sentid": n} for n, text in texts]
    said = [{"image_id": 1, "id": n, "caption": text} for n, text in texts]
    content = {
        "jsonl": {"image": "a.jpg", "captions": {"en": [text for _, text in texts]}, "split": "train"},
        "karpathy": {"images": [{"filename": "a.jpg", "split": "train", "sentences": sentences}]},
        "coco": {"images": [{"file_name": "a.jpg", "id": 1}], "annotations": said},
        "pairs": [{"image": "a.jpg", "caption": text} for _, text in texts],
        "visual-genome": [{"id": 1, "regions": [{"region_id": n, "phrase": text} for n, text in texts]}],
    }[form]
    captions, bad, _ = read(tmp_path / ("a.json" + "l" * (form == "jsonl")), form, content)
    assert [c.text for c in captions] == ["a dog"] and [count for count, _ in bad] == [1] * len(BAD_TEXTS)
    for _, line in bad:
        line.encode()


def test_names_that_no_database_can_hold_are_bad(tmp_path):
    names = ["half\\ud83d.jpg", "nul\\u0000.jpg", "x" * 600, "good.jpg"]
    content = "\n".join(f'{{"image": "{n}", "captions": {{"en": ["a dog", "two"]}}, "split": "train"}}' for n in names)
    captions, bad, _ = read(tmp_path / "a.jsonl", "jsonl", content)
    assert {c.image for c in captions} == {"good.jpg"} and [count for count, _ in bad] == [2, 2, 2]
    content = content.replace("train", "tr\\ud83d").replace("half\\ud83d", "half")
    assert read(tmp_path / "a.jsonl", "jsonl", content)[0] == []


def test_lines_end_at_line_feeds_alone(tmp_path):
    text = "a\x85dog\u2028runs\x0bfast\x1c"
    path = tmp_path / "results.token"
    path.write_bytes(f"\ufeffa.jpg#0\t{text}x\r\nb.jpg#0\ta cat\n".encode())
    captions = list(read_captions(path, "token"))
    assert [(c.image, c.text) for c in captions] == [("a.jpg", text + "x"), ("b.jpg", "a cat")]


def test_a_key_twice_in_a_line_is_told(tmp_path):
    content = '{"image": "a.jpg", "split": "train", "captions": {"en": ["one"], "en": ["two"]}}'
    captions, bad, _ = read(tmp_path / "a.jsonl", "jsonl", content)
    assert captions == [] and "line 1 is not JSON (the key 'en' is twice in one object)" in bad[0][1]
