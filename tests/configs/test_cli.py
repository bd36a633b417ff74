"""Configs: YAML, command line, unknown keys, exit status."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from configs import cli
from data.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Optim:
    """Optimizer.

    Args:
        lr: peak rate
    """

    lr: float = 1e-3


@dataclass
class Corpus:
    """Corpus.

    Args:
        name: its name
        tasks: mix ratios
    """

    name: str
    tasks: dict[str, float] = field(default_factory=dict)


@dataclass
class Config:
    """A run.

    Args:
        query: words
        out: folder
        optim: optimizer
        data: corpora
        resume: go on
        languages: some
        batch_size: pairs
    """

    query: str
    out: str
    optim: Optim = field(default_factory=Optim)
    data: list[Corpus] = field(default_factory=list)
    resume: bool = False
    languages: list[str] | None = None
    batch_size: int = 3


def parse(*words):
    return cli.parse(Config, list(words), positional=("query",))


def test_yaml_then_command_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("out: here\noptim: {lr: 2}\ndata:\n- {name: coco, tasks: {cmr: 16}}\nlanguages: [en]\n")
    config = parse("a dog", "--config", str(path), "--optim.lr", "3", "--languages", "de", "fr", "--resume")
    assert config == Config("a dog", "here", Optim(3.0), [Corpus("coco", {"cmr": 16.0})], True, ["de", "fr"])
    assert parse("x", "--out", "y", "--batch-size", "7").batch_size == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: x\noptm: {lr: 1}\n", "c.yaml: unknown key optm; did you mean optim?"),
        ("out: x\noptim: {learning: 1, lrr: 2}\n", "unknown key optim.learning"),
        ("out: x\ndata:\n- {name: a, task: {}}\n", "unknown key data.task; did you mean tasks?"),
        ("out: [unclosed\n", "not valid YAML"),
        ("out: x\noptim: 3\n", "optim must be a mapping"),
    ],
)
def test_bad_yaml_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"c\.yaml") as error:
        parse("q", "--config", str(path))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["q", "--out", "x", "--optim.lrr", "1"], "did you mean optim.lr?"),
        (["q", "--out", "x", "--bach-size", "1"], "did you mean batch_size?"),
        (["q", "--out", "x", "--optim.lr", "abc"], "optim.lr"),
        (["q"], "out"),
        (["q", "--out", "x", "--config", "absent.yaml"], "absent.yaml: cannot read"),
    ],
)
def test_bad_words_are_one_clear_line(words, message):
    with pytest.raises(BadInput) as error:
        parse(*words)
    assert message in str(error.value)


def test_saved_config_reads_back_the_same(tmp_path):
    config = parse("q", "--out", "x", "--optim.lr", "5e-5", "--languages", "en")
    cli.save(config, tmp_path / "saved.yaml")
    text = (tmp_path / "saved.yaml").read_text().replace("query: q\n", "")
    (tmp_path / "saved.yaml").write_text(text)
    assert parse("q", "--config", str(tmp_path / "saved.yaml")) == config


@pytest.mark.parametrize(
    "script",
    [
        "pretrain.py",
        "train_itm.py",
        "eval_itm.py",
        *sorted(p.name for p in (ROOT / "scripts").glob("*.py") if p.name != "__init__.py"),
    ],
)
def test_every_command_explains_itself_and_refuses_unknown_options(script):
    path = ROOT / script if (ROOT / script).exists() else ROOT / "scripts" / script
    shown = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, cwd="/")
    assert shown.returncode == 0 and "options:" in shown.stdout, shown.stderr
    refused = subprocess.run([sys.executable, str(path), "--no-such-option", "1"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1, refused.stderr
