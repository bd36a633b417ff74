"""A run's folder after a save that was stopped half-way: killed, out of space, without its links, damaged."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.errors import BadInput
from model.bi_encoder import LightningDOT
from optim.saving import point_link
from tests.small_runs import checkpoints, loaded, open_run, save, small_model, target

ROOT = Path(__file__).parents[2]

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
from tests.small_runs import open_run, save, small_model
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
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import SINGLE
from model.transformer import EncoderConfig
from optim.optimizer import OptimOptions, build_optimizer
from optim.saving import Saver
from tests.small_runs import open_run, loaded
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
