"""scripts/translate.py with a tiny random Marian model, whose tokenizer is trained here."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_server import Repository, asked_hub
from tiny_marian import make_marian
from transformers import MarianMTModel, MarianTokenizer

from configs import cli
from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from model.translation import TranslationSettings, Translator, read_journal
from scripts import translate

GERMAN = [
    "ein Hund läuft",
    "zwei Hunde spielen am Strand",
    "ein roter Kreis über einem blauen Quadrat",
    "die Katze schläft",
]
ENGLISH = ["a dog runs", "two dogs play on the beach"]


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A folder with a model for the language de."""
    root = tmp_path_factory.mktemp("models")
    make_marian(root / "opus-mt-de-en", [*GERMAN, *ENGLISH])
    return root


@pytest.fixture
def world(marian, tmp_path):
    """The words of the command, and its text DB: English and German captions of twelve pictures."""
    vocabulary = tmp_path / "vocab.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary.write_text("\n".join(words) + "\n")
    captions = [
        Caption(f"p{n}.jpg", texts[n % len(texts)], f"p{n}#{language}0", "val", language, None, n)
        for n in range(12)
        for language, texts in (("en", ENGLISH), ("de", GERMAN))
    ]
    write_caption_db(tmp_path / "db", captions, CaptionTokenizer.from_pretrained(vocabulary), ["a.jsonl"])
    words = ["--captions", tmp_path / "db", "--tokenizer", vocabulary, "--model", f"{marian}/opus-mt-{{language}}-en"]
    words += ["--max-length", 12, "--tokens-per-batch", 30, "--device", "cpu"]
    return tmp_path, [str(word) for word in words]


def test_a_model_of_the_hub_at_a_revision(marian, tmp_path, monkeypatch):
    settings = TranslationSettings("user/opus-mt-{language}-en@v1", 1, 12, 30, None)
    with asked_hub(tmp_path, monkeypatch) as hub:
        hub.models["user/opus-mt-de-en"] = Repository()
        hub.models["user/opus-mt-de-en"].add_folder(marian / "opus-mt-de-en", "v1")
        of_hub, own = (Translator(str(each), settings, torch.device("cpu")) for each in (settings.model_of("de"), marian / "opus-mt-de-en"))
        assert of_hub.translate(GERMAN) == own.translate(GERMAN)
        with pytest.raises(BadInput, match=r"^user/opus-mt-fr-en@v1: no such folder, and the hub has no translation model user/opus-mt-fr-en"):
            Translator(settings.model_of("fr"), settings, torch.device("cpu"))


def run(words, out):
    translate.main(cli.parse(translate.Options, [*words, "--out", str(out)]))
    return CaptionDB(out)


def records(db):
    return {i: db[i] for i in db.ids}


def test_a_translated_database(world, marian, capsys):
    root, words = world
    db = run(words, root / "out")
    source = CaptionDB(root / "db")
    assert db.ids[:] == source.ids[:] and dict(db.languages.items()) == dict(source.languages.items())
    assert dict(db.txt2img.items()) == dict(source.txt2img.items())
    tokenizer, model = (kind.from_pretrained(marian / "opus-mt-de-en") for kind in (MarianTokenizer, MarianMTModel))
    translations = set()
    for i in db.ids:
        record, before = db[i], source[i]
        assert record["image_id"] == before["image_id"] and record["img_fname"] == before["img_fname"]
        if db.languages[i] == "en":
            assert record["raw"] == before["raw"] and "source_text" not in record
            continue
        assert record["source_text"] == before["raw"] and record["lang"] == "de"
        # the naive twin: one caption at a time, without padding
        alone = model.generate(**tokenizer(before["raw"], return_tensors="pt"), max_length=12)
        assert record["raw"] == tokenizer.decode(alone[0], skip_special_tokens=True)
        translations.add(record["raw"])
    assert len(translations) > 2, "the random model says the same of everything"
    translated = db.meta["translated"]
    assert translated["models"] == {"de": f"{marian}/opus-mt-de-en"} and translated["kept"] == []
    assert "24 captions of 12 pictures, 12 translated" in capsys.readouterr().out
    assert run([*words, "--languages", "de"], root / "de").ids[:] == [i for i in source.ids if "#de" in i]


@pytest.mark.parametrize("words", [["--num-beams", "0"], ["--num-beams", "-1"], ["--max-length", "0"]])
def test_a_search_that_cannot_be_is_refused_before_a_model_is_read(world, words):
    name = words[0].removeprefix("--").replace("-", "_")
    with pytest.raises(BadInput, match=f"^{name} must be at least 1, found {words[1]}$"):
        cli.parse(translate.Options, [*world[1], *words, "--out", "out"])


def test_translations_are_not_longer_than_the_model_may(world, marian, capsys):
    root, words = world
    most = MarianMTModel.from_pretrained(marian / "opus-mt-de-en").config.max_position_embeddings
    run([*words, "--max-length", str(10 * most)], root / "out")
    assert f"max_length {10 * most:,} is lowered to {most:,}: there are no more positions in the model\n" in capsys.readouterr().err


def test_a_killed_run_goes_on(world):
    root, words = world
    whole = records(run(words, root / "whole"))
    journal = root / "out.translations.jsonl"
    script = [sys.executable, translate.__file__, *words, "--out", str(root / "out")]
    process = subprocess.Popen(script, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 1, "nothing was translated before the kill"
    # the first batch, marked, and a line that a kill cut
    journal.write_bytes(lines[0] + lines[1].replace(b': "', b': "kept ') + b'{"p3#de0": "cut in the mid')
    resumed = records(run(words, root / "out"))
    kept = json.loads(lines[1])
    for caption_id, record in resumed.items():
        expected = "kept " + whole[caption_id]["raw"] if caption_id in kept else whole[caption_id]["raw"]
        assert record["raw"] == expected, "what was translated before is translated again, or lost"
    assert len(journal.read_text().splitlines()) == len((root / "whole.translations.jsonl").read_text().splitlines())


def test_a_journal_is_cut_at_line_feeds_only(tmp_path):
    """JSON lets the other separators of lines stand as they are."""
    journal, text = tmp_path / "out.translations.jsonl", "one\u2028two\x85three"
    assert read_journal(journal, {"model": "m"}) == {}
    with open(journal, "ab") as file:
        file.write((json.dumps({"a": text}, ensure_ascii=False) + '\n{"b": "cut').encode())
    for _ in range(2):
        assert read_journal(journal, {"model": "m"}) == {"a": text}


@pytest.mark.parametrize("damage", [b'{"b": "x', b"\x00\xff\n", b'{"b": \n{"c": "y"}\n'])
def test_damaged_lines_of_a_journal_are_translated_again(tmp_path, damage):
    journal = tmp_path / "out.translations.jsonl"
    read_journal(journal, {"model": "m"})
    whole = journal.read_bytes() + b'{"a": "one"}\n'
    journal.write_bytes(whole + damage)
    assert read_journal(journal, {"model": "m"}) == {"a": "one"} and journal.read_bytes() == whole


def test_bad_input(world):
    root, words = world
    run(words, root / "out")
    with pytest.raises(BadInput, match=r"out.translations.jsonl: begun with other settings"):
        run([*words, "--num-beams", "3"], root / "out")
    with pytest.raises(BadInput, match=r"no caption of language fr, found {'en': 12, 'de': 12}"):
        run([*words, "--languages", "fr"], root / "x")
    words[words.index("--model") + 1] = str(root / "absent-{language}")
    with pytest.raises(BadInput, match=r"absent-de: cannot be loaded as a Marian model"):
        run(words, root / "y")
    (root / "db" / "txt2lang.json").unlink()
    with pytest.raises(BadInput, match="does not say its captions' languages"):
        run(words, root / "z")
    with pytest.raises(BadInput, match="tokens_per_batch must be at least 1"):
        cli.parse(translate.Options, [*words, "--out", "o", "--tokens-per-batch", "0"])


def test_an_empty_translation_keeps_the_source(world, capsys):
    root, words = world
    run(words, root / "out")
    journal = Path(f"{root / 'out'}.translations.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    first = next(iter(lines[1]))
    lines[1][first] = " "
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    db = run(words, root / "out")
    assert db[first]["raw"] == db[first]["source_text"] and db.meta["translated"]["kept"] == [first]
    assert f"warning: 1 translations are empty, the source is kept, the first: {first}" in capsys.readouterr().err


def test_one_corrected_caption_is_not_translated_as_it_was(world):
    root, words = world
    run(words, root / "out")
    db = CaptionDB(root / "db")
    captions = [
        Caption(f"p{n}.jpg", db[f"p{n}#{language}0"]["raw"], f"p{n}#{language}0", "val", language, None, n)
        for n in range(12)
        for language in ("en", "de")
    ]
    for n, caption in enumerate(captions):
        if caption.caption_id == "p7#de0":
            captions[n] = dataclasses.replace(caption, text=caption.text[::-1])
    write_caption_db(root / "db", captions, CaptionTokenizer.from_pretrained(root / "vocab.txt"), ["a.jsonl"])
    with pytest.raises(BadInput, match=r"out.translations.jsonl: begun with other captions, some of those have changed"):
        run(words, root / "out")


@pytest.mark.parametrize("key", ["{stem}", "{lower}.v2.npz", "x_{stem:0>6}.jpg"])
def test_keys_stay_as_they_are(world, key):
    root, words = world
    captions = [Caption(f"Scene_{n}.jpg", "a dog runs", f"s{n}", "val", "en") for n in range(3)]
    write_caption_db(root / "db", captions, CaptionTokenizer.from_pretrained(root / "vocab.txt"), ["a.jsonl"], key)
    assert dict(run(words, root / "out").txt2img.items()) == dict(CaptionDB(root / "db").txt2img.items())
