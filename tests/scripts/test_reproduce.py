"""Reproducing tables: what is needed and missing, the steps, and the published figures beside the measured ones."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from configs import cli
from data.errors import BadInput
from scripts import build_captions, convert_checkpoint, extract_regions, reproduce

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = yaml.safe_load((ROOT / "configs/published.yaml").read_text())
SOURCES = yaml.safe_load((ROOT / "configs/sources.yaml").read_text())
TABLES = [name for name in PUBLISHED if name != "demo"]


def run(*words):
    reproduce.main(cli.parse(reproduce.Options, [str(word) for word in words], positional=("table",)))


@pytest.fixture
def recipes(small_world, tmp_path, monkeypatch):
    """Work in an empty folder with short recipes for the small world → the words that name them."""
    monkeypatch.chdir(tmp_path)
    evaluation = {"checkpoint": "x", "captions": "db/test", "regions": "regions", "languages": ["en"], "bootstrap": 50}
    Path("eval.yaml").write_text(yaml.safe_dump(evaluation))
    short = {"pretrain": {"num_steps": 2, "valid_every": 2}, "finetune": {"epochs": 1}}
    words = ["--eval-config", "eval.yaml", "--data-root", small_world]
    for name, changes in short.items():
        recipe = yaml.safe_load((small_world / f"{name}.yaml").read_text()) | changes | {"output_dir": "elsewhere"}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        words += [f"--{name}-config", f"{name}.yaml"]
    return words


def test_the_published_figures_are_those_of_the_repository():
    def figures(table: str, source: str = "original") -> list[float]:
        return list(PUBLISHED[table][source].values())

    assert figures("flickr30k") == [83.9, 97.2, 98.6, 69.9, 91.1, 95.18]
    assert figures("flickr30k-zeroshot") == [68.2, 89.1, 94.0, 53.32, 80.58, 88.04]
    assert figures("coco5k") == [60.04, 85.16, 91.72, 45.77, 74.53, 83.79]
    for table in PUBLISHED.values():
        assert list(table["original"]) in ([], ["TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10"])


def test_a_checkpoint_that_is_there_is_evaluated(recipes, finetuned, tmp_path, capfd):
    Path("checkpoints").mkdir()
    Path("checkpoints/demo").symlink_to((finetuned / "best").resolve())
    run("demo", *recipes)
    shown = capfd.readouterr().out
    assert "[ok]      checkpoints/demo" in shown and "[missing]" not in shown and "train_itm.py" not in shown

    results = json.loads((tmp_path / "runs/reproduce/eval/demo_eval/results.json").read_text())
    summary = json.loads((tmp_path / "runs/reproduce/demo.json").read_text())
    assert summary["measured"] == results["recall"]["all"] and summary["original"] == summary["paper"] == {}
    assert summary["intervals"] == results["intervals"]["all"]
    for metric, value in summary["measured"].items():
        bounds = summary["intervals"][metric]
        assert bounds["low"] <= value <= bounds["high"], metric
        row = next(line.split() for line in shown.splitlines() if line.startswith(f"{metric} "))
        expected = [metric, "-", "-", f"{value:.2f}", f"[{bounds['low']:.1f},", f"{bounds['high']:.1f}]"]
        assert row == expected
    assert (tmp_path / "runs/reproduce/demo.txt").read_text() in shown


def test_what_is_not_there_is_trained_first(recipes, capfd):
    run("demo", *recipes)
    shown = capfd.readouterr().out
    assert "[absent]  checkpoints/demo" in shown and "[absent]  checkpoints/demo_pretrained" in shown
    steps = re.findall(r"^\$ python (\S+)", shown, re.MULTILINE)
    assert steps == ["pretrain.py", "train_itm.py", "eval_itm.py"]
    summary = json.loads(Path("runs/reproduce/demo.json").read_text())
    assert [line.split()[0] for line in summary["seconds"]] == steps
    assert min(summary["seconds"].values()) > 0 and summary["measured"]["AR"] > 0
    initial = yaml.safe_load(Path("runs/reproduce/finetune_finetune/config.yaml").read_text())["model"]["init"]
    assert initial == "runs/reproduce/pretrain_pretrain/last"


def test_a_pretrained_checkpoint_is_not_trained_again(recipes, pretrained, capsys):
    Path("checkpoints").mkdir()
    Path("checkpoints/demo_pretrained").symlink_to((pretrained / "last").resolve())
    run("demo", "--dry-run", *recipes)
    steps = re.findall(r"^  \d\. python (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [step.split()[0] for step in steps] == ["train_itm.py", "eval_itm.py"]
    assert "--model.init checkpoints/demo_pretrained " in steps[0]
    assert not Path("runs").exists()


def test_a_damaged_checkpoint_is_not_trained_over(recipes, finetuned, capsys):
    shutil.copytree((finetuned / "best").resolve(), "checkpoints/demo")
    Path("checkpoints/demo/model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"^1 missing: checkpoints/demo; "):
        run("demo", *recipes)
    shown = capsys.readouterr().out
    assert "[missing] checkpoints/demo: checkpoints/demo: neither model.safetensors" in shown
    assert "train_itm.py" not in shown and not Path("runs").exists()


def test_a_step_that_fails_stops_with_its_command(tmp_path):
    with pytest.raises(BadInput, match=r"stopped at: python scripts/make_scenes\.py --out \S+ --size 1$"):
        reproduce.run_step(["scripts/make_scenes.py", "--out", str(tmp_path / "world"), "--size", "1"])


def test_missing_and_damaged_databases_are_named_with_what_makes_them(recipes, small_world, tmp_path, capsys):
    root = tmp_path / "half"
    (root / "db").mkdir(parents=True)
    for name in ("train", "val"):
        (root / "db" / name).symlink_to(small_world / "db" / name)
    shutil.copytree(small_world / "db/test", root / "db/test")
    (root / "db/test/txt2img.json").unlink()
    recipe = yaml.safe_load(Path("pretrain.yaml").read_text())
    recipe["data"] = recipe["data"][:1]
    Path("pretrain.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(BadInput, match=r"^2 missing: \S+/half/regions, \S+/half/db/test; "):
        run("demo", *recipes, "--data-root", root)
    shown = capsys.readouterr().out
    assert f"[ok]      {root}/db/train" in shown
    assert re.search(rf"\[missing\] {root}/db/test: .*txt2img\.json", shown)
    assert f"[missing] {root}/regions\n" in shown and "          python scripts/demo.py\n" in shown
    assert not Path("runs").exists()


@pytest.mark.parametrize("table", [*PUBLISHED, "all"])
def test_a_dry_run_names_everything_that_is_missing_and_the_steps(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(table, "--data-root", "DB", "--checkpoints", "weights", "--dry-run")
    shown = capsys.readouterr().out
    assert "README, On your own data" not in shown, "a recipe needs something that configs/sources.yaml does not make"
    assert "CHECKPOINTS" not in shown and "DATA/" not in shown
    published = ["img/vg", "img/cc", "img/sbu", "img/coco_train2014"]
    needed = {"coco5k": "db/itm_coco_restval_base-cased.db", "coco1k": "db/itm_coco_train_base-cased.db"}
    paths = ["db/train", "db/test", "regions"] if table == "demo" else [*published, needed.get(table, "img/flickr30k")]
    for path in paths:
        assert f"[missing] DB/{path}\n" in shown, path
    if table != "demo":
        assert "[missing] weights/bert-base-cased\n" in shown and "[absent]  weights/pretrained: " in shown
    if table == "all":
        unused = {key for key in SOURCES if f" weights/{Path(key).name}" not in shown and f" DB/{key}\n" not in shown}
        assert unused == {key for key, how in SOURCES.items() if "demo" in how}
    steps = re.findall(r"^  \d\. python (\S+)", shown, re.MULTILINE)
    expected = []
    for name in TABLES if table == "all" else [table]:
        expected += ["pretrain.py", *["train_itm.py"] * ("finetune" in PUBLISHED[name]), "eval_itm.py"]
    assert steps == expected
    assert list(tmp_path.iterdir()) == []


def test_the_commands_that_make_what_is_missing_are_real():
    options = {"build_captions": (build_captions.Options, ()), "extract_regions": (extract_regions.Options, ())}
    options["convert_checkpoint"] = (convert_checkpoint.Options, ("src", "dst"))
    found = set()
    for how in SOURCES.values():
        for script, words in re.findall(r"python scripts/(\w+)\.py([^&]*)", how):
            found.add(script)
            if script in options:
                config_class, positional = options[script]
                cli.parse(config_class, shlex.split(words), positional)
            else:
                assert (ROOT / f"scripts/{script}.py").is_file()
    assert found == {*options, "demo"}


def test_published_and_measured_figures_stand_side_by_side(tmp_path, capsys):
    measured = {"TR@1": 61.0, "TR@5": 84.0, "TR@10": 91.0, "IR@1": 45.0, "IR@5": 74.0, "IR@10": 83.0, "AR": 73.0}
    bounds = {metric: {"low": value - 1, "high": value + 1} for metric, value in measured.items()}
    results = {
        "recall": {"all": measured}, "intervals": {"all": bounds}, "config": {"checkpoint": "c"},
        "images": 5000, "captions": 25010, "environment": {"torch": "2"},
    }  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    reproduce.report("coco5k", PUBLISHED["coco5k"], path, {"eval_itm.py": 1.0}, str(tmp_path))
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["paper", "original repository", "measured", "95% interval"] in lines
    assert ["TR@1", "60.1", "60.04", "61.00", "[60.0, 62.0]"] in lines
    assert ["TR@5", "-", "85.16", "84.00", "[83.0, 85.0]"] in lines
    assert ["AR", "-", "73.5", "73.00", "[72.0, 74.0]"] in lines
    summary = json.loads((tmp_path / "coco5k.json").read_text())
    assert summary["original"]["AR"] == 73.5 and summary["seconds"] == {"eval_itm.py": 1.0}
    with pytest.raises(BadInput, match=r"no row 'mean of 5 x 1K', found all"):
        reproduce.report("coco1k", PUBLISHED["coco1k"], path, {}, str(tmp_path))


def test_all_tables_have_their_own_recipes():
    with pytest.raises(BadInput, match="one table at a time"):
        reproduce.Options("all", finetune_config="x.yaml")
