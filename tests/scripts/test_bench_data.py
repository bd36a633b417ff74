"""scripts/bench_data.py runs and says what it measured; the numbers themselves are not asserted."""

import json

from configs import cli
from scripts import bench_data


def test_every_state_of_a_process_is_measured_with_columns_and_with_dicts(tmp_path, capsys):
    words = ["--out", str(tmp_path), "--captions", "300", "--images", "60", "--processes", "1", "--workers", "0", "--batches", "2"]
    bench_data.main(cli.parse(bench_data.Options, words))
    report = json.loads((tmp_path / "bench_data.json").read_text())
    (process,) = report["processes"]
    shown = capsys.readouterr().out
    for state in ("imports", "open", "training", "worker"):
        assert process[state]["rss"] > 0 and f" {state} " in shown
    assert report["build"]["seconds"] > 0
    made = (tmp_path / "made.json").stat().st_mtime_ns
    bench_data.main(cli.parse(bench_data.Options, [*words, "--dicts", "true"]))
    (process,) = json.loads((tmp_path / "bench_dicts.json").read_text())["processes"]
    assert process["open"]["rss"] > 0 and "training" not in process
    assert (tmp_path / "made.json").stat().st_mtime_ns == made  # the database of the first call
