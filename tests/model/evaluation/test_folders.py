"""Where evaluations stand, and how scripts/compare.py finds them."""

import os
from shutil import copytree

import pytest

import eval_itm
from configs import cli
from data.errors import BadInput
from model.evaluation.folders import evaluations_folder, find_results
from scripts import compare


def make_run(folder, steps=(5, 10)):
    for step in steps:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "last").symlink_to("checkpoints/step-00000010")
    (folder / "best").symlink_to("checkpoints/step-00000005")
    return folder


def write(folder):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    return folder / "results.json"


def test_a_checkpoint_of_a_run_is_evaluated_in_the_runs_folder(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name, step in (("best", 5), ("last", 10), ("checkpoints/step-00000010", 10)):
        assert str(evaluations_folder(f"run/{name}")) == f"run/eval/step-{step:08d}"
        assert evaluations_folder(tmp_path / "run" / name) == tmp_path / f"run/eval/step-{step:08d}"
    monkeypatch.chdir(tmp_path / "run")
    assert str(evaluations_folder("best")) == "eval/step-00000005"
    (tmp_path / "mine").symlink_to("run/best")
    assert evaluations_folder(tmp_path / "mine") == tmp_path / "run/eval/step-00000005"


def test_a_checkpoint_of_no_run_is_evaluated_beside_its_weights(tmp_path):
    for name in ("model", "checkpoints/step-00000005", "run/checkpoints/copy"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        assert evaluations_folder(tmp_path / name) == tmp_path / name / "eval"
    assert evaluations_folder("./no/such").as_posix() == "no/such/eval"
    assert evaluations_folder("user/name@v1").as_posix() == "eval/user--name@v1"  # of the Hugging Face hub


def test_a_run_means_the_evaluation_of_its_best_checkpoint(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(BadInput, match=r"run: no results.json in it, nor in .*run/eval/step-00000005; evaluate with eval_itm.py"):
        find_results(run)
    last = write(run / "eval/step-00000010/test")
    assert find_results(run) == find_results(run / "last") == last  # the only one
    best = write(run / "eval/step-00000005/test")
    assert find_results(run) == find_results(run / "best") == find_results(run / "eval/step-00000005") == best
    assert find_results(run / "last") == find_results(run / "checkpoints/step-00000010") == last
    assert find_results(best) == find_results(best.parent) == best
    write(run / "eval/step-00000005/val")
    with pytest.raises(BadInput, match=r"run: holds 2 evaluations, .*/test, .*/val; name one of them"):
        find_results(run)


def test_what_older_versions_wrote_into_the_checkpoint_is_found(tmp_path):
    run = make_run(tmp_path / "run")
    old = write(run / "checkpoints/step-00000005/eval/test")
    for path in (run, run / "best", run / "best/eval/test", run / "best/eval"):
        assert os.path.samefile(find_results(path), old)
    assert find_results(tmp_path / "absent") == tmp_path / "absent"  # whoever reads it says so


def test_an_evaluation_outlives_its_checkpoint_and_is_compared_by_its_run(finetuned, small_world, tmp_path, capsys):
    for name in ("a", "b"):
        copytree(finetuned, tmp_path / name, symlinks=True)
        words = ["--checkpoint", tmp_path / name / "best", "--captions", small_world / "db/test", "--regions",
                 small_world / "regions", "--bootstrap", 10]  # fmt: skip
        eval_itm.main(cli.parse(eval_itm.EvalConfig, list(map(str, words))))
        step = os.readlink(tmp_path / name / "best").rpartition("/")[2]
        assert (tmp_path / name / "eval" / step / "test" / "results.json").is_file()
        assert not list((tmp_path / name / "checkpoints").glob("*/eval"))
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--bootstrap", "10"]
    compare.main(cli.parse(compare.Options, words, ("a", "b")))
    assert f"A: {tmp_path}/a/eval/{step}/test/results.json" in capsys.readouterr().out
