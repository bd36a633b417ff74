"""What types of settings are called."""

from typing import Literal

import pytest

from configs.settings import current_name, described


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int | None, "a whole number"),
        (float | Literal["learned"] | None, "a number or learned"),
        (Literal["fp32", "bf16", "fp16"], "fp32, bf16 or fp16"),
        (tuple[float, float], "a list, as [..., ...]"),
        (str | list[str], "a text or a list, as [...]"),
        (dict[str, float], "YAML"),
    ],
)
def test_types_are_described_in_words(kind, words):
    assert described(kind) == words


def test_names_of_today():
    valid = {"out", "optim.workers", "num_workers_of_it"}
    assert [current_name(name, valid) for name in ("output_dir", "optim.num_workers", "num_workers", "other", "out")] == [
        "out", "optim.workers", "num_workers", "other", "out",
    ]  # fmt: skip
    assert current_name("output_dir", {"out", "output_dir"}) == "output_dir"
