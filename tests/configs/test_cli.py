"""Configs: YAML, command line, unknown keys, exit status."""

import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

import train_itm
from configs import cli
from data.errors import BadInput
from optim.tasks.pretraining import PretrainConfig

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
    other = parse("a dog", "--config", str(path), "--data", "[{name: vg}]")
    assert other.data == [Corpus("vg")]  # nothing of the file's
    (tmp_path / "d.yaml").write_text("data: [{name: cc}]\n")
    assert parse("a dog", "--config", str(path), "--config", str(tmp_path / "d.yaml")).data == [Corpus("cc")]
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
        (["q", "--out", "x", "--optim.lrr", "1"], "unknown option --optim.lrr; did you mean --optim.lr?"),
        (["q", "--out", "x", "--bach-size", "1"], "unknown option --bach-size; did you mean --batch-size?"),
        (["q", "--out", "x", "--optim.lr", "abc"], "optim.lr: expected a number, found abc (see --help)"),
        (["q", "--out", "x", "--batch-size", "1.5"], "batch_size: expected a whole number, found 1.5 (see --help)"),
        (["q", "--out", "x", "--resume=3"], "resume: expected true or false, found 3 (see --help)"),
        (["q", "--out", "x", "--data.name", "a"], "--data.name: data is a list; give all of it, as --data '[{name: ...}]', or in the file of --config"),
        (["q", "--out", "x", "--data.tasks={cmr: 1}"], "--data.tasks: data is a list; give all of it, as --data '[{tasks: ...}]'"),
        (["q", "--out", "x", "--data", "[{name: a, tasks: 3}]"], "data"),
        (["q"], "the following arguments are required: --out (see --help)"),
        (["--out", "x"], "the following arguments are required: query (see --help)"),
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
    ("words", "expected"),
    [
        (["--resume", "a dog"], {"query": "a dog", "resume": True}),
        (["--resume", "false", "a dog"], {"query": "a dog", "resume": False}),
        (["a dog", "--resume=false", "--batch-size=7"], {"query": "a dog", "resume": False, "batch_size": 7}),
        (["a dog", "--languages", "en", "de", "--resume"], {"languages": ["en", "de"], "resume": True}),
        (["a dog", "--languages", "[en, de]"], {"languages": ["en", "de"]}),
        (["--batch-size", "7", "a dog"], {"query": "a dog", "batch_size": 7}),
    ],
)
def test_the_customary_short_forms(words, expected):
    config = parse("--out", "x", *words)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("script", "word", "nearest"),
    [
        (train_itm.CONFIGS, "--learning-rate", "optim.lr"),
        (train_itm.CONFIGS, "--lr", "optim.lr"),
        (train_itm.CONFIGS, "--weight_decay", "optim.weight_decay"),
        (train_itm.CONFIGS, "--warmup", "optim.warmup_ratio"),
        (train_itm.CONFIGS, "--batch", "batch_size"),
        (train_itm.CONFIGS, "--train_batch_size", "batch_size"),
        (train_itm.CONFIGS, "--num_epochs", "epochs"),
        (train_itm.CONFIGS, "--epoch", "epochs"),
        (train_itm.CONFIGS, "--gradient_accumulation_steps", "grad_accumulation"),
        (train_itm.CONFIGS, "--optim.learning_rate", "optim.lr"),
        (train_itm.CONFIGS, "--pretrained", "model.init"),
        (PretrainConfig, "--train-batch-size", "tokens_per_batch"),
        (PretrainConfig, "--max-steps", "num_steps"),
        (PretrainConfig, "--epochs", "num_steps"),
    ],
)
def test_suggestions_know_the_fields_words(tmp_path, script, word, nearest):
    with pytest.raises(BadInput) as error:
        cli.parse(script, [word, "1"])
    assert str(error.value).endswith(f"; did you mean --{nearest.replace('_', '-')}? (see --help)")
    (tmp_path / "c.yaml").write_text(f"{word.lstrip('-').replace('-', '_').replace('optim.', '')}: 1\n")
    with pytest.raises(BadInput, match=nearest.replace(".", r"\.")):
        cli.parse(script, ["--config", str(tmp_path / "c.yaml")])


# ---- a setting that chooses the config class ---------------------------------------------------------------------


@dataclass
class Towers:
    """Towers.

    Args:
        kind: which
        init: folder
        project_dim: width
    """

    kind: Literal["towers", "uniter"] = "towers"
    init: str | None = None
    project_dim: int = 768


@dataclass
class OneEncoder:
    """One encoder.

    Args:
        kind: which
        init: folder
    """

    kind: Literal["towers", "uniter"] = "uniter"
    init: str | None = None


@dataclass
class Retrieval:
    """Train towers.

    Args:
        model: weights
        siblings: mask or keep
        optim: optimizer
    """

    model: Towers = field(default_factory=Towers)
    siblings: str = "mask"
    optim: Optim = field(default_factory=Optim)


@dataclass
class Reranking:
    """Train a re-ranker.

    Args:
        model: weights
        margin: of the loss
        optim: optimizer
    """

    model: OneEncoder = field(default_factory=OneEncoder)
    margin: float = 0.2
    optim: Optim = field(default_factory=Optim)


TASKS = cli.Choice("model.kind", {"towers": Retrieval, "uniter": Reranking})


@pytest.mark.parametrize("words", [["--model", "uniter"], ["--model=uniter"], ["--model.kind", "uniter"],
                                   ["--model.kind=uniter"], ["--config", "{uniter}"], ["--config={uniter}"],
                                   ["--config", "{towers}", "--model", "uniter"],
                                   ["--config", "{plain}", "--model", "uniter"],
                                   ["--model", "uniter", "--config", "{plain}"]])  # fmt: skip
def test_a_setting_chooses_the_config_class(tmp_path, words):
    for name, text in (("uniter", "model: {kind: uniter}"), ("towers", "model: {kind: towers}"), ("plain", "optim: {lr: 2}")):
        (tmp_path / name).write_text(text)
    files = {name: str(tmp_path / name) for name in ("uniter", "towers", "plain")}
    config = cli.parse(TASKS, [word.format(**files) for word in words] + ["--margin", "0.5", "--model.init", "here"])
    assert config == Reranking(OneEncoder("uniter", "here"), 0.5, config.optim)
    assert cli.parse(TASKS, ["--model.project-dim", "7"]) == Retrieval(Towers(project_dim=7))  # the first, if none is named
    assert cli.parse(TASKS, ["--model", "towers", "--siblings", "keep"]).siblings == "keep"
    cli.save(config, tmp_path / "saved.yaml")
    assert cli.parse(TASKS, ["--config", str(tmp_path / "saved.yaml")]) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "uniter", "--siblings", "keep"],
         "unknown option --siblings; it is read with model.kind towers, not with uniter"),
        (["--model", "uniter", "--model.project-dim", "7"],
         "unknown option --model.project-dim; it is read with model.kind towers, not with uniter"),
        (["--margin", "1"], "unknown option --margin; it is read with model.kind uniter, not with towers"),
        (["--model", "uniter", "--margn", "1"], "unknown option --margn; did you mean --margin?"),
        (["--model.kind", "bert"], "model.kind: expected towers or uniter, found bert"),
        (["--model.kind"], "expected one argument"),
        (["--model", "{kind: uniter}"], "model.kind: give it by itself, as --model.kind uniter"),
    ],
)  # fmt: skip
def test_a_setting_of_another_class_is_unknown_on_the_command_line(words, message):
    with pytest.raises(BadInput) as error:
        cli.parse(TASKS, words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {kind: uniter}\nsiblings: keep", "unknown key siblings; it is read with model.kind towers, not with uniter"),
        ("model: {kind: uniter, project_dim: 7}",
         "unknown key model.project_dim; it is read with model.kind towers, not with uniter"),
        ("margin: 1", "unknown key margin; it is read with model.kind uniter, not with towers"),
        ("model: {kind: uniter}\nmargn: 1", "unknown key margn; did you mean margin?"),
        ("model: {kind: [bert]}", "model.kind: expected towers or uniter, found [bert]"),
        ("model: uniter", "model must be a mapping of settings, found 'uniter'"),
        ("- model", "must be a mapping of settings"),
    ],
)  # fmt: skip
def test_a_setting_of_another_class_is_unknown_in_the_file(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as error:
        cli.parse(TASKS, ["--config", str(path)])
    assert message in str(error.value)
    assert str(path) in str(error.value) or "model.kind: expected" in message


def test_help_is_of_the_chosen_class_and_names_the_others(capsys):
    for words, shown, hidden in (([], "--siblings", "--margin"), (["--model", "uniter"], "--margin", "--siblings")):
        with pytest.raises(SystemExit):
            cli.parse(TASKS, [*words, "--help"])
        text = capsys.readouterr().out
        assert shown in text and hidden not in text
        assert f"--model {'towers' if words else 'uniter'} --help" in text


def test_every_command_refuses_unknown_options_in_one_line(command_line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command_line, "--no-such-option", "1"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / command_line), run_name="__main__")
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("(see --help)\n"), error


def test_a_command_runs_from_any_folder():
    shown = subprocess.run([sys.executable, ROOT / "scripts/compare.py", "--help"], capture_output=True, text=True, cwd="/")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: compare.py A B [settings]\n"), shown.stderr


# ---- former names ------------------------------------------------------------------------------------------------


@dataclass
class Renamed:
    """Settings two of which had other names.

    Args:
        out: folder
        workers: processes
        items: of them
    """

    out: str | None = None
    workers: int = 0
    items: list["RenamedItem"] = field(default_factory=list)


@dataclass
class RenamedItem:
    """An item.

    Args:
        out: folder
    """

    out: str = ""


def test_former_names_are_read_on_the_command_line_and_in_files(tmp_path):
    (tmp_path / "old.yaml").write_text("output_dir: no\nnum_workers: 3\nitems: [{output_dir: 2016}]\n")
    (tmp_path / "new.yaml").write_text("out: no\nworkers: 3\nitems: [{out: 2016}]\n")
    expected = Renamed("no", 3, [RenamedItem("2016")])
    for name in ("old", "new"):
        assert cli.parse(Renamed, ["--config", str(tmp_path / f"{name}.yaml")]) == expected
    assert cli.parse(Renamed, ["--output-dir", "null", "--num-workers=2"]) == Renamed("null", 2)
    assert cli.parse(Renamed, ["--output_dir", "x", "--out", "y", "--workers", "1", "--num_workers", "2"]) == Renamed("y", 2)
    assert cli.parse(Renamed, ["--config", str(tmp_path / "old.yaml"), "--no-output-dir"]).out is None
    (tmp_path / "both.yaml").write_text("output_dir: a\nout: b\n")
    with pytest.raises(BadInput, match=r"both.yaml: out stands there twice"):
        cli.parse(Renamed, ["--config", str(tmp_path / "both.yaml")])
    (tmp_path / "merged.yaml").write_text("items: [&a {output_dir: x}, {<<: *a}, {<<: *a, out: y}]\n")
    found = cli.parse(Renamed, ["--config", str(tmp_path / "merged.yaml")])
    assert found.items == [RenamedItem("x"), RenamedItem("x"), RenamedItem("y")]


def test_a_class_that_has_a_former_name_keeps_it():
    @dataclass
    class Own:
        """Own.

        Args:
            out: folder
            output_dir: another one
        """

        out: str = ""
        output_dir: str = ""

    assert cli.parse(Own, ["--output-dir", "x"]) == Own("", "x")
