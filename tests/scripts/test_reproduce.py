"""Reproducing tables: what is needed and missing, the steps, their cost, and the published figures beside the measured ones."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from hub_server import Repository, asked_hub

from configs import cli
from data.errors import BadInput
from model.evaluation.ingredients import Ingredient, Pantry, read_ingredients
from model.evaluation.published import read_catalogue
from model.evaluation.reproduction import Places
from optim.planning import DataSizes, Machine, make_plan
from optim.tasks.pretraining import PretrainConfig
from optim.training_cost import cost_of_training
from scripts import build_captions, convert_checkpoint, download, download_pictures, extract_regions, reproduce
from scripts.reproducing.commands import CONFIG_CLASSES
from scripts.reproducing.running import report, run

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = read_catalogue(ROOT / "configs/published.yaml")
SOURCES = read_ingredients(ROOT / "configs/sources.yaml")
DEMO = read_catalogue(ROOT / "configs/demo_tables.yaml")
DEMO_SOURCES = read_ingredients(ROOT / "configs/demo_tables.yaml", "sources")
TABLES = [name for name in PUBLISHED.tables if name != "demo"]


def reproduce_table(*words):
    reproduce.main(cli.parse(reproduce.Options, [str(word) for word in words], positional=("table",)))


def steps_in(shown):
    """Name of the script of each numbered step, with its words."""
    lines = re.findall(r"^  \d+\. python (.*)$", shown, re.MULTILINE)
    return [(Path(words[0]).name, words[1:]) for words in map(shlex.split, lines)]


@pytest.fixture
def recipes(small_world, tmp_path, monkeypatch):
    """Work in an empty folder with short recipes for the small world → the words that name them."""
    monkeypatch.chdir(tmp_path)
    evaluation = {"checkpoint": "x", "captions": "db/test", "regions": "regions", "languages": ["en"], "bootstrap": 50}
    Path("eval.yaml").write_text(yaml.safe_dump(evaluation))
    short = {"pretrain": {"num_steps": 2, "valid_every": 2}, "finetune": {"epochs": 1}}
    words = ["--eval-config", "eval.yaml", "--data-root", small_world]
    for name, changes in short.items():
        recipe = yaml.safe_load((small_world / f"{name}.yaml").read_text()) | changes | {"out": "elsewhere"}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        words += [f"--{name}-config", f"{name}.yaml"]
    return words


def test_the_published_figures_are_those_of_the_repository():
    def figures(table: str) -> list[float]:
        return list(PUBLISHED.tables[table].rows[0].original.values())

    assert figures("flickr30k") == [83.9, 97.2, 98.6, 69.9, 91.1, 95.18]
    assert figures("flickr30k-zeroshot") == [68.2, 89.1, 94.0, 53.32, 80.58, 88.04]
    assert figures("coco5k") == [60.04, 85.16, 91.72, 45.77, 74.53, 83.79]
    assert [row.paper for row in PUBLISHED.tables["speed"].rows] == [{"exact": 639}, {"exact": 2349}, {"exact": 23869}]
    others = set(PUBLISHED.tables) - {"flickr30k", "flickr30k-zeroshot", "coco5k", "speed"}
    for name in others:
        assert all(row.paper == row.original == {} for row in PUBLISHED.tables[name].rows), f"{name}: what has its source not said?"


def test_a_checkpoint_that_is_there_is_evaluated(recipes, finetuned, tmp_path, capfd):
    Path("checkpoints").mkdir()
    Path("checkpoints/demo").symlink_to((finetuned / "best").resolve())
    reproduce_table("demo", *recipes)
    shown = capfd.readouterr().out
    assert "[ok]      checkpoints/demo" in shown and "[missing]" not in shown and "train_itm.py" not in shown

    results = json.loads((tmp_path / "runs/reproduce/eval/demo_eval/results.json").read_text())
    (row,) = json.loads((tmp_path / "runs/reproduce/demo.json").read_text())["rows"]
    assert row["measured"] == results["recall"]["all"] and row["original"] == row["paper"] == {}
    assert row["intervals"] == results["intervals"]["all"] and row["checkpoint"] == "checkpoints/demo"
    cells = {line.split("|")[2].strip(): line for line in shown.splitlines() if line.startswith("|")}
    for metric, value in row["measured"].items():
        bounds = row["intervals"][metric]
        assert bounds["low"] <= value <= bounds["high"], metric
        assert f" {value:.2f} |" in cells["measured"] and f"[{bounds['low']:.1f}, {bounds['high']:.1f}]" in cells["95% interval"]
    assert cells["paper"] == cells["original repository"].replace("original repository", "paper").replace("|  |", "| LightningDOT |")
    assert (tmp_path / "runs/reproduce/demo.md").read_text() in shown


def test_what_is_not_there_is_trained_first(recipes, capfd):
    reproduce_table("demo", *recipes)
    shown = capfd.readouterr().out
    assert "[absent]  checkpoints/demo" in shown and "[absent]  checkpoints/demo_pretrained" in shown
    assert "Instead of training checkpoints/demo, checkpoints/demo_pretrained: take what it trained: cp -rL " in shown
    steps = [Path(step).name for step in re.findall(r"^\$ python (\S+)", shown, re.MULTILINE)]
    assert steps == ["pretrain.py", "train_itm.py", "eval_itm.py"]
    summary = json.loads(Path("runs/reproduce/demo.json").read_text())
    assert [line.split()[0] for line in summary["seconds"]] == steps
    assert min(summary["seconds"].values()) > 0 and summary["rows"][0]["measured"]["AR"] > 0
    initial = yaml.safe_load(Path("runs/reproduce/finetune_finetune_demo/config.yaml").read_text())["model"]["init"]
    assert initial == "runs/reproduce/pretrain_pretrain/last"


def test_a_pretrained_checkpoint_is_not_trained_again(recipes, pretrained, capsys):
    Path("checkpoints").mkdir()
    Path("checkpoints/demo_pretrained").symlink_to((pretrained / "last").resolve())
    reproduce_table("demo", "--dry-run", *recipes)
    shown = capsys.readouterr().out
    (training, words), (evaluation, _) = steps_in(shown)
    assert (training, evaluation) == ("train_itm.py", "eval_itm.py")
    assert words[words.index("--model.init") + 1] == "checkpoints/demo_pretrained"
    assert "hours; passes: db/train 1.0" in shown and "all trainings: about " in shown
    assert not Path("runs").exists()


def test_trainings_on_several_gpus_go_through_torchrun(recipes, capsys):
    reproduce_table("demo", "--dry-run", "--gpus", 4, "--gpu", "h100", *recipes)
    shown = capsys.readouterr().out
    assert re.findall(r"^  \d\. (torchrun --nproc-per-node 4|python) \S*/(\w+)\.py", shown, re.MULTILINE) == [
        ("torchrun --nproc-per-node 4", "pretrain"), ("torchrun --nproc-per-node 4", "train_itm"), ("python", "eval_itm"),
    ]  # fmt: skip
    assert "hours on 4 x h100" in shown
    with pytest.raises(BadInput, match="--gpu: found abacus, expected one of v100-16"):
        reproduce_table("demo", "--dry-run", "--gpu", "abacus", *recipes)


def test_a_damaged_checkpoint_is_not_trained_over(recipes, finetuned, capsys):
    shutil.copytree((finetuned / "best").resolve(), "checkpoints/demo")
    Path("checkpoints/demo/model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"^1 missing: checkpoints/demo; "):
        reproduce_table("demo", *recipes)
    shown = capsys.readouterr().out
    assert "[missing] checkpoints/demo: checkpoints/demo: neither model.safetensors" in shown
    assert "train_itm.py" not in shown and not Path("runs").exists()


def test_a_step_that_fails_stops_with_its_command(tmp_path):
    with pytest.raises(BadInput, match=r"stopped at: python \S*scripts/make_scenes\.py --out \S+ --size 1$"):
        run(["python", str(ROOT / "scripts/make_scenes.py"), "--out", str(tmp_path / "world"), "--size", "1"])


def test_missing_and_damaged_databases_are_named_with_what_makes_them(recipes, small_world, tmp_path, capsys):
    root = tmp_path / "half of it"
    (root / "db").mkdir(parents=True)
    for name in ("train", "val"):
        (root / "db" / name).symlink_to(small_world / "db" / name)
    shutil.copytree(small_world / "db/test", root / "db/test")
    (root / "db/test/txt2img.json").unlink()
    recipe = yaml.safe_load(Path("pretrain.yaml").read_text())
    recipe["data"] = recipe["data"][:1]
    Path("pretrain.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(BadInput, match=r"^2 missing: \S+/half of it/regions, \S+/half of it/db/test; "):
        reproduce_table("demo", *recipes, "--data-root", root)
    shown = capsys.readouterr().out
    assert f"[ok]      {root}/db/train" in shown
    assert re.search(rf"\[missing\] {root}/db/test: .*txt2img\.json", shown)
    assert f"[missing] {root}/regions\n" in shown and f"  $ python {ROOT}/scripts/demo.py\n" in shown
    assert shown.count("$ python") == 1 and not Path("runs").exists()


@pytest.mark.parametrize("table", [*PUBLISHED.tables, "all"])
def test_a_dry_run_names_everything_that_is_missing_and_the_steps(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reproduce_table(table, "--data-root", "DB", "--checkpoints", "weights", "--dry-run")
    shown = capsys.readouterr().out
    assert "see docs/data.md" not in shown, "a recipe needs something that configs/sources.yaml does not make"
    assert "CHECKPOINTS" not in shown and "DATA/" not in shown
    steps = [name for name, _ in steps_in(shown)]
    for name in TABLES if table == "all" else [table]:
        evaluated = {(row.recipe, str(row.inputs), row.options) for row in PUBLISHED.tables[name].rows}
        assert sum(step in ("eval_itm.py", "bench_retrieval.py") for step in steps) >= len(evaluated)
    if table in ("flickr30k", "flickr30k-zeroshot", "coco5k"):
        for path in ("img/vg", "img/cc", "img/sbu", "img/coco_train2014", "db/pretrain_vg_dev_base-cased.db"):
            assert f"[missing] DB/{path}\n" in shown, path
        assert "[missing] weights/bert-base-cased\n" in shown and "[absent]  weights/pretrained: " in shown
        assert steps == ["pretrain.py", *["train_itm.py"] * (table != "flickr30k-zeroshot"), "eval_itm.py"]
        assert "are gone from there. A file found elsewhere converts" in shown
        assert "passes: " in shown and "GB of disk" in shown
    if table == "all":
        used = {name for name, each in SOURCES.items() if f"  # {each.title} (" in shown or (each.instead and not each.command)}
        of_the_original = {name for name in SOURCES if name.startswith("original-")} | {"uniter-base"}
        assert used == set(SOURCES) - {"demo"} - of_the_original, "an ingredient that no table needs"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("*/original_*.yaml")))
def test_what_the_originals_recipes_need_is_made_too(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kind = next((ROOT / "configs").glob(f"*/{recipe}")).parent.name
    table = "coco5k" if "coco" in recipe else "flickr30k"
    reproduce_table(table, "--dry-run", f"--{kind}-config", ROOT / "configs" / kind / recipe)
    shown = capsys.readouterr().out
    assert "see docs/data.md" not in shown and f"configs/{kind}/{recipe}" in shown
    if kind == "pretrain":
        titles = [each.title for name, each in SOURCES.items() if name.startswith("original-") or name == "uniter-base"]
        assert all(f"  # {title}" in shown for title in titles)


@pytest.mark.parametrize("catalogue", [PUBLISHED, DEMO], ids=["published", "demo"])
def test_every_step_of_every_table_is_a_command_that_can_be_read(catalogue):
    sources = {path for each in SOURCES.values() for path in each.gives}
    for job in [*catalogue.checkpoints.values(), *(row for table in catalogue.tables.values() for row in table.rows)]:
        kind = Path(job.recipe).parent.name
        inputs = [f"--{setting}={names}" for setting, names in job.inputs.items()]
        cli.parse(CONFIG_CLASSES[kind], ["--config", str(ROOT / job.recipe), *inputs, *shlex.split(job.options)])
        for names in job.inputs.values():
            for name in [names] if isinstance(names, str) else names:
                known = name in catalogue.checkpoints or f"CHECKPOINTS/{name}" in sources
                assert known or name in ("uniter-base", "uniter-large"), name


def test_the_demo_has_every_table_from_nothing(tmp_path, monkeypatch, capsys):
    assert list(DEMO.tables) == TABLES
    monkeypatch.chdir(tmp_path)
    reproduce_table("all", "--demo", "--dry-run")
    shown = capsys.readouterr().out
    for each in DEMO_SOURCES.values():
        words = shlex.split(each.command)
        assert (words[0], Path(words[1]).parent.name) == ("python", "scripts"), "run without a shell"
        assert f"  # {each.title}\n  $ python {ROOT}/{words[1]} " in shown
    missing = set(re.findall(r"^\[missing\] runs/reproduce_demo/(data/.*)$", shown, re.MULTILINE))
    assert missing <= {path.replace("DATA/", "data/") for each in DEMO_SOURCES.values() for path in each.gives}
    assert list(tmp_path.iterdir()) == []


def test_the_demo_makes_what_it_lacks_and_then_its_table(tmp_path, small_world, monkeypatch, capfd):
    """With the small world's pictures in the place of the demo's, all behind them is made: regions, tokenizer, captions, weights."""
    monkeypatch.chdir(tmp_path)
    data = Path("runs/reproduce_demo/data")
    data.mkdir(parents=True)
    for name in ("photos", "captions.jsonl"):
        (data / name).symlink_to(small_world / name)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "project_dim": 16}
    for kind, less in (("pretrain", {"num_steps": 2, "valid_every": 2, "model": sizes}), ("finetune", {"model": sizes, "batch_size": 16})):
        recipe = yaml.safe_load((ROOT / f"configs/{kind}/demo.yaml").read_text()) | less
        Path("own", kind).mkdir(parents=True)
        Path("own", kind, "demo.yaml").write_text(yaml.safe_dump(recipe))
    reproduce_table("flickr30k", "--demo", "--recipes", "own")
    steps = [Path(step).name for step in re.findall(r"^\$ python (\S+)", capfd.readouterr().out, re.MULTILINE)]
    made = ["train_tokenizer.py", "build_captions.py"]
    assert sorted(steps[:3]) == sorted(["extract_regions.py", *made]) and steps[3:] == ["pretrain.py", "train_itm.py", "eval_itm.py"]
    (row,) = json.loads(Path("runs/reproduce_demo/flickr30k.json").read_text())["rows"]
    assert row["images"] == 8 and row["measured"]["TR@10"] > 0


def test_the_commands_that_make_what_is_missing_are_real():
    options = {"build_captions": (build_captions.Options, ()), "extract_regions": (extract_regions.Options, ())}
    options["convert_checkpoint"] = (convert_checkpoint.Options, ("src", "dst"))
    options |= {"download": (download.Options, ("name",)), "download_pictures": (download_pictures.Options, ("list",))}
    downloads = download.read_sources(str(ROOT / "configs/downloads.yaml"))
    found = set()
    for each in SOURCES.values():
        for text in (each.command or "", each.instead or ""):
            for script, words in re.findall(r"python\s+scripts/(\w+)\.py([^&(;]*)", text):
                found.add(script)
                if script in options:
                    config_class, positional = options[script]
                    parsed = cli.parse(config_class, shlex.split(words), positional)
                    assert script != "download" or parsed.name in downloads
                else:
                    assert (ROOT / f"scripts/{script}.py").is_file()
    assert found == {*options, "demo"}


def test_regions_and_captions_have_the_same_keys():
    """A caption's pattern of keys is that of the regions it names, and they are held against one another."""
    pattern = {}
    for each in SOURCES.values():
        for command in (each.command or "").split("&&"):
            words = shlex.split(command)
            if "scripts/extract_regions.py" in words:
                options = cli.parse(extract_regions.Options, words[2:])
                pattern[options.out] = options.image_key
    checked = 0
    for each in SOURCES.values():
        for command in (each.command or "").split("&&"):
            words = shlex.split(command)
            if "scripts/build_captions.py" not in words:
                continue
            options = cli.parse(build_captions.Options, words[2:])
            assert options.regions, each.title
            assert {pattern[path] for path in options.regions} == {options.image_key or "{stem}.npz"}, each.title
            checked += 1
    assert checked == 11


def test_ingredients_come_after_what_they_need_and_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/photos").touch()
    known = {
        "all": Ingredient(["DATA/db"], "all", needs=["regions", "words"], command="python scripts/x.py --in DATA/regions"),
        "regions": Ingredient(["DATA/regions"], "regions", needs=["photos", "weights"], disk=3, pictures=36_000),
        "photos": Ingredient(["DATA/photos"], "photos"),
        "words": Ingredient(["CHECKPOINTS/words"], "words", by_hand="sign", needs=["weights"]),
        "weights": Ingredient(["CHECKPOINTS/weights"], "weights", instead="convert"),
    }
    pantry = Pantry(known, Places(str(tmp_path / "data"), "my weights", "out"), "/the code")
    found = pantry.to_make(["DATA/db", "DATA/regions", "elsewhere"])
    assert [each.title for each in found] == ["weights", "regions", "words", "all"]
    lines = pantry.describe(found, ["CHECKPOINTS/weights"]).splitlines()
    assert lines[0] == "To make what is missing, in this order (3 GB of disk, as the published sizes have it):"
    assert lines[1:3] == ["  # weights", "  # or convert"]
    assert lines[3] == "  # regions (3 GB, 36,000 pictures, 1 hours of a GPU at 10 a second)"
    assert lines[-2] == f"  $ python '/the code/'scripts/x.py --in {tmp_path}/data/regions"
    assert lines[-1] == "Instead of training 'my weights/'weights: convert"
    assert pantry.to_make(["DATA/photos"]) == [known["photos"]], "what is damaged is made again"


def test_published_and_measured_figures_stand_side_by_side(tmp_path, capsys):
    measured = {"TR@1": 61.0, "TR@5": 84.0, "TR@10": 91.0, "IR@1": 45.0, "IR@5": 74.0, "IR@10": 83.0, "AR": 73.0}
    bounds = {metric: {"low": value - 1, "high": value + 1} for metric, value in measured.items()}
    again = {"recall": {"all": measured | {"TR@1": 70.0}}, "intervals": {}, "bi-encoder": {"recall": {"all": {"TR@20": 95.0}}, "intervals": {}}}
    results = {
        "recall": {"all": measured}, "intervals": {"all": bounds}, "config": {"checkpoint": "c"},
        "images": 5000, "captions": 25010, "environment": {"torch": "2"}, "reranker": {"top": {"20": again}},
    }  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    report("coco5k", PUBLISHED.tables["coco5k"], [path], {"eval_itm.py": 1.0}, tmp_path)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert ["", "", "TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "AR"] in lines
    assert ["LightningDOT", "paper", "60.1", "-", "-", "45.8", "-", "-", "-"] in lines
    assert ["", "original repository", "60.04", "85.16", "91.72", "45.77", "74.53", "83.79", "73.5"] in lines
    assert ["", "measured", "61.00", "84.00", "91.00", "45.00", "74.00", "83.00", "73.00"] in lines
    assert ["", "95% interval", "[60.0, 62.0]", "[83.0, 85.0]"] in [line[:4] for line in lines]
    summary = json.loads((tmp_path / "coco5k.json").read_text())
    assert summary["rows"][0]["original"]["AR"] == 73.5 and summary["seconds"] == {"eval_itm.py": 1.0}
    with pytest.raises(BadInput, match=r"no row 'mean of \* x 1K', found all"):
        report("coco1k", PUBLISHED.tables["coco1k"], [path], {}, tmp_path)
    with pytest.raises(BadInput, match=r"no reranker.top.50, found 20"):
        report("flickr30k-reranked", PUBLISHED.tables["flickr30k-reranked"], [path] * 7, {}, tmp_path)
    results["reranker"]["top"] |= {"50": again, "100": again}
    path.write_text(json.dumps(results))
    rows = report("flickr30k-reranked", PUBLISHED.tables["flickr30k-reranked"], [path] * 7, {}, tmp_path)
    assert rows[1].measured["TR@1"] == 70 and rows[1].measured["bi-encoder TR@K"] == 95 and rows[0].measured == measured


def test_the_speed_table_shows_how_many_times_faster_an_answer_is(tmp_path, capsys):
    results = json.loads((ROOT / "benchmarks/retrieval_cpu.json").read_text())
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(results))
    rows = report("speed", PUBLISHED.tables["speed"], [path] * 3, {}, tmp_path)
    own = results["galleries"][0]["bf16"]["exact"]
    assert rows[0].measured["exact"] == own["times_faster"] and rows[0].published["paper"] == {"exact": 639}
    assert rows[0].intervals["exact"]["low"] <= own["times_faster"] <= rows[0].intervals["exact"]["high"]
    assert "| 1,000 images | paper | 639 | - |" in capsys.readouterr().out


def test_hours_and_passes_of_a_pretraining():
    config = cli.parse(PretrainConfig, ["--config", str(ROOT / "configs/pretrain/paper.yaml"), "--num-steps", "100"])
    machine, sizes = Machine("a100-80", 2, 8, 0.35), DataSizes(16, 36, None, 28996, 2048, 1601)
    vg = next(corpus for corpus in config.data if corpus.name == "vg")
    cost = cost_of_training(config, machine, sizes, {vg.captions: 5000}.get)
    plan = make_plan(config, machine, sizes)
    share = sum(vg.tasks.values()) / sum(sum(corpus.tasks.values()) for corpus in config.data)
    assert cost.passes == {"vg": pytest.approx(100 * plan["pairs"]["per_step"] * share / 5000)} and cost.hours == plan["hours"]


def test_another_recipe_takes_the_place_of_one_and_a_folder_of_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="one table at a time, or --recipes"):
        reproduce.Options("all", finetune_config="x.yaml")
    with pytest.raises(BadInput, match="no such folder"):
        reproduce.Options("all", recipes="absent")
    with pytest.raises(BadInput, match="no table coco2k; there are flickr30k, "):
        reproduce_table("coco2k")
    shutil.copytree(ROOT / "configs/finetune", "own/finetune")
    with pytest.raises(BadInput, match=r"--finetune-config own/finetune/coco.yaml: the table has several such recipes, "):
        reproduce_table("flickr30k-reranked", "--dry-run", "--finetune-config", "own/finetune/coco.yaml")
    capsys.readouterr()
    reproduce_table("flickr30k-reranked", "--dry-run", "--recipes", "own")
    used = [words[words.index("--config") + 1] for _, words in steps_in(capsys.readouterr().out)]
    ours = {str(ROOT / f"configs/{name}") for name in ("pretrain/paper.yaml", "eval/flickr30k.yaml", "eval/flickr30k_reranked.yaml")}
    assert set(used) == ours | {"own/finetune/flickr30k.yaml", "own/finetune/uniter_flickr30k.yaml"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tables: {a: {title: t, rows: [{name: x}]}}", "rows.0.: .*recipe"),
        ("tables: {a: {title: t, rows: [], color: red}}", "unknown color; there are in_all, note, rows, title"),
        ("tables: {a: {title: t}}", "tables.a: .*rows"),
        ("tabels: {}", "found tabels, expected checkpoints and tables"),
        ("[]", "expected an object"),
    ],
)
def test_a_file_of_tables_that_cannot_be(tmp_path, text, message):
    (tmp_path / "tables.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_catalogue(tmp_path / "tables.yaml")


def test_checkpoints_of_a_repository_of_the_hub_are_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = (ROOT / "tests/fixtures/keys_base.json").read_bytes()  # which nobody reads before the step does
    with asked_hub(tmp_path, monkeypatch) as hub:
        hub.models["user/weights"] = Repository()
        hub.models["user/weights"].commit({"flickr30k/config.json": config, "flickr30k/model.safetensors": b"x"}, "v1")
        hub.models["user/weights"].commit({"pretrained/config.json": config, "pretrained/model.safetensors": b"x"})
        words = ["flickr30k", "--data-root", "DB", "--dry-run", "--checkpoints"]
        reproduce_table(*words, "user/weights@v1")
        shown = capsys.readouterr().out
        assert "[ok]      hf:user/weights@v1/flickr30k" in shown and "train_itm.py" not in shown
        ((script, evaluation),) = steps_in(shown)
        assert script == "eval_itm.py" and evaluation[evaluation.index("--checkpoint") + 1] == "hf:user/weights@v1/flickr30k"
        reproduce_table(*words, "hf:user/weights")
        shown = capsys.readouterr().out
        assert "[absent]  checkpoints/flickr30k" in shown and "[ok]      hf:user/weights/pretrained" in shown
        training = dict(steps_in(shown))["train_itm.py"]
        assert training[training.index("--model.init") + 1] == "hf:user/weights/pretrained"
        with pytest.raises(BadInput, match=r"^hf:user/none/.*: no such folder, and the hub has no model user/none"):
            reproduce_table(*words, "user/none")
        assert not any("safetensors" in path for _, path in hub.asked)
