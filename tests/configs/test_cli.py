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


# ---- texts are what was typed ------------------------------------------------------------------------------------


@dataclass
class Texts:
    """Texts.

    Args:
        query: words
        one: required
        maybe: or None
        some: a list
        any: a list, or None
        either: one or a list
        flag: a word of some
        flags: words of some
        number: or None
        optim: optimizer
        data: corpora
    """

    query: str | None = None
    one: str = "one"
    maybe: str | None = "maybe"
    some: list[str] = field(default_factory=list)
    any: list[str] | None = field(default_factory=lambda: ["any"])
    either: str | list[str] = "either"
    flag: Literal["no", "add", "true", "1"] = "add"
    flags: list[Literal["no", "false", "fp16"]] = field(default_factory=list)
    number: int | None = 3
    optim: Optim = field(default_factory=Optim)
    data: list[Corpus] = field(default_factory=list)


def texts(*words):
    return cli.parse(Texts, list(words), positional=("query",))


TYPED = ["no", "null", "Null", "~", "2016", "2024-01-05", "2024-13-45", "1e3", "1_000", "0x1f", "*", "*x", "&x", "!x", "@x", "%x",
         "`x`", "a: b", "a:", "{x}", "{x: 1}", "[x", "x]", "x #1", "#1", "", " ", " x ", "'x'", '"x"', "a=b", "a=b,c", "x,y", "-",
         "-5", "- x", ".inf", "1:30", "<<", "=", "é", "a\nb", "\u2028", "😀"]  # fmt: skip


@pytest.mark.parametrize("word", TYPED)
def test_what_is_typed_for_a_text_is_that_text(word):
    assert texts(word).query == word
    assert texts("--", word).query == word
    assert (texts("--one", word).one, texts(f"--one={word}").one) == (word, word)
    assert (texts("--maybe", word).maybe, texts(f"--maybe={word}").maybe) == (word, word)
    assert texts("--some", "en", word).some == ["en", word]
    assert texts("--any", word).any == texts(f"--any={word}").any == [word]
    assert texts("--either", word, "x").either == [word, "x"]
    config = texts("--one", word, word, "--maybe", word, "--any", word, "en")
    assert config == Texts(word, word, word, [], [word, "en"])


@pytest.mark.parametrize("word", TYPED)
def test_a_saved_text_is_read_back(tmp_path, word):
    config = texts("--one", word, "--maybe", word, "--any", word, "--either", word, "--some", word)
    cli.save(config, tmp_path / "saved.yaml")
    assert texts("--config", str(tmp_path / "saved.yaml")) == config


@pytest.mark.parametrize("scalar", ["no", "2016", "2024-01-05", "2024-13-45", "1e3", "0x1f", "Yes", "1:30", ".inf", "a b"])
def test_a_text_in_a_file_is_what_stands_there(tmp_path, scalar):
    (tmp_path / "c.yaml").write_text(
        f"one: {scalar}\nmaybe: {scalar}\nany: [en, {scalar}]\nsome: [null, {scalar}]\neither: {scalar}\nflag: no\n"
        f"flags: [no, false]\ndata: [{{name: {scalar}, tasks: {{cmr: 1}}}}]\n"
    )
    config = texts("--config", str(tmp_path / "c.yaml"))
    expected = Texts(None, scalar, scalar, ["null", scalar], ["en", scalar], scalar, "no", ["no", "false"])
    expected.data = [Corpus(scalar, {"cmr": 1.0})]
    assert config == expected


def test_none_is_null_in_a_file_and_no_name_on_the_command_line(tmp_path):
    (tmp_path / "c.yaml").write_text("one: null\nmaybe: null\nany:\nnumber: ~\n")
    config = texts("--config", str(tmp_path / "c.yaml"))
    assert (config.one, config.maybe, config.any, config.number) == ("null", None, None, None)
    config = texts("--maybe", "x", "--any", "en", "--no-maybe", "--no-any", "--no-number", "a dog")
    assert (config.query, config.maybe, config.any, config.number) == ("a dog", None, None, None)
    assert texts("--no-maybe", "--maybe", "null").maybe == "null"
    assert texts("--number", "null").number is None
    assert parse("a dog", "--out", "x", "--resume", "--no-resume").resume is False
    with pytest.raises(BadInput, match="unknown option --no-one"):
        texts("--no-one")


def test_the_last_one_counts_whether_typed_or_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("one: yes\nany: [no]\noptim: {lr: 1e-3}\n")
    file = str(tmp_path / "c.yaml")
    assert (texts("--one", "null", "--config", file).one, texts("--config", file, "--one", "null").one) == ("yes", "null")
    assert (texts("--any", "x", "--config", file).any, texts("--config", file, "--any", "x").any) == (["no"], ["x"])
    assert texts("--optim", "{lr: 2}").optim.lr == 2
    assert texts("--data", "[{name: no, tasks: {cmr: 2}}]").data == [Corpus("no", {"cmr": 2.0})]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--some", "[en, no]"], ["en", "no"]),
        (["--some=[en,2016,null]"], ["en", "2016", "null"]),
        (["--some", '["a: b", "\\ud83d\\ude00"]'], ["a: b", "😀"]),
        (["--some", "[]"], []),
        (["--some", "[x"], ["[x"]),
        (["--some", "[[x]]"], ["[[x]]"]),
    ],
)
def test_a_list_in_brackets_holds_its_words_as_typed(words, expected):
    assert texts(*words, "--one", "x").some == expected
    assert texts(*[word.replace("--some", "--either") for word in words]).either == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: [a]", "c.yaml: one: expected a text, found [a]"),
        ("maybe: {a: b}", "c.yaml: maybe: expected a text, found {a: b}"),
        ("one:", "c.yaml: one: expected a text, found nothing"),
        ("any: no", "c.yaml: any: expected a list, as [no], found 'no'"),
        ("any: [[a]]", "c.yaml: any: expected a text, found [a]"),
        ("one: a\none: b", "c.yaml: one stands there twice"),
        ("optim: {lr: 1, lr: 2}", "c.yaml: optim.lr stands there twice"),
        ("no: a", "c.yaml: unknown key no"),
        ("\xff", "c.yaml: unknown key"),
    ],
)
def test_what_is_no_text_is_refused_with_its_key(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text + (": 1" if text == "\xff" else ""))
    with pytest.raises(BadInput) as error:
        texts("--config", str(tmp_path / "c.yaml"))
    assert message in str(error.value)


def test_merged_and_repeated_groups_of_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("data:\n- &a {name: no, tasks: {cmr: 1}}\n- {<<: *a, name: 'yes'}\n- *a\n")
    found = texts("--config", str(tmp_path / "c.yaml")).data
    assert found == [Corpus(name, {"cmr": 1.0}) for name in ("no", "yes", "no")]


@dataclass
class Source:
    """A source.

    Args:
        name: or None
        places: or None
    """

    name: str | None = None
    places: list[str] | None = None


@dataclass
class Sources:
    """Sources.

    Args:
        sources: of them
    """

    sources: list[Source] = field(default_factory=list)


@pytest.mark.parametrize("word", ["null", "~", "Null", "no", "2016"])
def test_a_quoted_null_in_a_list_of_groups_is_a_text(tmp_path, word):
    value = f"[{{name: '{word}', places: ['{word}', en]}}, {{name: null, places: null}}, {{name: \"{word}\"}}]"
    (tmp_path / "c.yaml").write_text(f"sources: {value}\n")
    expected = [Source(word, [word, "en"]), Source(None, None), Source(word)]
    assert cli.parse(Sources, ["--sources", value]).sources == expected
    assert cli.parse(Sources, ["--config", str(tmp_path / "c.yaml")]).sources == expected
    found = cli.parse(Sources, ["--config", str(tmp_path / "c.yaml"), "--sources+", f"[{{name: '{word}'}}, {{}}]"])
    assert found.sources == [*expected, Source(word), Source()]
    cli.save(found, tmp_path / "saved.yaml")
    assert cli.parse(Sources, ["--config", str(tmp_path / "saved.yaml")]) == found
    with pytest.raises(BadInput, match=r"sources.places: expected a list, found 'null'"):
        cli.parse(Sources, ["--sources", "[{places: 'null'}]"])


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
