"""The page about a run: what it shows, that it refers to nothing outside it, and that what stands in files stays text."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

import eval_itm
from configs import cli
from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from model.evaluation.outcomes import read_ranks
from model.evaluation.settings import EvalConfig
from scripts import report
from scripts.reporting.failures import WorstQueries, thumbnail
from scripts.reporting.results import read_run

EVIL = '</p><script>alert("x")</script><img src=http://elsewhere/x.png onerror=alert(1)> {{ 7 * 7 }}'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; asserts that every element is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def pictures(self):
        return [value for tag, name, value in self.attributes if tag == "img" and name == "src"]


def page_of(run, *words) -> Page:
    report.main(cli.parse(report.Options, [str(run), *map(str, words)], ("run",)))
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "action", "data", "style"):
            assert value.startswith("data:image/"), (tag, name, value[:80])
    assert "url(" not in text and "@import" not in text
    for picture in page.pictures:
        if picture.startswith("data:image/svg+xml"):
            for element in ElementTree.fromstring(base64.b64decode(picture.partition(",")[2])).iter():
                links = [value for name, value in element.attrib.items() if name.endswith("href")]
                assert all(link.startswith("#") for link in links) and not element.tag.endswith("script")
    return page


@pytest.fixture(scope="module")
def evaluated(small_world, finetuned, tmp_path_factory):
    """A run whose name, captions and settings are hostile, with an evaluation."""
    run = tmp_path_factory.mktemp("report") / "run<script>"
    shutil.copytree(finetuned, run, symlinks=True)
    out = run / "eval/step-1/test"
    captions = CaptionDB(small_world / "db/test")
    words = ["--checkpoint", finetuned / "best", "--captions", small_world / "db/test", "--regions", small_world / "regions"]
    eval_itm.main(cli.parse(EvalConfig, [*map(str, words), "--out", str(out), "--device", "cpu", "--bootstrap", "50"]))
    records = [Caption(captions.txt2img[i], f"{i} {EVIL}", i, "test", captions.languages[i]) for i in captions.ids]
    write_caption_db(run.parent / "evil", records, CaptionTokenizer.from_pretrained(small_world / "tokenizer"), ["a"])
    results = json.loads((out / "results.json").read_text())
    results["config"] |= {"captions": str(run.parent / "evil"), "checkpoint": EVIL}
    results["data"]["captions"] = CaptionDB(run.parent / "evil").fingerprint()
    (out / "results.json").write_text(json.dumps(results))
    return run


def test_a_fine_tuned_run_with_an_evaluation(evaluated, capsys):
    page = page_of(evaluated, "--failures", 4)
    said, text = capsys.readouterr().out, "\n".join(page.texts)
    assert "fine-tuning, 1 evaluations, 8 failures" in said
    assert "run<script>" in page.texts and EVIL in text and "49" not in EVIL  # as text, and no template of its own
    results = json.loads((evaluated / "eval/step-1/test/results.json").read_text())
    low, high = (results["intervals"]["all"]["AR"][name] for name in ("low", "high"))
    assert f"{results['recall']['all']['AR']:.1f}" in text and f"[{low:.1f}, {high:.1f}]" in text
    assert sum(picture.startswith("data:image/svg+xml") for picture in page.pictures) == 3  # recall, losses, training
    assert sum(picture.startswith("data:image/jpeg") for picture in page.pictures) >= 4 * (1 + 3)
    facts = json.loads((evaluated / "run.json").read_text())
    assert facts["git"] in text and f"torch {facts['versions']['torch']}" in text and "batch_size: 16" in text
    assert "pairs per second" in text


def test_failures_are_the_worst_queries_with_what_stood_before_them(evaluated):
    (evaluation,) = read_run(evaluated).evaluations
    found = WorstQueries(evaluation)
    img_ids, txt_ids, ranks = read_ranks(evaluation.folder / "ranks.npz")
    img, txt = (EmbeddingIndex(evaluation.folder / kind) for kind in ("img", "txt"))
    scores = txt.vectors(np.arange(len(txt))) @ img.vectors(np.arange(len(img))).T
    worst = sorted((int(rank) for task in ranks.values() for rank in task.t2i), reverse=True)
    texts = found.texts(5)
    assert [each.rank for each in texts] == [rank + 1 for rank in worst[:5]]
    for each in texts:
        order = [img.ids()[n] for n in np.argsort(-scores[txt.row_of(each.query.label)], kind="stable")]
        assert order.index(each.right[0].label) + 1 == each.rank and each.query.text == f"{each.query.label} {EVIL}"
        assert [item.label for item in each.first] == order[: each.rank - 1][:3]
    for each in found.images(3):
        order = [txt.ids()[n] for n in np.argsort(-scores[:, img.row_of(each.query.label)], kind="stable")]
        own = {txt_ids[each.task][n] for n in np.flatnonzero(ranks[each.task].image_of == img_ids.index(each.query.label))}
        of_language = [name for name in order if name in txt_ids[each.task]]
        assert min(of_language.index(name) for name in own) + 1 == each.rank
        assert [item.label for item in each.first] == of_language[: each.rank - 1][:3]
    assert all(each.rank > 1 for each in found.texts(10_000))


def test_a_thumbnail_looks_as_the_extractor_saw_the_picture(tmp_path):
    Image.fromarray(np.full((40, 40), 64 << 8, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (20_000, 1), (64, 64, 64)).save(tmp_path / "long.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "deep.png").read_bytes()[:60])
    for name, size in (("deep.png", (150, 150)), ("long.png", (150, 1))):
        kind, _, content = thumbnail(tmp_path / name).partition(",")
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert kind == "data:image/jpeg;base64" and picture.size == size and picture.getpixel((0, 0)) == (64, 64, 64)
    assert thumbnail(tmp_path / "damaged.png") == ""


def test_what_is_gone_is_left_out(evaluated, tmp_path):
    shutil.copytree(evaluated / "eval", tmp_path / "eval")
    folder = tmp_path / "eval/step-1/test"
    results = json.loads((folder / "results.json").read_text())
    results["config"]["captions"] = "gone"
    (folder / "results.json").write_text(json.dumps(results))
    shutil.rmtree(folder / "img")
    page = page_of(tmp_path / "eval", "--failures", 2)
    text = "\n".join(page.texts)
    assert not page.pictures and "no picture" in text and "caption " in text and "--photos DIR shows them" in text
    assert "Versions" in text  # of the evaluation
    page = page_of(tmp_path / "eval", "--failures", 0)
    assert "Failures" not in "\n".join(page.texts)
    assert page_of(folder, "--failures", 1).texts  # the folder of the evaluation itself


def test_what_is_another_by_now_is_left_out(evaluated, tmp_path, small_world):
    """Captions that were written anew under the same ids, indexes that other weights made."""
    shutil.copytree(evaluated / "eval", tmp_path / "eval")
    folder = tmp_path / "eval/step-1/test"
    results = json.loads((folder / "results.json").read_text())
    (whole,) = read_run(tmp_path / "eval").evaluations
    assert WorstQueries(whole).texts(1)[0].first and EVIL in WorstQueries(whole).texts(1)[0].query.text
    results["config"]["captions"] = str(small_world / "db/test")
    (folder / "results.json").write_text(json.dumps(results))
    (other_words,) = read_run(tmp_path / "eval").evaluations
    worst = WorstQueries(other_words).texts(1)[0]
    assert worst.first and worst.query.text == f"caption {worst.query.label}"
    (folder / "results.json").write_text(json.dumps(results | {"model": "1234"}))
    (other_weights,) = read_run(tmp_path / "eval").evaluations
    assert not WorstQueries(other_weights).texts(1)[0].first
    (folder / "results.json").write_text(json.dumps(results))
    index = EmbeddingIndex(folder / "img")
    with IndexWriter(tmp_path / "other", "img", index.dim, index.header["model"], "other") as writer:  # of another split
        writer.add([f"other_{name}" for name in index.ids()], index.vectors(np.arange(len(index))))
    shutil.copyfile(tmp_path / "other/data.mdb", folder / "img/data.mdb")
    (other_split,) = read_run(tmp_path / "eval").evaluations
    assert not WorstQueries(other_split).texts(1)[0].first


def test_a_pre_training(pretrained, tmp_path, capsys):
    shutil.copytree(pretrained, tmp_path / "pre", symlinks=True)
    page = page_of(tmp_path / "pre")
    assert "pre-training, 0 evaluations" in capsys.readouterr().out and len(page.pictures) == 3
    assert "valid_every: 8" in "\n".join(page.texts)


def test_a_re_ranker_and_its_evaluations(tmp_path, capsys):
    run = tmp_path / "uniter"
    (run / "best").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"kind": "uniter"}, "note": EVIL}))
    (run / "metrics.jsonl").write_text('{"step": 3, "val/all/AR": 40.5, "grad_norm": Infinity}\n')
    recall = dict.fromkeys(["TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "AR"], 33.25)
    (run / "best/val.json").write_text(json.dumps({"epoch": 1, "recall": {"all": recall}, "mix": 0.5}))
    page = page_of(run)
    assert "re-ranker, 0 evaluations" in capsys.readouterr().out
    assert len(page.pictures) == 1 and EVIL in re.sub(r"'{2}", "'", "\n".join(page.texts)).replace("\n  ", " ")
    top = {"recall": {"all": recall}, "mixed": {"recall": {"all": recall}, "mix": 0.5, "intervals": {}}}
    results = {"recall": {"de": recall, "chance": recall, "all": recall}, "ranks": "ranks.npz"}
    (run / "results.json").write_text(json.dumps(results | {"reranker": {"top": {"10": top}, "seconds": {"search": 1.5}}}))
    (evaluation,) = read_run(run).evaluations
    assert [row.name for row in evaluation.rows] == ["de", "all", "chance", "best 10 re-ranked", "best 10 re-ranked + 0.5 × bi-encoder"]
    assert evaluation.rows[0].cells == ["33.2"] * 7 and "search 1.5 s" in evaluation.about


def test_what_is_no_run_is_refused(tmp_path):
    for folder, message in ((tmp_path / "no", "no such folder"), (tmp_path, "neither a run")):
        with pytest.raises(BadInput, match=message):
            report.main(report.Options(str(folder)))
    (tmp_path / "config.yaml").write_text("- a")
    with pytest.raises(BadInput, match=r"config\.yaml: holds a list, expected an object"):
        report.main(report.Options(str(tmp_path)))
    with pytest.raises(BadInput, match="failures must be at least 0"):
        report.Options("x", failures=-1)
    assert not (tmp_path / "report.html").exists()
