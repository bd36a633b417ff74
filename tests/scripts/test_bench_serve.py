"""The load benchmark, on a tiny index; and that it would see a wrong answer."""

import json

import numpy as np

from scripts import bench_serve
from scripts.benchmarking.serving_galleries import ServedGallery
from tests.gallery import command

TINY = {
    "images": 300, "hidden-size": 32, "num-hidden-layers": 1, "num-attention-heads": 2, "intermediate-size": 32,
    "vocab-size": 60, "dim": 16, "words": 4,
}  # fmt: skip


def test_every_answer_is_compared_while_the_index_changes(tmp_path):
    sizes = [word for name, value in TINY.items() for word in (f"--sizes.{name}", value)]
    mixed = ["--mixed.gallery", "drawn", "--mixed.minutes", 0.05, "--mixed.update-every", 0.7, "--mixed.clients", 4, "--mixed.malformed", 0.5]
    words = ["--galleries", "drawn", "--clients", 2, "--seconds", 0.5, "--rounds", 1, "--work", tmp_path / "work"]
    command(bench_serve, *words, "--out", tmp_path / "out.json", *sizes, *mixed)
    found = json.loads((tmp_path / "out.json").read_text())
    (row,) = found["galleries"][0]["loads"]
    assert row["clients"] == 2 and row["times"] > 0
    for each in (row["together"], row["one at a time"], found["mixed"]):
        assert each["answers"] > 0 and each["wrong"] == 0, each["examples"]
        assert not [status for status in each["statuses"] if status.startswith("5") and status != "503"]
    assert found["mixed"]["statuses"]["400"] and found["mixed"]["updates"] and found["mixed"]["memory"][0]["own_bytes"]
    assert (tmp_path / "out.png").exists() and not (tmp_path / "work").exists()


def test_a_wrong_answer_is_seen(tmp_path):
    scores = np.array([[3.0, 2.0, 1.0, 0.0]])
    gallery = ServedGallery("g", [], tmp_path, "", ["a"], ["a", "b", "c", "d"], scores)

    def is_right(*found, absent=None):
        return gallery.is_right(0, 2, json.dumps({"results": [[{"id": name, "score": score} for name, score in found]]}).encode(), absent)

    assert is_right(("a", 3.0), ("b", 2.0)) and not is_right(("a", 3.0), ("b", 2.0), absent=np.array([0]))
    assert is_right(("b", 2.0), ("c", 1.0), absent=np.array([0])) and not is_right(("b", 2.0), ("c", 1.0))
    for wrong in ([("a", 3.0)], [("a", 3.0), ("a", 3.0)], [("a", 3.0), ("c", 1.0)], [("a", 3.0), ("b", 2.5)], [("b", 2.0), ("a", 3.0)]):
        assert not is_right(*wrong)
