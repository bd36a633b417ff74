"""A run's folder: refused settings, resuming, links, pruning, and saves that are stopped half-way."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from data.annotations.records import Caption
from data.batches.pairs import open_pairs
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.regions.db import BoxOptions, Regions
from data.regions.writer import RegionWriter
from model import checkpoints as checkpoint_files
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import SINGLE
from model.objectives.heads import PretrainingHeads
from model.transformer import EncoderConfig
from optim.losses import RecentLosses, reason_of_nan
from optim.optimizer import OptimOptions, build_optimizer
from optim.run import Run, load_heads, random_state, restore_random_state
from optim.saving import Saver, load_optimizer, point_link

ROOT = Path(__file__).parents[2]


@dataclass
class Config:
    out: str = "x"
    optim: OptimOptions = field(default_factory=OptimOptions)
    languages: list[str] | None = None
    epochs: int = 3
    workers: int = 0
    keep_checkpoints: int = 1
    resume: bool = False


def small_model(seed=0, feature_dim=4):
    torch.manual_seed(seed)
    sizes = EncoderConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    config = LightningDOTConfig(
        txt=sizes, img=sizes, project_dim=6, feature_dim=feature_dim, num_labels=3, cls_token_id=3
    )
    return LightningDOT(config)


def open_run(folder, config=None, resume=False, **facts):
    settings = dataclasses.replace(config or Config(), out=str(folder), resume=resume)
    return Run(settings, SINGLE, facts)


def save(
    run, step, is_best=False, keep=1, model=None, heads=None, optimizer=None, tokenizer=None, own=None, **training
):
    """Save, and wait until it is written → the checkpoint."""
    saver = Saver(run.folder, SINGLE, keep, tokenizer, timeout=5)
    model = model or small_model()
    optimizer = optimizer or build_optimizer([model], OptimOptions())
    saver.save(step, model, optimizer, training, own or {}, is_best, heads)
    saver.wait()
    return run.folder / "checkpoints" / f"step-{step:08d}"


def loaded(run):
    saved = run.load()
    return saved and saved[0]


def checkpoints(run):
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def target(run, name):
    return (run.folder / name).resolve().name


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
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("a\n")
    (tokenizer / "vocab.txt").chmod(0o444)
    tokenizer.chmod(0o555)  # databases are often read-only
    torch.manual_seed(5)
    training = {"best": 0.25, "draws": {"cursors": [[1, 2]]}}
    own = {"random": random_state()}
    final = save(run, 7, True, 1, model, heads, optimizer, tokenizer, own, **training)
    tokenizer.chmod(0o755)
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


def test_a_fresh_run_takes_no_metrics_over(tmp_path):
    run = open_run(tmp_path, resume=False)
    run.log(5, {"loss": 1.0})
    run.close()
    run = open_run(tmp_path, resume=True)  # stopped before its first checkpoint
    assert run.load() is None and not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "tensorboard").exists()


# ---- stopped half-way ------------------------------------------------------------------------------------------------


def test_a_save_that_fails_leaves_the_last_one(tmp_path):
    run = open_run(tmp_path, resume=False)
    save(run, 10, is_best=True, epoch=1)
    with pytest.raises(Exception, match="pickle"):
        save(run, 20, is_best=True, bad=lambda: None)
    model = small_model()
    with torch.no_grad():
        model.txt_model.encode_proj[0].bias[1] = float("nan")
    with pytest.raises(BadInput, match=r"txt_model.encode_proj.0.bias is NaN or infinite at step 20"):
        save(run, 20, is_best=True, model=model)
    assert checkpoints(run) == ["step-00000010"] and target(run, "last") == target(run, "best") == "step-00000010"
    assert loaded(open_run(tmp_path, resume=True))["epoch"] == 1
    assert save(run, 20).is_dir() and target(run, "last") == "step-00000020"


def test_a_run_stopped_between_a_checkpoint_and_its_links(tmp_path):
    run = open_run(tmp_path, resume=False)
    save(run, 10, is_best=True, best=1.0)
    save(run, 20, is_best=True, keep=2, best=2.0)
    point_link(tmp_path, "last", tmp_path / "checkpoints" / "step-00000010")
    point_link(tmp_path, "best", tmp_path / "checkpoints" / "step-00000010")
    run = open_run(tmp_path, resume=True)
    assert loaded(run)["step"] == 10
    save(run, 20, best=1.5)  # the same step again, under the same name
    assert target(run, "last") == "step-00000020" and target(run, "best") == "step-00000010"
    assert torch.load(tmp_path / "last" / "training.pt", weights_only=True)["best"] == 1.5


def test_a_run_stopped_between_its_links_still_knows_the_best(tmp_path):
    run = open_run(tmp_path, resume=False)
    save(run, 10, is_best=True)
    save(run, 20, is_best=True, keep=2)
    point_link(tmp_path, "best", tmp_path / "checkpoints" / "step-00000010")
    run = open_run(tmp_path, resume=True)
    assert loaded(run)["step"] == 20 and target(run, "best") == "step-00000020"


def test_a_checkpoint_that_is_gone_or_damaged_is_named(tmp_path):
    run = open_run(tmp_path, resume=False)
    final = save(run, 10)
    run.log(10, {"loss": 1.0})
    run.close()
    whole = (final / "training.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"rubbish"):
        (final / "training.pt").write_bytes(damaged)
        with pytest.raises(BadInput, match=f"^{tmp_path}/checkpoints/step-00000010/training.pt: damaged training state"):
            loaded(open_run(tmp_path, resume=True))
    final.rename(tmp_path / "elsewhere")
    for resume in (True, False):  # starting afresh would throw the metrics away
        with pytest.raises(BadInput, match=f"^{tmp_path}/last: points to .*step-00000010, which is not there"):
            open_run(tmp_path, resume=resume)
    assert (tmp_path / "metrics.jsonl").exists()


def test_a_full_disk_is_one_line_and_leaves_the_last_one(tmp_path):
    save(open_run(tmp_path, resume=False), 10)
    code = f"""
import resource, signal, torch
from tests.optim.test_run_state import open_run, save, small_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run = open_run({str(tmp_path)!r}, resume=True)
for feature_dim, training in ((2000, {{}}), (4, {{"moments": torch.zeros(10_000)}})):
    try:
        save(run, 20, True, model=small_model(feature_dim=feature_dim), **training)
    except Exception as error:
        print(type(error).__name__, error)
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    lines = [line for line in result.stdout.splitlines() if line.startswith("BadInput")]
    assert len(lines) == 2, result.stderr
    for line in lines:
        assert line.startswith(f"BadInput {tmp_path}/checkpoints/") and "cannot be written" in line
    assert target(open_run(tmp_path, resume=True), "last") == "step-00000010"
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000010"]


WRITER = """
import sys
import torch
from tests.optim.test_run_state import open_run, loaded, build_optimizer, OptimOptions, Saver, SINGLE
from tests.optim.test_run_state import LightningDOT, LightningDOTConfig, EncoderConfig
torch.set_num_threads(1)
sizes = EncoderConfig(vocab_size=4000, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
model = LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, project_dim=128, feature_dim=16))
run = open_run(sys.argv[1], resume=True)
saver = Saver(run.folder, SINGLE, 1, None, 5)
optimizer = build_optimizer([model], OptimOptions())
state = loaded(run)
step = state["step"] if state else 0
while True:
    step += 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    training = {"best": step - step % 3, "moments": torch.full((500_000,), float(step))}
    saver.save(step, model, optimizer, training, {}, step % 3 == 0)  # waits for the one before
    if step > 1: print("saved", file=sys.stderr, flush=True)
"""


def test_killed_while_saving_the_last_checkpoint_is_whole(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    (tmp_path / "writer.py").write_text(WRITER)
    generator = random.Random(0)
    steps = []
    for _ in range(4):
        command = [sys.executable, tmp_path / "writer.py", tmp_path / "run"]
        writer = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3):
            assert writer.stderr.readline() == "saved\n"
        time.sleep(generator.uniform(0, 0.1))  # in the middle of one of the next saves of 6 MB
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        run = open_run(tmp_path / "run", resume=True)
        state = loaded(run)
        steps.append(state["step"])
        assert state["moments"].eq(state["step"]).all()
        for name in ("last", "best"):
            if name == "last" or state["best"]:
                values = {p.unique().item() for p in LightningDOT.from_pretrained(run.folder / name).parameters()}
                assert values == {float(state["step"] if name == "last" else state["best"])}
        assert steps[-1] >= 2 * len(steps)  # each went on from where the one before was killed; its third save may not be whole


# ---- losses between two lines of metrics -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six pictures of one caption each; p2 has a NaN feature, p3 an infinite box, p4 a NaN label."""
    root = tmp_path_factory.mktemp("pairs")
    (root / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\ndog\n")
    records = [Caption(f"p{i}.jpg", "a red dog", f"c{i}", "train", "en") for i in range(6)]
    write_caption_db(root / "captions", records, CaptionTokenizer.from_pretrained(root / "vocab.txt"), ["a.jsonl"])
    with RegionWriter(root / "regions") as writer:
        for i in range(6):
            regions = Regions(np.ones((3, 4)), np.ones((3, 6)), np.ones(3), np.ones((3, 2)))
            if i == 2:
                regions.features[1, 2] = np.nan
            elif i == 3:
                regions.norm_bb[0, 0] = np.inf
            elif i == 4:
                regions.soft_labels[2, 1] = np.nan
            writer.add(f"p{i}.npz", regions)
    return open_pairs(root / "captions", root / "regions", BoxOptions())


def test_recent_losses_are_averaged_by_task(pairs):
    recent = RecentLosses(SINGLE)
    parameter = torch.ones(2, requires_grad=True)
    for name, value in (("cmr", 1.0), ("vmlm", 5.0), ("cmr", 2.0)):
        recent.add(name, (parameter * value).mean(), pairs, np.array([0, 1, 5]), 3)
    metrics = recent.flush(3)
    assert metrics.pop("speed/pairs_per_s") > 0 and metrics.pop("speed/waiting_for_data") == 0
    assert metrics == {"train/cmr/loss": 1.5, "train/vmlm/loss": 5.0}
    recent.add("cmr", parameter.mean() * 7, pairs, np.array([0]), 1)
    assert recent.flush(4)["train/cmr/loss"] == 7.0  # and only what came since


def test_what_is_no_training_does_not_slow_the_speed(pairs, monkeypatch):
    clock = iter([0.0, 2.0, 12.0, 13.0, 20.0, 25.0])  # started; a validation from 2 to 12; a mining from 13 to 20; flushed
    monkeypatch.setattr("optim.losses.time.perf_counter", lambda: next(clock, 99.0))
    recent = RecentLosses(SINGLE)
    recent.add("cmr", torch.tensor(1.0), pairs, np.array([0]), 16)
    for _ in range(2):
        with recent.paused():
            pass
    assert recent.flush(1)["speed/pairs_per_s"] == 2.0  # 16 pairs in 25 - 10 - 7 seconds


def test_waiting_for_data_is_a_share_of_the_time_without_pauses(pairs, monkeypatch):
    # started; a batch from 1 to 3; another from 4 to 14, of which 5 to 12 are a mining; the end from 15 to 15; flushed
    clock = iter([0.0, 1.0, 3.0, 4.0, 5.0, 12.0, 14.0, 15.0, 27.0])
    monkeypatch.setattr("optim.losses.time.perf_counter", lambda: next(clock, 99.0))
    recent = RecentLosses(SINGLE)

    def batches():
        yield "a"
        with recent.paused():
            pass
        yield "b"

    assert list(recent.waited_for(batches())) == ["a", "b"]
    recent.add("cmr", torch.tensor(1.0), pairs, np.array([0]), 16)
    assert recent.flush(1)["speed/waiting_for_data"] == 25.0  # 2 + 3 of 27 - 7 seconds


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "indices, culprit",
    [([0, 2, 5], "key p2.npz .* features"), ([3, 0], "key p3.npz .* norm_bb"), ([1, 4], "key p4.npz .* soft_labels")],
)
def test_a_loss_that_is_no_number_names_the_record(pairs, value, indices, culprit):
    recent = RecentLosses(SINGLE)
    recent.add("cmr", torch.tensor(0.5), pairs, np.array([0, 1]), 2)
    recent.add("mrckl", torch.tensor(value), pairs, np.array(indices), 2)
    with pytest.raises(BadInput, match=f"loss of mrckl is {value} by step 9: {pairs.regions.folder}: {culprit}"):
        recent.flush(9)


def test_without_a_bad_record_training_diverged(pairs):
    message = reason_of_nan(pairs, np.array([5, 0]))
    assert (
        message.startswith("training diverged on the batch of caption c5 (") and str(pairs.captions.folder) in message
    )
