"""A run's folder: its settings, what is refused, what comes back of a save, links, pruning."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from data.errors import BadInput
from model import checkpoints as checkpoint_files
from model.bi_encoder import LightningDOT
from model.objectives.heads import PretrainingHeads
from optim.optimizer import OptimOptions, build_optimizer
from optim.run import load_heads, random_state, restore_random_state
from optim.saving import load_optimizer, point_link
from tests.small_runs import Config, checkpoints, loaded, open_run, save, small_model, target

# ---- opening ---------------------------------------------------------------------------------------------------------


def test_a_new_run_writes_its_settings(tmp_path):
    config = Config(optim=OptimOptions(lr=1e-6), languages=["en", "de"])
    run = open_run(tmp_path / "a" / "run", config, resume=True, effective_batch_pairs=96)
    assert not run.resumed and run.load() is None
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (
        saved["optim"]["lr"] == 1e-6 and saved["optim"]["betas"] == [0.9, 0.98] and saved["languages"] == ["en", "de"]
    )
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["effective_batch_pairs"] == 96
    assert facts.keys() > {"time", "command", "git", "python", "versions", "host", "gpu", "threads"}


def test_a_run_is_not_overwritten(tmp_path):
    open_run(tmp_path, resume=False)
    run = open_run(tmp_path, Config(epochs=5), resume=False)  # nothing was saved yet: started afresh
    save(run, 10)
    with pytest.raises(BadInput, match=f"^{tmp_path}: already holds a run; leave resume true"):
        open_run(tmp_path, Config(epochs=5), resume=False)


def test_other_settings_are_refused_by_name_and_value(tmp_path):
    save(open_run(tmp_path, resume=False), 10)
    before = (tmp_path / "config.yaml").read_bytes()
    other = Config(epochs=7, optim=OptimOptions(lr=0.5), languages=["de"])
    with pytest.raises(BadInput) as error:
        open_run(tmp_path, other, resume=True)
    assert str(error.value).startswith(f"{tmp_path}/config.yaml: cannot go on with other settings (")
    changes = str(error.value).split("(")[1].split(")")[0].split("; ")
    assert changes == ["epochs was 3, now 7", "languages was None, now ['de']", "optim.lr was 5e-05, now 0.5"]
    assert (tmp_path / "config.yaml").read_bytes() == before
    free = Config(out="y", workers=4, keep_checkpoints=3, resume=True)  # change speed and reports only
    assert open_run(tmp_path, free, resume=True).resumed


@pytest.mark.parametrize("length", ["many", [3]])
def test_a_length_that_is_no_number_is_another_setting(tmp_path, length):
    save(open_run(tmp_path), 10)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"epochs": length}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path}/config.yaml: cannot go on with other settings (epochs was {length!r}, now 3)")):
        open_run(tmp_path, resume=True)


FREE_OF_LENGTH = [OptimOptions(schedule="constant"), OptimOptions(schedule="uniter_invsqrt", warmup_steps=4)]


@pytest.mark.parametrize("optim", FREE_OF_LENGTH)
def test_a_run_is_made_longer_where_its_schedule_does_not_depend_on_that(tmp_path, capsys, optim):
    save(open_run(tmp_path, Config(epochs=3, optim=optim)), 10)
    assert open_run(tmp_path, Config(epochs=5, optim=optim), resume=True).resumed
    assert "epochs was 3, now 5: the run is made longer\n" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["epochs"] == 5
    with pytest.raises(BadInput, match=r"cannot go on with other settings \(epochs was 5, now 4\)"):
        open_run(tmp_path, Config(epochs=4, optim=optim), resume=True)
    with pytest.raises(BadInput, match=r"\(epochs was 5, now 6; languages was None, now \['de'\]\)"):
        open_run(tmp_path, Config(epochs=6, optim=optim, languages=["de"]), resume=True)


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (OptimOptions(), "linear the rate"),
        (OptimOptions(schedule="hf_linear"), "hf_linear the rate"),
        (OptimOptions(schedule="uniter_linear", warmup_steps=4), "uniter_linear the rate"),
        (OptimOptions(schedule="uniter_invsqrt", warmup_ratio=0.1), "uniter_invsqrt with a warmup_ratio the rate"),
    ],
)
def test_where_the_schedule_depends_on_the_length_the_message_names_the_way(tmp_path, optim, said):
    save(open_run(tmp_path, Config(epochs=3, optim=optim)), 10)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(BadInput) as error:
        open_run(tmp_path, Config(epochs=5, optim=optim), resume=True)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/config.yaml: epochs was 3, now 5; with optim.schedule {said} of every update"), message
    assert f"--model.init {tmp_path}/last --out OTHER" in message
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_run_begins_with_few_lines_and_keeps_the_rest(tmp_path, capsys):
    open_run(tmp_path, parameters=12_345_678, captions={"coco": 1000, "vg": 20}, peak_lr=5e-5, teacher="t, weights ab")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}: settings are in config.yaml") and "git " in lines[1] and "1 rank (none)" in lines[1]
    assert lines[2:] == ["parameters: 12,345,678", "captions: coco 1,000, vg 20", "peak_lr: 5e-05", "teacher: t, weights ab"]


def test_a_run_whose_settings_had_their_former_names_goes_on(tmp_path):
    save(open_run(tmp_path, Config(workers=2)), 10)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("out:", "output_dir:").replace("workers:", "num_workers:"))
    assert "output_dir:" in (tmp_path / "config.yaml").read_text() and open_run(tmp_path, Config(workers=1), resume=True).resumed


@pytest.mark.parametrize("damage", ["missing", "[", "a list"])
def test_a_damaged_config_is_bad_input(tmp_path, damage):
    save(open_run(tmp_path, resume=False), 10)
    (tmp_path / "config.yaml").unlink()
    if damage != "missing":
        (tmp_path / "config.yaml").write_text("[1, 2]" if damage == "a list" else damage)
    with pytest.raises(BadInput, match=f"^{tmp_path}/config.yaml: "):
        open_run(tmp_path, resume=True)


def test_an_output_dir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(BadInput, match=f"^{tmp_path}/file.*: cannot be written"):
            open_run(folder, resume=False)


# ---- saving and going on ---------------------------------------------------------------------------------------------


def test_what_was_saved_comes_back(tmp_path):
    run = open_run(tmp_path, resume=False)
    model = small_model()
    heads = PretrainingHeads(model.config)
    optimizer = build_optimizer([model, heads], OptimOptions())
    (sum(p.sum() for p in model.parameters()) + sum(p.sum() for p in heads.parameters())).backward()
    optimizer.step()
    torch.manual_seed(5)
    training = {"best": 0.25, "draws": {"cursors": [[1, 2]]}}
    own = {"random": random_state()}
    final = save(run, 7, True, 1, model, heads, optimizer, {"vocab.txt": b"a\n"}, own, **training)
    drawn = torch.rand(3)

    assert (
        final == tmp_path / "checkpoints" / "step-00000007" and target(run, "last") == target(run, "best") == final.name
    )
    names = ["config.json", "heads.safetensors", "model.safetensors", "optimizer-00000-of-00001.pt"]
    names += ["rank-00000-of-00001.pt", "tokenizer", "training.pt"]
    assert sorted(os.listdir(tmp_path / "last")) == names
    assert (final / "tokenizer" / "vocab.txt").read_text() == "a\n"
    assert os.stat(final / "tokenizer").st_mode & os.stat(final / "tokenizer" / "vocab.txt").st_mode & 0o200  # prunable
    assert not Path(os.readlink(tmp_path / "last")).is_absolute()  # the folder may be moved
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "_moved"))

    again = open_run(moved, resume=True)
    state, own = again.load()
    assert again.resumed and (state["step"], state["best"], state["draws"]) == (7, 0.25, {"cursors": [[1, 2]]})
    restored = LightningDOT.from_pretrained(moved / "last")
    assert all(torch.equal(t, restored.state_dict()[n]) for n, t in model.state_dict().items())
    other = PretrainingHeads(model.config)
    assert load_heads(other, moved / "last")
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in heads.state_dict().items())
    fresh = build_optimizer([restored, other], OptimOptions())
    load_optimizer(fresh, moved / "last", state)
    for a, b in zip(fresh.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b) and a.keys() == b.keys()
    restore_random_state(own["random"])
    assert torch.equal(torch.rand(3), drawn)


def test_heads_of_another_shape_are_refused(tmp_path):
    model = small_model()
    run = open_run(tmp_path, resume=False)
    assert not load_heads(PretrainingHeads(model.config), save(run, 1))  # a fine-tuned checkpoint has none
    save(run, 2, model=model, heads=PretrainingHeads(model.config))
    other = PretrainingHeads(dataclasses.replace(model.config, num_labels=4))
    with pytest.raises(
        BadInput, match=r"last/heads.safetensors: 2 keys do not fit .* shape \[3, 8\], expected \[4, 8\]"
    ):
        load_heads(other, tmp_path / "last")


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    run = open_run(tmp_path, resume=False)
    save(run, 10, is_best=True)
    assert checkpoints(run) == ["step-00000010"]
    save(run, 20, is_best=True)
    assert checkpoints(run) == ["step-00000020"] and target(run, "best") == "step-00000020"
    save(run, 30)
    save(run, 40)
    assert checkpoints(run) == ["step-00000020", "step-00000040"]
    assert (target(run, "best"), target(run, "last")) == ("step-00000020", "step-00000040")
    for step in (50, 60, 70):
        save(run, step, keep=3)
    assert checkpoints(run) == ["step-00000020", *(f"step-000000{n}0" for n in (5, 6, 7))]
    save(run, 80, is_best=True, keep=2)
    assert checkpoints(run) == ["step-00000070", "step-00000080"]
    assert not [p.name for p in tmp_path.rglob("*partial*")]


def test_a_checkpoint_that_lies_elsewhere_is_let_go_of_and_stays_there(tmp_path):
    run = open_run(tmp_path / "run", resume=False)
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "run/checkpoints/.step-00000010.partial").symlink_to(tmp_path / "other")  # a link is not written through, either
    for step in (10, 20):
        folder = save(run, step, keep=3)
        folder.rename(tmp_path / folder.name)
        folder.symlink_to(tmp_path / folder.name)
    save(run, 20, keep=3)  # once more, as after a stop between the folder and its links
    save(run, 30)
    assert checkpoints(run) == ["step-00000030"]
    assert all((tmp_path / f"step-{step:08d}/model.safetensors").is_file() for step in (10, 20)) and not list((tmp_path / "other").iterdir())


def test_metrics_after_the_checkpoint_are_taken_back(tmp_path, monkeypatch):
    # files of one second are read in the order of their names, which a process numbers: 10 would come before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = open_run(tmp_path, resume=False)
    for step in (5, 10, 15):
        run.log(step, {"loss": step / 10})
        if step == 10:
            run.log(step, {"val/AR": 3.0})
            save(run, step)
    run.close()
    log = tmp_path / "metrics.jsonl"
    with open(log, "a") as file:
        file.write('{"step": 20, "lo')  # killed while writing

    run = open_run(tmp_path, resume=True)
    assert loaded(run)["step"] == 10
    expected = [{"step": 5, "loss": 0.5}, {"step": 10, "loss": 1.0}, {"step": 10, "val/AR": 3.0}]
    assert [json.loads(line) for line in log.read_text().splitlines()] == expected
    run.log(15, {"loss": 9.0, "note": "not a number"})
    run.close()
    assert json.loads(log.read_text().splitlines()[-1]) == {"step": 15, "loss": 9.0, "note": "not a number"}
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    texts = {tag: curves.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode() for tag in ("settings", "run")}
    assert "epochs: 3\n" in texts["settings"] and "ranks: 1\n" in texts["run"] and "torch:" in texts["run"]
    assert [(e.step, e.value) for e in curves.Scalars("loss")] == [(5, 0.5), (10, 1.0), (15, 9.0)]


@pytest.mark.parametrize(
    "damage", [b'{"step": 5, "lo\n', b'{"loss": 1.0}\n', b"[5]\n", b'{"step": "5"}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n", b"\n", b"\0" * 20 + b"\n"]
)
def test_a_damaged_line_of_the_metrics_is_left_out_and_told(tmp_path, capsys, damage):
    run = open_run(tmp_path, resume=False)
    for step in (5, 10):
        run.log(step, {"loss": step / 10})
    save(run, 10)
    run.close()
    log = tmp_path / "metrics.jsonl"
    whole = log.read_bytes()
    first, second = whole.splitlines(keepends=True)
    log.write_bytes(first + damage + second + damage)
    assert loaded(open_run(tmp_path, resume=True))["step"] == 10
    assert log.read_bytes() == whole
    said = capsys.readouterr().err
    assert said == f"warning: {log}: 2 lines are damaged and left out, the first: line 2\n"


def test_what_is_restored_is_of_one_checkpoint_wherever_the_link_points_meanwhile(tmp_path):
    run = open_run(tmp_path, resume=False)
    first = save(run, 10, keep=2)
    save(run, 20, keep=2)
    point_link(tmp_path, "last", first)
    run = open_run(tmp_path, resume=True)
    point_link(tmp_path, "last", tmp_path / "checkpoints" / "step-00000020")
    assert loaded(run)["step"] == 10 and run.checkpoint == first


def test_a_model_is_read_of_one_checkpoint_wherever_its_link_points_meanwhile(tmp_path, monkeypatch):
    run = open_run(tmp_path, resume=False)
    save(run, 10, keep=2, model=small_model(0, feature_dim=4))
    second = save(run, 20, keep=2, model=small_model(1, feature_dim=5))
    point_link(tmp_path, "best", tmp_path / "checkpoints" / "step-00000010")
    read = checkpoint_files.read_config

    def moved_meanwhile(folder):
        values = read(folder)
        point_link(tmp_path, "best", second)
        return values

    monkeypatch.setattr(checkpoint_files, "read_config", moved_meanwhile)
    assert LightningDOT.from_pretrained(tmp_path / "best").config.feature_dim == 4
    assert LightningDOT.from_pretrained(tmp_path / "best").config.feature_dim == 5


def test_a_pipe_in_the_place_of_the_metrics_is_not_waited_for(tmp_path):
    run = open_run(tmp_path, resume=False)
    save(run, 10)
    os.mkfifo(tmp_path / "metrics.jsonl")
    for use in (open_run(tmp_path, resume=True).load, lambda: run.log(5, {"loss": 1.0})):
        with pytest.raises(BadInput, match=r"metrics.jsonl: a named pipe, and only files are read"):
            use()
    run.close()


def test_a_fresh_run_takes_no_metrics_over(tmp_path):
    run = open_run(tmp_path, resume=False)
    run.log(5, {"loss": 1.0})
    run.close()
    run = open_run(tmp_path, resume=True)  # stopped before its first checkpoint
    assert run.load() is None and not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "tensorboard").exists()
