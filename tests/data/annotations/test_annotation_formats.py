"""Every public annotation format, on small files laid out as the real ones are; and their bad records."""

import gzip
import json

import pytest

from data.annotations import FORMATS, guess_format, read_captions
from data.annotations.coco import read_coco
from data.annotations.jsonl import read_jsonl, write_jsonl
from data.annotations.karpathy import read_karpathy
from data.annotations.multi30k import read_both, read_task1, read_task2
from data.annotations.photographs import read_excluded_photos
from data.annotations.records import AnnotationFormat, Caption, ReadingOptions
from data.annotations.token import read_token
from data.annotations.visual_genome import read_visual_genome
from data.annotations.web_pairs import read_downloaded, read_pairs
from data.errors import BadInput
from data.storage.text_files import read_lines


def kept_and_bad(reader, path, **how):
    """The captions, and a line for each bad record."""
    bad = []
    return list(reader(path, ReadingOptions(on_bad_record=lambda line, captions: bad.append(line), **how))), bad


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# ---- COCO ------------------------------------------------------------------------------------------------------------


def coco(annotations, images=None):
    images = images or [
        {"id": n, "file_name": f"{n:012d}.jpg", "license": 4, "flickr_url": "x"} for n in (397133, 37777)
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def test_coco(tmp_path):
    said = [
        {"image_id": 37777, "id": 1, "caption": "A kitchen."},
        {"image_id": 397133, "id": 7, "caption": "A man makes pizza."},
        {"image_id": 37777, "id": 3, "caption": "A stove."},
    ]
    captions = list(read_captions(write(tmp_path / "captions_val2017.json", coco(said)), "coco"))
    assert captions == [  # by picture
        Caption("000000397133.jpg", "A man makes pizza.", "7", "val", "en", None, 397133),
        Caption("000000037777.jpg", "A kitchen.", "1", "val", "en", None, 37777),
        Caption("000000037777.jpg", "A stove.", "3", "val", "en", None, 37777),
    ]
    assert {c.split for c in read_coco(write(tmp_path / "mine.json", coco(said)), ReadingOptions(split="dev"))} == {"dev"}


def test_bad_records_of_coco_are_left_out(tmp_path):
    good = {"image_id": 37777, "id": 1, "caption": "A kitchen."}
    bad = [{**good, "id": 2, "image_id": 5}, {**good, "id": 4, "image_id": [1]}, {**good, "caption": " "}, {"id": 3}, {**good, "caption": "Twice."}]
    path = write(tmp_path / "captions_train2014.json", coco([good, *bad]))
    captions, reports = kept_and_bad(read_coco, path)
    assert [c.text for c in captions] == ["A kitchen."] and len(reports) == 5
    for report, message in zip(
        reports,
        (
            "annotations[1]: image_id 5 is not among",
            "annotations[2]: image_id is '[1]', expected a number or a text",
            "annotations[4]: it is",
            "annotations[3]: caption 1 is ' '",
            "was used before",
        ),
        strict=True,
    ):
        assert message in report and report.startswith(str(path))
    with pytest.raises(BadInput, match="image_id 5"):
        list(read_coco(path))
    with pytest.raises(BadInput, match="annotations is 'None', expected a list"):
        list(read_coco(write(tmp_path / "x.json", {"images": []})))
    with pytest.raises(BadInput, match="not JSON"):
        list(read_coco(write(tmp_path / "x.json", "{")))


# ---- token files, Visual Genome --------------------------------------------------------------------------------------


def test_token(tmp_path):
    lines = (
        "1000092795.jpg#0\tTwo young guys .\n1000092795.jpg#1\tTwo males .\n2258277193_586949ec62.jpg.1#0\tA dog .\n"
    )
    captions, bad = kept_and_bad(read_token, write(tmp_path / "results.token", lines), split="all")
    assert not bad and captions == [
        Caption("1000092795.jpg", "Two young guys .", "1000092795.jpg#0", "all", "en"),
        Caption("1000092795.jpg", "Two males .", "1000092795.jpg#1", "all", "en"),
        Caption("2258277193_586949ec62.jpg.1", "A dog .", "2258277193_586949ec62.jpg.1#0", "all", "en"),
    ]
    damaged = "no tab\na.jpg\tno number\na.jpg#x\tz\na.jpg#1\t \n" + lines
    captions, bad = kept_and_bad(read_token, write(tmp_path / "results.token", damaged))
    assert len(captions) == 3 and [n for n in range(1, 5) if f"results.token: line {n}" in bad[n - 1]] == [1, 2, 3, 4]


def test_visual_genome(tmp_path):
    regions = [{"region_id": 1382, "phrase": "the clock is green", "image_id": 1, "x": 421, "width": 82}]
    regions += [{"region_id": 1383, "phrase": "", "image_id": 1}, {"region_id": 1382, "phrase": "again"}]
    path = write(tmp_path / "region_descriptions.json", [{"id": 1, "regions": regions}, {"regions": []}, 3])
    captions, bad = kept_and_bad(read_visual_genome, path)
    assert captions == [Caption("1.jpg", "the clock is green", "1#1382", "train", "en", None, 1)]
    assert len(bad) == 4 and "[0]: caption 1#1383 is ''" in bad[0] and "[1]: id is 'None', expected" in bad[2]
    with pytest.raises(BadInput, match="expected a list"):
        list(read_visual_genome(write(tmp_path / "x.json", {})))


# ---- pairs -----------------------------------------------------------------------------------------------------------

TSV = "a very typical bus station\thttp://one.org/a.jpg\nsierra looked stunning\thttps://two.org/b?w=1\tlabel\t0.9\n"


def test_conceptual_captions_with_missing_pictures(tmp_path):
    path = write(tmp_path / "Train_GCC-training.tsv", TSV + "no picture\thttp://three.org/c.png\nno tab\n")
    files = write(
        tmp_path / "files.tsv", 'http://one.org/a.jpg\t0/a.jpg\n{"url": "https://two.org/b?w=1", "file": "b"}\n'
    )
    missing = []
    how = {"downloaded": read_downloaded(files), "on_missing_picture": missing.append, "split": "dev"}
    captions, bad = kept_and_bad(read_pairs, path, **how)
    assert captions == [
        Caption("0/a.jpg", "a very typical bus station", "0", "dev", "en"),
        Caption("b", "sierra looked stunning", "1", "dev", "en"),
    ]
    assert missing == ["http://three.org/c.png"] and len(bad) == 1 and "line 4 has no tab" in bad[0]
    with pytest.raises(BadInput, match=r"line 1 gives the address http://one.org/a.jpg, .*--downloaded"):
        kept_and_bad(read_pairs, path)  # even where bad records are left out: all of them would be
    with pytest.raises(BadInput, match=r"files.tsv: line 1: the line is 'x'"):
        read_downloaded(write(tmp_path / "files.tsv", "x\n"))


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.jsonl", "pairs.json", "sbu.json", "SBU_urls.txt", "pairs.tsv.gz"])
def test_pairs_of_files_in_every_form(tmp_path, name):
    texts, pictures = ["a dog", "a cat"], ["dog.jpg", "x/cat.jpg"]
    records = [{"caption": t, k: p, "user": 1} for t, k, p in zip(texts, ("image", "file"), pictures, strict=True)]
    content = {
        "pairs.tsv": "a dog\tdog.jpg\na cat\tx/cat.jpg\n",
        "pairs.jsonl": "\n".join(map(json.dumps, records)),
        "pairs.json": records,
        "sbu.json": {"captions": texts, "image_urls": pictures, "user_ids": [1, 2]},
        "SBU_urls.txt": "\n".join(pictures) + "\n",
    }[name.removesuffix(".gz")]
    write(tmp_path / "SBU_captions.txt", "\n".join(texts) + "\n")
    captions = list(read_captions(write(tmp_path / name, content), "pairs"))
    assert [(c.image, c.text, c.caption_id) for c in captions] == [
        ("dog.jpg", "a dog", "0"),
        ("x/cat.jpg", "a cat", "1"),
    ]


def test_bad_pairs(tmp_path):
    records = [
        {"caption": "a"},
        {"image": "a.jpg"},
        3,
        {"caption": None, "image": "b.jpg"},
        {"caption": "ok", "image": "c"},
    ]
    captions, bad = kept_and_bad(read_pairs, write(tmp_path / "a.json", records))
    assert [(c.text, c.caption_id) for c in captions] == [("ok", "4")] and len(bad) == 4
    lines = "\n".join(["{", *map(json.dumps, records)])
    captions, bad = kept_and_bad(read_pairs, write(tmp_path / "a.jsonl", lines))
    assert [c.text for c in captions] == ["ok"] and len(bad) == 5 and "a.jsonl: line 1 is not JSON" in bad[0]
    with pytest.raises(BadInput, match="of one length"):
        list(read_pairs(write(tmp_path / "a.json", {"captions": ["a"], "image_urls": []})))
    write(tmp_path / "S_captions.txt", "a\nb\n")
    with pytest.raises(BadInput, match=r"S_urls.txt: 1 lines, but .*S_captions.txt has 2"):
        list(read_pairs(write(tmp_path / "S_urls.txt", "a.jpg\n")))


# ---- Multi30K --------------------------------------------------------------------------------------------------------


@pytest.fixture
def multi30k(tmp_path):
    """Two training pictures and a test on COCO, without Czech and gzip'ed, as published."""
    data = tmp_path / "multi30k" / "data"
    write(data / "task1/image_splits/train.txt", "1.jpg\n2.jpg\n")
    write(data / "task1/image_splits/test_2017_mscoco.txt", "COCO_val2014_000000398076.jpg#657409\n")
    write(data / "task2/image_splits/train_images.txt", "1.jpg\n2.jpg\n")
    write(data / "task2/image_splits/test_2017_images.txt", "9.jpg\n")
    for language in ("en", "de", "fr", "cs"):
        write(data / f"task1/raw/train.{language}.gz", f"one {language}\u2028\ntwo {language}\n")  # not a line's end
        if language != "cs":
            write(data / f"task1/raw/test_2017_mscoco.{language}", f"coco {language}\n")
    for number in range(1, 6):
        for language in ("en", "de"):
            write(data / f"task2/raw/train.{number}.{language}.gz", f"1{language}{number}\n2{language}{number}\n")
            write(data / f"task2/raw/test_2017.{number}.{language}", f"9{language}{number}\n")
    return data


def test_multi30k(multi30k):
    aligned = list(read_task1(multi30k.parent))
    assert [c for c in aligned if c.image == "2.jpg"] == [
        Caption("2.jpg", f"two {language}", f"2#{language}", "train", language) for language in ("en", "de", "fr", "cs")
    ]
    coco = [c for c in aligned if c.split == "test_coco"]
    assert [c.caption_id for c in coco] == [f"COCO_val2014_000000398076#{name}" for name in ("en", "de", "fr")]
    assert len(aligned) == 2 * 4 + 3

    independent = list(read_task2(multi30k))  # the data folder does as well
    assert [(c.caption_id, c.text) for c in independent if c.image == "2.jpg" and c.language == "de"] == [
        (f"2#de{n}", f"2de{n + 1}") for n in range(5)
    ]
    assert {c.split for c in independent if c.image == "9.jpg"} == {"test_2018"}  # its pictures are 2018's

    both = list(read_both(multi30k))
    counts = {
        language: sum(c.language == language and c.split == "train" for c in both)
        for language in ("en", "de", "fr", "cs")
    }
    assert counts == {"en": 10, "de": 10, "fr": 2, "cs": 2}
    assert len({c.caption_id for c in both}) == len(both)


def test_files_of_multi30k_that_are_not_read_are_named(multi30k):
    def unread(reader):
        names = []
        list(reader(multi30k, ReadingOptions(on_unread_file=names.append)))
        return names

    assert [unread(reader) for reader in (read_task1, read_task2, read_both)] == [[], [], []]
    write(multi30k / "task1/raw/train.uk.gz", "odyn\ndva\n")
    write(multi30k / "task1/raw/val.en", "its pictures are listed nowhere\n")
    write(multi30k / "task2/raw/train.1.fr", "un\ndeux\n")
    write(multi30k / "task1/raw/README.md", "not captions\n")
    assert unread(read_task1) == ["task1/raw/train.uk.gz", "task1/raw/val.en"]
    assert unread(read_both) == ["task2/raw/train.1.fr", "task1/raw/train.uk.gz", "task1/raw/val.en"]


def test_bad_files_of_multi30k(multi30k, tmp_path):
    write(multi30k / "task1/raw/train.fr.gz", "only one\n")
    write(multi30k / "task1/raw/train.cs.gz", "one\n \n")
    damaged = multi30k / "task1/raw/train.de.gz"
    damaged.write_bytes(damaged.read_bytes()[:20])
    captions, bad = kept_and_bad(read_task1, multi30k)
    assert [c.caption_id for c in captions if c.split == "train"] == ["1#en", "2#en", "1#cs"]
    assert len(bad) == 3 and "train.de.gz: cannot be read" in bad[0]
    assert "train.fr.gz: 1 captions, but" in bad[1] and "lists 2 pictures" in bad[1] and "train.cs.gz: line 2" in bad[2]
    with pytest.raises(BadInput, match="no captions in task1/raw; give the folder of Multi30K"):
        list(read_task1(tmp_path))


# ---- JSON lines and Karpathy -----------------------------------------------------------------------------------------


def test_bad_records_of_jsonl_and_karpathy_are_left_out(tmp_path):
    line = {"image": "dog.jpg", "captions": {"en": ["A dog.", ""]}, "split": "train"}
    lines = [json.dumps(line), "{", json.dumps({**line, "image": "cat.jpg", "captions": {"en": "x", "de": ["y"]}})]
    captions, bad = kept_and_bad(read_jsonl, write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [c.caption_id for c in captions] == ["dog#en0", "cat#de0"] and len(bad) == 3
    sentences = [{"raw": "a", "sentid": 1}, {"raw": "", "sentid": 2}]
    images = [{"filename": "a.jpg", "split": "restval", "sentences": sentences}, {"split": "train"}]
    captions, bad = kept_and_bad(read_karpathy, write(tmp_path / "k.json", {"images": images}))
    assert [(c.caption_id, c.split) for c in captions] == [("1", "restval")] and len(bad) == 2


def test_a_language_comes_from_the_first_field_that_has_it(tmp_path):
    line = {
        "image": "dog.jpg",
        "split": "val",
        "captions": {"en": ["A dog.", "Dogs."]},
        "aligned": {"en": "The dog.", "cs": "Pes."},
    }
    path = write(tmp_path / "a.jsonl", line)
    captions = list(read_jsonl(path, ReadingOptions(fields=("captions", "aligned"))))
    assert [(c.caption_id, c.text) for c in captions] == [
        ("dog#en0", "A dog."),
        ("dog#en1", "Dogs."),
        ("dog#cs0", "Pes."),
    ]
    assert [c.text for c in read_jsonl(path, ReadingOptions(fields=("aligned",)))] == ["The dog.", "Pes."]
    with pytest.raises(BadInput, match="expected an object with image, captions, extra and split"):
        list(read_jsonl(path, ReadingOptions(fields=("captions", "extra"))))


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_formats_by_the_names_of_files(tmp_path):
    names = {
        "dataset_coco.json": "karpathy",
        "captions_val2014.json": "coco",
        "captions_val2014.json.gz": "coco",
        "results_20130124.token": "token",
        "mine.jsonl": "jsonl",
        "mine": "jsonl",
    }
    assert {name: guess_format(tmp_path / name) for name in names} == names
    assert guess_format(tmp_path) == "multi30k-task1"


def test_a_format_is_one_line_of_the_registry(tmp_path, monkeypatch):
    def read_lines_of_text(path, settings):
        for n, line in enumerate(read_lines(path)):
            yield Caption(f"{n}.jpg", line, str(n), settings.split, "en")

    own = AnnotationFormat(read_lines_of_text, ("*.sentences",), lambda name: "mine", lambda name: f"mine:{name}")
    monkeypatch.setitem(FORMATS, "mine", own)
    (tmp_path / "a.sentences").write_text("a dog\na cat\n")
    assert [c.text for c in read_captions(tmp_path / "a.sentences", "mine")] == ["a dog", "a cat"]
    assert guess_format(tmp_path / "a.sentences") == "mine"
    assert read_excluded_photos(f"{tmp_path}/a.sentences") == {"mine:0.jpg", "mine:1.jpg"}


def test_written_json_lines_are_read_again(tmp_path):
    captions = [
        Caption("a/dog.jpg", "A dög.", "dog#en0", "train", "en"),
        Caption("a/dog.jpg", "Ein Hund.", "dog#de0", "train", "de"),
        Caption("cat.jpg", "A\u2028cat.", "cat#en0", "val", "en"),
    ]
    write_jsonl(tmp_path / "a.jsonl", captions)
    assert list(read_jsonl(tmp_path / "a.jsonl")) == captions
