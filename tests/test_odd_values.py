"""Every file in JSON or YAML that we read, with each of its values made another: it is read, or refused with one line that names it."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.annotations import FORMATS, read_captions
from data.captions.build import keep_extracted
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.downloads.checksums import read_recorded
from data.errors import BadInput
from data.regions.db import RegionDB
from data.regions.extractor_record import read_extractor
from data.regions.pictures import PictureFiles, read_pictures
from data.regions.precomputed import image_sizes
from data.storage.contents import content_digest
from model.bi_encoder import LightningDOT
from model.evaluation.compare import read_evaluation
from model.evaluation.ingredients import read_ingredients
from model.evaluation.outcomes import QueryRanks, write_ranks
from model.evaluation.published import read_catalogue
from model.evaluation.recall import recall_table
from model.extractors.butd.rcnn_config import read_config
from model.made_from import boxes_for, read_made_from
from model.retrieval.reranking import mix_for
from model.translation import read_journal
from optim.curves import read_curves
from scripts.download import read_sources
from scripts.reporting.results import read_run
from tests.tiny_world import make_tiny_world

ODD = [None, True, -1, 0, 7, 2.5, float("nan"), float("inf"), 10**30, "", "x", "\ud800", "a\0", [], [None], [[1], "y"], {}, {"x": {"y": 1}}, {"x": [3]}]


def changed(value: object, most: int = 12) -> Iterator[object]:
    """The value with each inner value in turn replaced by each odd one, without each key, and itself replaced; of long lists and
    objects the first few are."""
    yield from copy.deepcopy(ODD)
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    for key, inner in items[:most]:
        rest = copy.copy(value)
        if isinstance(value, dict):
            yield {name: other for name, other in value.items() if name != key}
        for other in changed(inner, 4):
            rest[key] = other
            yield rest


def check(path: Path, read: Callable[[], object], most: int = 12) -> None:
    whole = path.read_text()
    value = yaml.safe_load(whole) if path.suffix == ".yaml" else json.loads(whole)
    read()
    for number, other in enumerate(changed(value, most)):
        path.write_text(json.dumps(other))  # which is YAML, too
        try:
            read()
        except BadInput as error:
            assert str(error) and "\n" not in str(error)
        except Exception as error:
            pytest.fail(f"{path.name}, change {number}: {type(error).__name__}: {error}: {path.read_text()[:2000]}")
    for damage in (b"", b"\xff\xfe{", whole.encode()[: len(whole) // 2], b"[" * 3000, b"\0" * 100):
        path.write_bytes(damage)
        try:
            read()
        except BadInput as error:
            assert path.name in str(error)
    path.write_text(whole)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_tiny_world(root)
    return root


@pytest.fixture
def world(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize("name", ["id2len.json", "txt2img.json", "img2txts.json", "txt2lang.json", "meta.json", "tokenizer/tokenizer_config.json"])
def test_beside_captions(world, name):
    folder = world / "db" / "train"

    def read() -> None:
        db = CaptionDB(folder)
        CaptionTokenizer.from_pretrained(folder / "tokenizer").input_ids("a dog")
        assert [db[i]["input_ids"] for i in db.ids] and list(db.img2txts.items()) and list(db.languages.items()) is not None
        db.fingerprint()

    check(folder / name, read)


@pytest.mark.parametrize("name", ["feat_th0.2_max100_min10/extractor.json", "feat_th0.2_max100_min10/pictures.json", "nbb_th0.2_max100_min10.json"])
def test_beside_regions(world, name):
    def read() -> None:
        db = RegionDB(world / "regions")
        [db[key] for key in db.keys]
        db.fingerprint(), read_extractor(db.folder)
        files = PictureFiles(world / "photos", read_pictures(world / "regions"))
        [files.find(key) for key in db.keys], files.remarks()

    check(world / "regions" / name, read)


def test_the_report_of_an_extraction(world):
    captions = list(read_captions(world / "captions.jsonl", "jsonl"))
    regions, photos = world / "regions", world / "photos"
    check(regions / "report.json", lambda: keep_extracted(captions, regions, photos, "captions.jsonl", {}))


def test_what_is_remembered_of_a_database(world):
    """Nothing hangs on it: it is computed anew."""
    before = content_digest(world / "db" / "train")
    check(world / "db" / "train" / "digest.json", lambda: content_digest(world / "db" / "train") == before)


def test_a_checkpoint(world):
    check(world / "model" / "config.json", lambda: LightningDOT.from_pretrained(world / "model"))
    (world / "model" / "data.json").write_text(json.dumps({
        "boxes": {"conf_th": 0.2, "max_bb": 100, "min_bb": 10, "num_bb": 36}, "tokenizer": "ab",
        "extractors": [None, {"name": "a", "options": {"b": 1}, "weights": None, "source": None}],
    }))  # fmt: skip
    check(world / "model" / "data.json", lambda: (read_made_from(world / "model"), boxes_for(world / "model")))
    (world / "model" / "val.json").write_text('{"mix": 0.5}')
    check(world / "model" / "val.json", lambda: mix_for(world / "model"))


def test_an_evaluation_and_a_run(tmp_path):
    ranks = {"all": QueryRanks(np.array([0, 1, 300]), np.array([0, 2]), np.array([0, 0, 1]))}
    write_ranks(tmp_path / "ranks.npz", ["a", "b"], {"all": ["1", "2", "3"]}, ranks)
    recall = {"all": recall_table(ranks["all"].t2i, ranks["all"].i2t)}
    bounds = {"all": {"TR@1": {"low": 1.0, "high": 2.0}}}
    results = {"recall": recall, "ranks": "ranks.npz", "intervals": bounds, "data": {"captions": "ab"}, "config": {"gallery": None}}
    results |= {"reranker": {"top": {"5": {"recall": recall, "intervals": {}, "mixed": {"recall": recall, "mix": 0.5}}}, "seconds": {"encoding": 1.0}}}
    (tmp_path / "results.json").write_text(json.dumps(results))

    def read() -> None:
        read_evaluation(tmp_path)
        for each in read_run(tmp_path).evaluations:
            assert each.rows and each.about

    check(tmp_path / "results.json", read)


def test_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\nmodel: {kind: uniter}\n")
    (tmp_path / "run.json").write_text('{"time": "now", "versions": {"torch": "2"}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "val.json").write_text('{"recall": {"all": {"TR@1": 5.0}}}')
    for name in ("config.yaml", "run.json", "best/val.json", "metrics.jsonl"):
        check(tmp_path / name, lambda: (read_run(tmp_path).kind, read_curves(tmp_path)))


SOURCES = {
    "downloads": "a: {title: A, licence: B, files: [{url: http://a/b.zip, bytes: 3, unpack: true}], by_hand: [do it], then: done}",
    "sources": "a: {gives: [DATA/x], title: A, command: python x.py, disk: 0.5, pictures: 3, captions: {x: 3}}",
    "published": "checkpoints: {a: {recipe: b.yaml, inputs: {model.init: c}}}\ntables: {t: {title: T, rows: [{recipe: r.yaml, name: n, paper: {TR@1: 83.9}}]}}",
}  # fmt: skip


@pytest.mark.parametrize(("name", "read"), [("downloads", read_sources), ("sources", read_ingredients), ("published", read_catalogue)])
def test_files_of_sources_and_tables(tmp_path, name, read):
    (tmp_path / f"{name}.yaml").write_text(SOURCES[name])
    check(tmp_path / f"{name}.yaml", lambda: read(tmp_path / f"{name}.yaml"))


def test_small_files(tmp_path):
    (tmp_path / "checksums.json").write_text('{"a": "sha256:ab"}')
    check(tmp_path / "checksums.json", lambda: read_recorded(tmp_path / "checksums.json"))
    (tmp_path / "sizes.json").write_text('{"a.jpg": [3, 4]}')
    check(tmp_path / "sizes.json", lambda: image_sizes(str(tmp_path / "sizes.json")))
    (tmp_path / "coco.json").write_text('{"images": [{"file_name": "a.jpg", "id": 3, "width": 4, "height": 5}]}')
    check(tmp_path / "coco.json", lambda: image_sizes(str(tmp_path / "coco.json")))
    (tmp_path / "config.yaml").write_text("model: {pixel_mean: [1.0, 2.0, 3.0], max_pool: true}\nresnets: {depth: 50}\nanchor_generator: {sizes: [[32, 64]]}\n")
    check(tmp_path / "config.yaml", lambda: read_config(tmp_path / "config.yaml"))


def test_a_journal_of_translations(tmp_path):
    journal = tmp_path / "a.jsonl"
    for other in changed({"a": "one", "b": "two"}):
        journal.write_text(json.dumps({"model": "m", "captions": "c"}) + "\n" + json.dumps(other) + "\n")
        assert all(isinstance(text, str) for text in read_journal(journal, {"model": "m", "captions": "c"}).values())
    for other in changed({"model": "m", "captions": "c"}):
        journal.write_text(json.dumps(other) + "\n")
        try:
            read_journal(journal, {"model": "m", "captions": "c"})
        except BadInput as error:
            assert re.search("a.jsonl: begun with other", str(error))


ANNOTATIONS = {
    "karpathy": {"images": [{"filename": "a.jpg", "split": "train", "sentids": [0], "cocoid": 3, "imgid": 0, "sentences": [{"raw": "a dog", "tokens": ["a", "dog"], "sentid": 0}]}]},
    "coco": {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 2, "image_id": 1, "caption": "a dog"}]},
    "visual-genome": [{"id": 1, "regions": [{"region_id": 2, "image_id": 1, "phrase": "a dog"}]}],
    "image-meta": {"a.npz": {"caption_multiple": ["a dog"]}},
    "pairs": {"captions": ["a dog"], "image_urls": ["a/b.jpg"]},
    "jsonl": {"image": "a.jpg", "captions": {"en": ["a dog"], "de": ["ein Hund"]}, "split": "train"},
}  # fmt: skip


@pytest.mark.parametrize("form", ANNOTATIONS)
def test_annotations(tmp_path, form):
    assert form in FORMATS
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ANNOTATIONS[form]))
    check(path, lambda: [caption.text.encode() for caption in read_captions(path, form)], most=4)
