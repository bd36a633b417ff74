"""Curves of runs, read from their metrics and drawn."""

import json

import numpy as np
import pytest
from PIL import Image

from data.errors import BadInput
from scripts import plot_runs


@pytest.fixture
def runs(tmp_path):
    for name, factor in (("fp32", 1.0), ("bf16", 1.1)):
        (tmp_path / name).mkdir()
        lines = [{"step": n, "train/cmr/loss": factor * 10 / n, "lr": 1e-4} for n in range(1, 21)]
        lines.append({"step": 20, "val/AR": 50.0})
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(tmp_path / "fp32"), str(tmp_path / "bf16")]


def test_curves_are_drawn_and_written_as_numbers(runs, tmp_path, capsys):
    plot_runs.main(plot_runs.Options(runs, str(tmp_path / "curves.png"), smooth=4))
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    numbers = json.loads((tmp_path / "curves.json").read_text())
    assert list(numbers) == ["train/cmr/loss"] and list(numbers["train/cmr/loss"]) == ["fp32", "bf16"]  # no paths
    values = numbers["train/cmr/loss"]["bf16"]
    assert values["steps"][0] == 2.5 and len(values["steps"]) == 17
    assert values["values"][0] == pytest.approx(11 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert f"bf16 {11 * sum(1 / n for n in range(17, 21)) / 4:.4g}" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_named(runs, tmp_path):
    with pytest.raises(
        BadInput, match=r"metrics.jsonl: no metric \['val/loss'\]; there are train/cmr/loss, lr, val/AR"
    ):
        plot_runs.main(plot_runs.Options(runs, str(tmp_path / "x.png"), ["val/loss"]))
    with pytest.raises(BadInput, match="must have different names"):
        plot_runs.Options([runs[0], str(tmp_path / "other" / "fp32")])
    with pytest.raises(BadInput, match=r"nothing/metrics.jsonl: cannot be read"):
        plot_runs.main(plot_runs.Options([str(tmp_path / "nothing")], str(tmp_path / "x.png")))
    (tmp_path / "fp32" / "metrics.jsonl").write_text('{"step": 1}\n[3]\n')
    with pytest.raises(BadInput, match=r"fp32/metrics.jsonl: line 2 is no line of metrics"):
        plot_runs.main(plot_runs.Options(runs, str(tmp_path / "x.png")))
