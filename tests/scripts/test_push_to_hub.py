"""scripts/push_to_hub.py: what is sent of a checkpoint, its card, and a hub that takes it or does not."""

import json
import shutil

import pytest
import yaml
from hub_server import asked_hub, forget

from configs import cli
from data.errors import BadInput
from data.storage.json_digest import with_digest
from data.storage.text_files import read_json, write_json
from model.bi_encoder import LightningDOT
from model.evaluation.recall import METRICS
from model.made_from import read_made_from
from scripts import push_to_hub
from scripts.publishing.card import without_home


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with asked_hub(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def run(finetuned, tmp_path):
    """A run of its own with an evaluation of its best checkpoint, and one of other weights."""
    run = tmp_path / "flickr"
    shutil.copytree(finetuned, run, symlinks=True, ignore=shutil.ignore_patterns("eval"))
    step = (run / "best").resolve().name
    fingerprint = read_json(run / "best" / "config.json")["fingerprint"]
    recall = {name: {metric: 12.5 + n for n, metric in enumerate(METRICS)} for name in ("en", "de", "all")}
    bounds = {"en": {"IR@1": {"low": 10.0, "high": 20.25}}}
    results = {"recall": recall, "intervals": bounds, "config": {"checkpoint": str(run / "best"), "captions": "db/test"}, "ranks": "ranks.npz"}
    for name, model in (("test", fingerprint), ("old", "0" * 16)):
        write_json(run / "eval" / step / name / "results.json", results | {"model": model, "images": 8, "captions": 80})
    return run


def push(*words):
    push_to_hub.main(cli.parse(push_to_hub.Options, list(map(str, words)), ("checkpoint", "name")))


SENT = {"model.safetensors", "config.json", "data.json", "val.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "README.md"}


def test_the_card_says_recall_data_and_command(run, tmp_path, capsys):
    write_json(run / "best" / "data.json", with_digest(with_source(read_json(run / "best" / "data.json"), "/home/me/weights")))
    push(run / "best", "user/flickr", "--out", tmp_path / "published", "--license", "mit")
    shown = capsys.readouterr()
    assert "published: nothing was sent" in shown.out and f"{run}/eval/" in shown.err and "old/results.json: was made with other weights" in shown.err
    folder = tmp_path / "published"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == SENT
    assert LightningDOT.from_pretrained(folder).fingerprint == LightningDOT.from_pretrained(run / "best").fingerprint
    assert read_json(folder / "data.json") == with_digest(with_source(read_json(run / "best" / "data.json"), None))
    assert read_made_from(folder).extractors[0].source is None  # who gets it can read it
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "mit" and header["language"] == ["de", "en"] and header["library_name"] == "lightningdot"
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["name"] == "test" and {"type": "recall", "name": "TR@1", "value": 12.5} in result["metrics"]
    assert "| en | 12.5 | 13.5 | 14.5 | 15.5 [10.0, 20.2] |" in text and "Of db/test; 8 images; 80 captions:" in text
    assert "python train_itm.py --config" in text and "- training: db/train (" in text and "- regions: by `random-conv --seed 0 --size 64 --feature-dim 32" in text
    assert "the validation pairs of its training" in text and 'Retriever.from_photos("photos", "user/flickr")' in text
    with pytest.raises(BadInput, match="published: exists already"):
        push(run / "best", "user/flickr", "--out", tmp_path / "published")


def with_source(made_from, source):
    return made_from | {"extractors": [each | {"source": source} for each in made_from["extractors"]]}


def test_what_is_sent_is_what_a_name_gives_back(run, hub, capsys):
    push(run / "best", "user/flickr", "--dry-run")
    shown = capsys.readouterr().out
    assert "MB  model.safetensors\n" in shown and "training.pt" not in shown and "# flickr\n" in shown and hub.asked == []
    push(run / "best", "user/flickr")
    assert f"sent: {hub.url}/user/flickr/commit/" in capsys.readouterr().out
    assert set(hub.models["user/flickr"].files("main")[1]) == SENT
    assert LightningDOT.from_pretrained("user/flickr").fingerprint == LightningDOT.from_pretrained(run / "best").fingerprint
    push(run / "last", "user/flickr", "--message", "again")  # what was there becomes its history
    forget()
    assert LightningDOT.from_pretrained("user/flickr").fingerprint == LightningDOT.from_pretrained(run / "last").fingerprint
    assert len(hub.models["user/flickr"].commits) == 3


def test_refusals(run, hub, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="flickr: no name of a model of yours on the hub, expected USER/NAME"):
        push(run / "best", "flickr")
    with pytest.raises(BadInput, match=r"no/model.safetensors: no such file; a checkpoint of a run"):
        push(tmp_path / "no", "user/flickr")
    hub.refuses = True
    with pytest.raises(BadInput, match=r"^user/flickr: cannot be sent to http://127.0.0.1:\d+ \(.*\); log in: hf auth login"):
        push(run / "best", "user/flickr")
    (run / "best" / "val.json").write_text("{")
    with pytest.raises(BadInput, match=r"val.json: the file is not JSON"):
        push(run / "best", "user/flickr", "--dry-run")


def test_a_converted_checkpoint_has_a_card_too(run, tmp_path):
    """It is of no run, has no tokenizer, and was not evaluated."""
    copy = tmp_path / "converted"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(run / "best" / name, copy / name)
    push(copy, "user/converted", "--out", tmp_path / "published")
    text = (tmp_path / "published" / "README.md").read_text()
    assert "It was not measured." in text and "Training data" not in text
    assert json.loads((tmp_path / "published" / "config.json").read_text())["fingerprint"]


@pytest.mark.parametrize("home, shown", [("/home/me", "~/runs of ../x, https://a.b//c"), ("/", None), ("", None), ("here", None)])
def test_the_home_directory_is_not_in_the_card(home, shown, monkeypatch):
    monkeypatch.setenv("HOME", home)
    text = "/home/me/runs of ../x, https://a.b//c"
    assert without_home(text) == (shown or text)


def test_a_user_without_a_home_directory_publishes_too(run, tmp_path, homeless):
    push(run / "best", "user/flickr", "--out", tmp_path / "published")
    assert (tmp_path / "published/README.md").is_file()


def test_a_damaged_validation_is_one_line(run, tmp_path):
    path = run / "best" / "val.json"
    values = json.loads(path.read_text())
    values["recall"]["all"]["IR@10"] = [[1, 2], [3]]
    path.write_text(json.dumps(values))
    with pytest.raises(BadInput, match=r"val.json: recall.*IR@10.*: found .*, expected a number"):
        push(run / "best", "user/x", "--out", tmp_path / "card")


@pytest.mark.parametrize("more, found", [({"config": ["x"]}, "config: found a list"), ({"recall": {"all": 5}}, "recall.all: found 5"), ({"recall": {}}, None)])
def test_results_that_are_something_else_are_one_line(run, tmp_path, more, found):
    (path,) = run.glob("eval/*/test/results.json")
    results = json.loads(path.read_text()) | more
    path.write_text(json.dumps({name: value for name, value in results.items() if name != "ranks"}))
    if found is None:
        push(run / "best", "user/x", "--dry-run")
    else:
        with pytest.raises(BadInput, match=f"test/results.json: {found}, expected"):
            push(run / "best", "user/x", "--dry-run")


@pytest.mark.parametrize("name, value", [("command", [0.5]), ("versions", {"torch": None}), ("train", {"captions": "many"})])
def test_facts_of_a_run_that_are_something_else_are_one_line(run, tmp_path, name, value):
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    facts = json.loads((copied / "run.json").read_text()) | {name: value}
    (copied / "run.json").write_text(json.dumps(facts))
    with pytest.raises(BadInput, match=rf"run\.json: {name}.*: found .*, expected"):
        push(copied / "best", "user/x", "--out", tmp_path / "card")
