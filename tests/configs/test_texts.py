"""Texts in settings: what is typed, or stands in a file, is that text and no other value of YAML."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from configs import cli
from data.errors import BadInput
from tests.configs.test_cli import Corpus, Optim, parse


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
