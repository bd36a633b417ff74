"""Curves of runs, read from their metrics and drawn."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import cli
from data.errors import BadInput
from optim import figures
from optim.curves import read_curves
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
    plot_runs.main(plot_runs.Options(runs, str(tmp_path / "curves.png"), ["train/cmr/loss"], smooth=4))
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    numbers = json.loads((tmp_path / "curves.json").read_text())
    assert list(numbers) == ["train/cmr/loss"] and list(numbers["train/cmr/loss"]) == ["fp32", "bf16"]  # no paths
    values = numbers["train/cmr/loss"]["bf16"]
    assert values["steps"][0] == 2.5 and len(values["steps"]) == 17
    assert values["values"][0] == pytest.approx(11 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert f"bf16 {11 * sum(1 / n for n in range(17, 21)) / 4:.4g}" in capsys.readouterr().out


def test_recall_is_drawn_by_default_and_one_value_is_a_point(runs):
    read = {run.rpartition("/")[2]: read_curves(run) for run in runs}
    known = list(read["fp32"])
    assert figures.default_metrics(known) == ["val/AR"] and figures.default_metrics(known[:2]) == ["train/cmr/loss"]
    assert figures.default_metrics(["val/de/AR", "val/all/AR", "val/all/TR@1"]) == ["val/all/AR", "val/all/TR@1"]
    figure = figures.draw_curves(read, ["train/cmr/loss", "lr", "val/AR", "val/AR"], "two runs")
    assert figure.get_suptitle() == "two runs" and len(figure.axes) == 4
    labels = [(axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]
    assert labels[0] == ("train/cmr/loss", "updates", "loss") and labels[3] == ("val/AR", "updates", "recall, %")
    assert [line.get_marker() for axis in figure.axes for line in axis.lines] == ["None"] * 4 + ["o"] * 4
    assert len(figure.legends) == 1 and [text.get_text() for text in figure.legends[0].get_texts()] == ["fp32", "bf16"]
    figure.canvas.draw()
    boxes = [axis.get_position() for axis in figure.axes]
    assert boxes[3].width > 2.5 * boxes[0].width  # the last row has one panel, which leaves no empty place


def test_values_that_are_no_numbers_leave_no_empty_panel(runs, tmp_path, capsys):
    (tmp_path / "bf16" / "metrics.jsonl").write_text('{"step": 1, "val/AR": NaN, "grad_norm": Infinity, "note": "x"}\n')
    plot_runs.main(plot_runs.Options(runs, str(tmp_path / "x.png"), ["val/AR", "grad_norm", "note"]))
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["val/AR"]
    said = capsys.readouterr().err
    assert "no value is a finite number: grad_norm, note" in said and "they have no value of val/AR: bf16" in said
    with pytest.raises(BadInput, match="nothing to draw, no value of grad_norm is a finite number"):
        plot_runs.main(plot_runs.Options(runs, str(tmp_path / "x.png"), ["grad_norm"]))


def test_folders_are_given_by_themselves(runs):
    def parse(*words):
        return cli.parse(plot_runs.Options, list(words), ("runs",))

    assert parse("a", "null", "--smooth", "3").runs == ["a", "null"] and parse("--smooth", "3", "2016").runs == ["2016"]
    assert parse("--", "--a", "b").runs == ["--a", "b"]
    with pytest.raises(BadInput, match="required: runs"):
        parse()


def test_what_cannot_be_drawn_is_named(runs, tmp_path):
    with pytest.raises(
        BadInput, match=r"metrics.jsonl: no metric \['val/loss'\]; there are train/cmr/loss, lr, val/AR"
    ):
        plot_runs.main(plot_runs.Options(runs, str(tmp_path / "x.png"), ["val/loss"]))
    with pytest.raises(BadInput, match="must have different names"):
        plot_runs.Options([runs[0], str(tmp_path / "other" / "fp32")])
    with pytest.raises(BadInput, match=r"out: x.json is where the numbers are written"):
        plot_runs.Options(runs, "x.json")
    with pytest.raises(BadInput, match=r"nothing/metrics.jsonl: cannot be read"):
        plot_runs.main(plot_runs.Options([str(tmp_path / "nothing")], str(tmp_path / "x.png")))
    (tmp_path / "fp32" / "metrics.jsonl").write_text('{"step": 1}\n[3]\n')
    with pytest.raises(BadInput, match=r"fp32/metrics.jsonl: line 2: holds a list, expected an object"):
        plot_runs.main(plot_runs.Options(runs, str(tmp_path / "x.png")))
