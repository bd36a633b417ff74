"""scripts/bench_data.py runs and says what it measured; the numbers themselves are not asserted."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from configs import cli
from data.errors import BadInput
from data.storage.text_files import write_json
from scripts import bench_data
from scripts.benchmarking import synthetic_databases, whole_records
from scripts.benchmarking.table_memory import run_processes


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


def test_reading_is_measured_in_turns_with_another_checkout(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scripts.benchmarking.whole_records.CASES", {"36 boxes, plain": (36, False), "few, packed": (None, True)})
    other = Path(bench_data.__file__).parents[1]
    monkeypatch.chdir(tmp_path.parent)  # as one types it: the readers run in the folder of their checkout
    words = ["--out", tmp_path.name, "--records", "12", "--batch", str(2**63 - 1), "--rounds", "1", "--seconds", "0.01", "--against", str(other)]
    bench_data.main(cli.parse(bench_data.Options, words))
    cases = json.loads((tmp_path / "bench_reading.json").read_text())["cases"]
    assert list(cases) == ["36 boxes, plain", "few, packed"]
    for found in cases.values():
        assert found["this"]["times_as_fast"]["median"] == 1 and found["other"]["times_as_fast"]["median"] > 0
        assert found["this"]["gb_per_s"] > 0 and found["this"]["examples_per_s"]["median"] > 0
    assert "few, packed                 other" in capsys.readouterr().out
    damaged = tmp_path / "whole/few, packed/feat_th0.2_max100_min10_compressed/data.mdb"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(BadInput, match=r"/whole/few, packed: its reader, of \S+, ended with status 1"):
        bench_data.main(cli.parse(bench_data.Options, words))
    with pytest.raises(BadInput, match="is no checkout of this repository"):
        bench_data.Options(out=str(tmp_path), against=str(tmp_path))


@pytest.mark.parametrize(("module", "make", "table"), [(synthetic_databases, "make_synthetic_databases", "txt/id2len.json"), (whole_records, "make_whole_databases", "whole/txt/id2len.json")])
def test_a_database_that_was_left_half_made_is_not_taken_for_the_one_before(tmp_path, monkeypatch, module, make, table):
    def build(size):
        getattr(module, make)(tmp_path, *[size] * (2 if module is synthetic_databases else 1))

    def killed(path, value):
        if value:  # the last that is written: what is made
            raise KeyboardInterrupt
        write_json(path, value)

    monkeypatch.setattr(whole_records, "CASES", {"few, packed": (10, True)})
    build(4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_json", killed)
        build(9)
    build(4)
    assert len(json.loads((tmp_path / table).read_text())) == 4


def refuses(number, barrier):
    if number == 1:
        raise BadInput("x.json: damaged")
    barrier.wait()


def is_interrupted(number, barrier):
    if number == 0:
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)


def dies(number, barrier):
    if number == 1:
        os._exit(7)
    barrier.wait()


@pytest.mark.parametrize("target, message", [(refuses, "^x.json: damaged$"), (dies, "ended with status 7")])
def test_a_process_that_does_not_answer_ends_the_measurement(target, message):
    with pytest.raises(BadInput, match=message):
        run_processes(target, 2)
    assert not multiprocessing.active_children()


def test_databases_of_others_are_not_replaced(tmp_path):
    (tmp_path / "img/flickr30k").mkdir(parents=True)
    with pytest.raises(BadInput, match="/img: was not made by this benchmark"):
        bench_data.main(cli.parse(bench_data.Options, ["--out", str(tmp_path), "--captions", "70", "--images", "10"]))
    assert (tmp_path / "img/flickr30k").is_dir()


def test_ctrl_c_ends_the_processes_of_a_measurement():
    with pytest.raises(KeyboardInterrupt):
        run_processes(is_interrupted, 2)
    assert not multiprocessing.active_children()
