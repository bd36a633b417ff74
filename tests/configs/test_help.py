"""The help of every command: short, spelled as one types it, with examples that can be parsed."""

import dataclasses
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from configs import cli
from configs.help import Page, rows_of, short_help, whole_help
from data.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


def help_of(path, monkeypatch, capsys, *words):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [path, *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert left.value.code == 0
    return capsys.readouterr().out


def settings_in(text):
    """What stands at the left of the table."""
    table = re.search(r"^settings.*?:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)[1]
    return [line.split()[0].rstrip(",") for line in table.splitlines() if line[2] != " "]


def parts_of_call(path, monkeypatch):
    """What a command gives to `cli.run`: config class or choice, positional names, page."""
    found = {}
    monkeypatch.setattr(cli, "run", lambda main, config, positional=(), often="": found.update(
        config=config, positional=positional, often=often, main=main))  # fmt: skip
    runpy.run_path(str(ROOT / path), run_name="__main__")
    return found


def test_help_of_every_command_fits_on_a_screen(command_line, monkeypatch, capsys):
    text = help_of(command_line, monkeypatch, capsys, "--help")
    lines = text.splitlines()
    assert len(lines) <= 45, text
    assert lines[0].startswith(f"usage: {Path(command_line).name} ")
    start = lines.index("examples:") + 1
    examples = [line for line in lines[start : lines.index("", start)] if not line.startswith("      ")]
    assert len(examples) == 3, examples
    names = settings_in(text)
    assert len(names) == len(set(names)) <= 16  # with --config
    assert not [name for name in names if name.startswith("--") and "_" in name], names
    assert f"{Path(command_line).name} --help-all" in text
    assert "null" not in text.lower().split()


def test_the_settings_that_help_shows_exist_and_are_explained(command_line, monkeypatch):
    call = parts_of_call(command_line, monkeypatch)
    classes = call["config"].classes.values() if isinstance(call["config"], cli.Choice) else [call["config"]]
    rows = [{row.name: row for row in rows_of(each)} for each in classes]
    assert [name for name in call["often"].split() if not any(name in each for each in rows)] == []
    assert [row.name for each in rows for row in each.values() if not row.text] == []


def test_help_all_has_every_setting_once(command_line, monkeypatch, capsys):
    call = parts_of_call(command_line, monkeypatch)
    config = next(iter(call["config"].classes.values())) if isinstance(call["config"], cli.Choice) else call["config"]
    monkeypatch.undo()
    text = help_of(command_line, monkeypatch, capsys, "--help-all").partition("\n\n")[2]  # without the usage
    for row in rows_of(config):
        if not row.in_list and not dataclasses.is_dataclass(row.kind) and row.name not in call["positional"]:
            typed = f"--{row.name.replace('_', '-')}"
            assert len(re.findall(rf"^  {re.escape(typed)}[ ,\n]", text, re.MULTILINE)) == 1, typed
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert len(lines) == len(set(lines)), "a title stands there twice"


def test_the_examples_can_be_parsed(command_line, monkeypatch):
    """Each command of the docstrings, without running it; of those of ours that name no file to be filled in."""
    main = parts_of_call(command_line, monkeypatch)["main"]
    for example in Page(main.__globals__["__doc__"]).examples():
        words = shlex.split(example.replace("\\\n", " "), comments=True)
        at = next((n for n, word in enumerate(words) if word.endswith(".py")), None)
        if at is None or "..." in words or {"&&", "|"} & set(words):
            continue
        call = parts_of_call(words[at], monkeypatch)
        arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in words[at + 1 :]]
        try:
            cli.parse(call["config"], arguments, call["positional"])
        except BadInput as error:
            fitting = ("is no checkout", "is no working tree", "no picture file is there")  # no such folders are here
            assert any(part in str(error) for part in fitting), (example, error)


# ---- the texts themselves --------------------------------------------------------------------------------------------


@dataclass
class Inner:
    """Inner.

    Args:
        lr_peak: its rate; see `lr_peak`
        rates: two of them
    """

    lr_peak: float = 5e-5
    rates: tuple[float, float] = (0.9, 0.98)


@dataclass
class Item:
    """An item.

    Args:
        name: of it
    """

    name: str


@dataclass
class Config:
    """Do things.

    A further paragraph.

    Args:
        query: words
        out: folder (needs max_len)
        max_len: tokens. A second sentence
        kind: which
        resume: go on
        verify: check all
        items: some
        inner: group
        words: some
    """

    query: str | None
    out: str
    max_len: int = 3
    kind: Literal["a", "b"] = "a"
    resume: bool = True
    verify: bool = False
    items: list[Item] = field(default_factory=list)
    inner: Inner = field(default_factory=lambda: Inner(1e-3))
    words: list[str] | None = None


PAGE = Page("""Do things
in two lines.

python x.py --out a \\
    --max-len 3
python x.py b      # twice

Afterwards.
""", "inner.lr_peak kind")


def test_the_text_of_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert short_help("x.py", PAGE, Config, ("query",), ["last"]).splitlines() == """\
usage: x.py QUERY --out OUT [settings]

Do things in two lines.

examples:
  python x.py --out a \\
      --max-len 3
  python x.py b      # twice

settings that people change:
  QUERY                       words (required)
  --out OUT                   folder (needs max-len) (required)
  --inner.lr-peak X           its rate; see `lr-peak` (default: 0.001)
  --kind {a,b}                which (default: a)
  --config FILE               YAML file with any of the settings

all 10 settings: x.py --help-all
last""".splitlines()
    text = whole_help("x.py", PAGE, Config, ("query",), [])
    for line in ("A further paragraph.", "Afterwards.", "  --max-len N                 tokens. A second sentence (default: 3)",
                 "  --resume, --no-resume       go on", "  --verify                    check all", "  --words WORDS ...           some",
                 "  --inner.rates [X,X]         two of them (default: [0.9,0.98])", "inner: group",
                 "--items YAML, a list of groups of keys: some", "  name NAME                   of it"):  # fmt: skip
        assert line in text.splitlines(), (line, text)
    assert text.count("Do things") == 1


def test_help_comes_before_what_is_wrong_or_missing(capsys):
    for words in (["--help"], ["-h"], ["--help-all"], ["--nonsense", "--help"]):
        with pytest.raises(SystemExit) as left:
            cli.parse(Config, words, ("query",), PAGE)
        assert left.value.code == 0 and "Do things" in capsys.readouterr().out
