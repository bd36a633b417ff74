"""Runs that are killed at any moment end as runs that were not: the same weights, moments and metrics, bit for bit."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
LONG = {
    "pretrain.py": ["--num-steps", 120, "--valid-every", 40, "--save-every", 7, "--log-every", 10],
    "train_itm.py": ["--epochs", 5, "--save-every", 5, "--log-every", 4, "--batch-size", 8, "--validation-sheet", 0],
}
HARD = ["--hard-negatives.count", 1, "--hard-negatives.window", "0-4", "--grad-accumulation", 2, "--grad-cache", 3]


class Forker:
    """The process that starts runs (forker.py), and what became of them."""

    def __init__(self):
        command = [sys.executable, ROOT / "tests" / "forker.py"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request) -> int:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, words, log: Path, ranks=1, file_size=0) -> list[int]:
        """Start a command on so many ranks, as torchrun would → their pids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = [str(word) for word in words]
        pids = []
        for rank in range(ranks):
            env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            log_file = f"{log}.{rank}" if rank else str(log)
            pids.append(self.ask(run=words, env=env if ranks > 1 else {}, log=log_file, file_size=file_size))
        return pids

    def wait(self, pids) -> list[int]:
        return [self.ask(wait=pid) for pid in pids]


@pytest.fixture(scope="module")
def forker():
    forker = Forker()
    yield forker
    forker.process.stdin.close()
    forker.process.wait()


def words_for(script, world, out, *more):
    recipe = {
        "pretrain.py": ["pretrain.yaml"],
        "train_itm.py": ["finetune.yaml", "--model.init", world / "pretrained/last"],
    }
    words = [world / recipe[script][0], *recipe[script][1:], "--out", out, "--distributed-timeout", 40]
    return [script, "--config", *words, *LONG[script], *more]


def last_step(run: Path) -> int:
    """Step of the last checkpoint; -1 before the first."""
    try:
        return int(os.readlink(run / "last").rpartition("-")[2])
    except OSError:
        return -1


def wait_while(condition, pid: int, log: Path) -> None:
    """Until the condition no longer holds; an error when the process ends before."""
    while condition():
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]  # who waits for it is the forker
        assert state != "Z", log.read_text()[-3000:]
        time.sleep(0.001)


def assert_same_run(run: Path, other: Path) -> None:
    """Weights, optimizer, random generators, metrics and the best checkpoint."""
    for name in ("last", "best"):
        assert os.readlink(run / name) == os.readlink(other / name)
        for path in sorted((other / name).iterdir()):
            again = run / name / path.name
            if path.suffix == ".safetensors":
                a, b = load_file(again), load_file(path)
                assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), path
            elif path.suffix == ".pt":
                assert same(*(torch.load(p, weights_only=True) for p in (again, path))), path
            elif path.is_file():
                assert again.read_bytes() == path.read_bytes(), path
    lines = [[json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()] for r in (run, other)]
    for each in (x for log in lines for x in log):
        each.pop("speed/pairs_per_s", None), each.pop("speed/waiting_for_data", None)
    assert lines[0] == lines[1]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def uninterrupted(forker, small_world, pretrained, tmp_path_factory):
    """(script, ranks, more words) → the folder of a run that nothing stopped."""
    known = {}

    def run(script, ranks, *more) -> Path:
        key = (script, ranks, more)
        if key not in known:
            known[key] = tmp_path_factory.mktemp("whole") / "run"
            log = known[key].with_name("log")
            pids = forker.start(words_for(script, small_world, known[key], *more), log, ranks)
            assert forker.wait(pids) == [0] * ranks, log.read_text()[-3000:]
        return known[key]

    return run


@pytest.mark.parametrize(
    ("script", "ranks", "kills", "more"),
    [
        ("pretrain.py", 1, 8, ("--workers", 1)),
        ("train_itm.py", 1, 8, HARD),
        ("pretrain.py", 2, 5, ()),
        ("train_itm.py", 2, 5, HARD),
    ],
)
def test_killed_at_random_moments(forker, small_world, uninterrupted, tmp_path, script, ranks, kills, more):
    whole = uninterrupted(script, ranks, *more)
    chance = random.Random(f"{script}{ranks}")
    run, log = tmp_path / "run", tmp_path / "log"
    end = last_step(whole)
    words = words_for(script, small_world, run, *more)
    for kill in range(kills):
        reached = max(last_step(run), 0) + (end - max(last_step(run), 0)) * chance.random() * 2 / (kills - kill + 1)
        pids = forker.start(words, log, ranks)
        wait_while(lambda limit=reached - 7: last_step(run) < limit, pids[0], log)
        time.sleep(chance.random() * 0.1)
        victims = pids if chance.random() < 0.5 else [chance.choice(pids)]  # all ranks, or one that the others miss
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        statuses = forker.wait(pids)
        if last_step(run) == end:  # on a busy machine this test may be late, and that was no kill
            break
        for pid, status in zip(pids, statuses, strict=True):
            assert status == (-signal.SIGKILL if pid in victims else 2), (statuses, log.read_text()[-3000:])
    assert forker.wait(forker.start(words, log, ranks)) == [0] * ranks, log.read_text()[-3000:]
    assert log.read_text().count("resumed at step") >= kills // 2
    assert_same_run(run, whole)
    assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize(
    ("script", "name", "ranks"),
    [
        ("pretrain.py", "SIGTERM", 1),
        ("pretrain.py", "SIGUSR1", 2),
        ("train_itm.py", "SIGUSR1", 1),
        ("train_itm.py", "SIGTERM", 2),
        ("pretrain.py", "SIGINT", 2),
        ("train_itm.py", "SIGINT", 1),
    ],
)
def test_a_signal_saves_and_leaves_with_its_own_status(
    forker, small_world, uninterrupted, tmp_path, script, name, ranks
):
    more = ("--save-every", 1000, "--workers", 1)
    run, log = tmp_path / "run", tmp_path / "log"
    words = words_for(script, small_world, run, *more)
    pids = forker.start(words, log, ranks)
    wait_while(lambda: not (run / "metrics.jsonl").exists(), pids[0], log)
    os.killpg(pids[-1], getattr(signal, name))  # one rank is told, with its data worker; all save at the same step
    if name == "SIGINT":  # who pressed Ctrl-C presses it again
        for _ in range(20):
            time.sleep(0.01)
            os.killpg(pids[-1], signal.SIGINT)
    assert forker.wait(pids) == [75] * ranks, log.read_text()[-3000:]
    assert "Traceback" not in log.read_text()
    assert "the same command goes on from here" in log.read_text().splitlines()[-1]
    assert 0 < last_step(run) and (run / "last" / "training.pt").is_file()
    assert forker.wait(forker.start(words, log, ranks)) == [0] * ranks
    assert_same_run(run, uninterrupted(script, ranks, *more))


def test_a_full_disk_while_saving_loses_nothing(forker, small_world, uninterrupted, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = words_for("pretrain.py", small_world, run, "--workers", 1)
    assert forker.wait(forker.start([*words, "--save-every", 0, "--workers", 1], log, file_size=100_000)) == [2]
    message = log.read_text().splitlines()[-1]
    assert message.startswith("error: ") and "cannot be written" in message and "step-00000040" in message
    assert last_step(run) == -1 and not list(run.rglob("step-*"))
    assert forker.wait(forker.start(words, log)) == [0]
    assert_same_run(run, uninterrupted("pretrain.py", 1, "--workers", 1))


@pytest.mark.parametrize(("script", "before", "after"), [("pretrain.py", 2, 1), ("train_itm.py", 1, 2)])
def test_another_number_of_ranks_goes_on_and_says_so(forker, small_world, pretrained, tmp_path, script, before, after):
    run, log = tmp_path / "run", tmp_path / "log"
    words = words_for(script, small_world, run)
    pids = forker.start(words, log, before)
    wait_while(lambda: last_step(run) < 5, pids[0], log)
    os.kill(pids[0], signal.SIGTERM)
    assert forker.wait(pids) == [75] * before
    reached = last_step(run)
    assert forker.wait(forker.start(words, log, after)) == [0] * after, log.read_text()[-3000:]
    assert f"resumed at step {reached}" in log.read_text()
    assert f"saved by {before} ranks, now {after}: the effective batch changes with them" in log.read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and lines[-1]["step"] == last_step(run)
    if script == "pretrain.py":
        assert last_step(run) == 120
    assert json.loads((run / "run.json").read_text())["ranks"] == after


def test_torchrun_restarts_a_rank_that_died(small_world, tmp_path):
    """Elastic: the launcher starts the ranks again, and they go on from the last checkpoint by themselves."""
    run = tmp_path / "run"
    words = words_for("pretrain.py", small_world, run)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--max-restarts", "2", *map(str, [ROOT / words[0], *words[1:]])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while last_step(run) < 20 and process.poll() is None:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
    assert "resumed at step" in (tmp_path / "log").read_text() and last_step(run) == 120
