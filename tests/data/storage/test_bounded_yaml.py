"""YAML whose aliases or brackets stand for more than its size warrants is refused at once; what people write is read as ever."""

import pytest
import yaml

from configs.yaml_file import parse_mapping, read_mapping
from data.errors import BadInput
from data.storage import bounded_yaml
from data.storage.bounded_yaml import BoundedLoader

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {k0: 1}\n" + "".join(f"a{n}: &a{n} {{k{n}: 1, <<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {b: 1, c: [1, 2]}\nd: *x\ne: {<<: *x, b: 2}\nf: [*x, *x]\n",
        "a: " + "[" * 40 + "]" * 40,
        "- 1\n- [no, 1e3, 2024-01-05]\n",
        "",
    ],
)
def test_what_people_write_is_read_as_ever(text):
    assert yaml.load(text, BoundedLoader) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 200,000 values"),
        (MERGES, "more than 200,000 values"),
        ("a: " + "[" * 1_000_000, "more than 50 levels"),
        ("- " * 100_000 + "x", "more than 50 levels"),
        ("a: " + "{b: " * 60 + "}" * 60, "more than 50 levels"),
        ("a: &x [1, *x]", "an alias inside of what it names"),
        ("a: &x {b: *x}", "an alias inside of what it names"),
        ("# long\n" * 700_000, "characters, at most"),
    ],
)
def test_what_stands_for_too_much_is_refused(tmp_path, text, message):
    with pytest.raises(yaml.YAMLError, match=message):
        yaml.load(text, BoundedLoader)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_mapping(str(tmp_path / "config.yaml"))


def test_values_are_counted_as_they_are_copied(monkeypatch):
    monkeypatch.setattr(bounded_yaml, "MOST_VALUES", 16)
    text = "a: &x [1, 2, 3]\nb: *x\nc: *x\n"  # 1 mapping, 3 keys, 4 values of the list, twice an alias and its 4
    parse_mapping(text.replace("c: *x", "c: 1"), "")
    with pytest.raises(BadInput, match="more than 16 values"):
        parse_mapping(text, "")
