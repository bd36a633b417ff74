"""What several files of tests of the scripts begin with."""

import json
from pathlib import Path

import pytest

from configs import cli
from scripts import build_captions, convert_config
from tests.original_configs import COMMANDS
from tests.photo_files import picture


@pytest.fixture
def translate(tmp_path, monkeypatch):
    """Write the JSON config, run the command, load what it wrote with the kind's command → (config, text)."""
    monkeypatch.chdir(tmp_path)

    def run(old: dict, kind: str, *words: str):
        Path("old.json").write_text(json.dumps(old))
        words = ["old.json", "--out", "new.yaml", *words]
        convert_config.main(cli.parse(convert_config.Options, words, positional=("old",)))
        return cli.parse(COMMANDS[kind], ["--config", "new.yaml"]), Path("new.yaml").read_text()

    return run


@pytest.fixture
def build(tmp_path):
    """``build(annotations, words...)`` → the report."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*"[PAD] [UNK] [CLS] [SEP] [MASK] a dog".split(), *map(str, range(10))]) + "\n")

    def run(annotations, *words):
        words = [
            "--annotations",
            annotations,
            "--tokenizer",
            vocabulary,
            "--out",
            tmp_path / "db",
            *words,
        ]
        build_captions.main(cli.parse(build_captions.Options, [str(word) for word in words]))
        return json.loads((tmp_path / "db/report.json").read_text())

    return run


@pytest.fixture
def photos(tmp_path):
    """Five good photographs of different kinds."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    picture().save(folder / "b_rgb.jpg")
    picture(90, 300, (30, 60, 200)).save(folder / "a.dotted.name.png")
    picture().convert("L").save(folder / "more" / "grey.JPEG")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    picture().convert("P").save(folder / "palette.png", transparency=0)
    (folder / "notes.txt").write_text("no photograph")
    return folder
