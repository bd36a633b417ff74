"""Several ranks compute what one process computes: real processes under torchrun (Gloo) and horovodrun."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from ranks_worker import CASES, OWN_CASES, build, compute, make_batch, shares

from data.errors import BadInput
from model.distributed import SINGLE, Announced, start_ranks
from model.gradient_exchange import GradientExchange
from model.objectives import OBJECTIVES
from tests.padded import padded_twin

WORKER = Path(__file__).parents[1] / "ranks_worker.py"
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torch": lambda n: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)],
    "horovod": lambda n: [str(BIN / "horovodrun"), "--gloo", "-np", str(n), sys.executable],
}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(backend, n, cases, out, timeout=60, status=0):
    """Run the worker on ``n`` ranks → what rank 0 wrote down."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RANKS_TIMEOUT": str(timeout)}
    command = [*LAUNCHERS[backend](n), str(WORKER), ",".join(cases), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode == 0) == (status == 0), done.stdout + done.stderr
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def single():
    model, heads = build()
    twin = padded_twin(model)  # whose sequences are padded
    return {case: compute(case, SINGLE, twin, heads) for case in CASES}


@pytest.fixture(
    scope="module", params=[("torch", 2), ("torch", 3), pytest.param(("horovod", 2), marks=pytest.mark.horovod)]
)
def together(request, tmp_path_factory):
    backend, n = request.param
    out = tmp_path_factory.mktemp("ranks") / "out.pt"
    return n, launch(backend, n, [*CASES, *OWN_CASES, "weights", "types", "out_of_step", "ahead", "exchange"], out)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_one_process(together, single, case):
    found, expected = together[1][case], single[case]
    torch.testing.assert_close(found["loss"], expected["loss"], atol=1e-5, rtol=1e-5, check_dtype=False)
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected["gradients"].values())


@pytest.mark.parametrize("case", OWN_CASES)
def test_with_negatives_of_the_own_rank_several_ranks_are_the_mean_of_each_by_itself(together, case):
    n, results = together
    model, heads = build()
    alone = [compute(case, SINGLE, model, heads, share=share) for share in shares(case, n) if share[1]]
    mean = {name: sum(each["gradients"][name] for each in alone) / len(alone) for name in alone[0]["gradients"]}
    loss = sum(each["loss"] for each in alone) / len(alone)
    torch.testing.assert_close(results[case]["loss"], loss, atol=1e-5, rtol=1e-5, check_dtype=False)
    assert results[case]["gradients"].keys() == mean.keys()
    for name, gradient in mean.items():
        torch.testing.assert_close(results[case]["gradients"][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    if case == "cmr_own":  # fewer candidates than among the pairs of all ranks
        assert loss < results["cmr"]["loss"] - 1e-2


def test_gradients_that_leave_during_backward_are_those_that_are_summed_afterwards(together):
    """With two ranks bit for bit; with more, sums of other buckets add in another order."""
    n, results = together
    for case in CASES:
        found = results[case]
        assert found["buckets"] > 5
        assert found["gradients"].keys() == found["again"].keys() == found["naive"].keys()
        for name, naive in found["naive"].items():
            assert torch.equal(found["again"][name], found["gradients"][name]), (case, name)
            if n == 2:
                assert torch.equal(found["again"][name], naive), (case, name)
            torch.testing.assert_close(found["again"][name], naive, atol=1e-6, rtol=1e-6)


def test_gradients_of_changing_parameters(together):
    n, results = together
    found, whole = results["exchange"], 3.0 * sum(range(1, n + 1))
    three = [[whole] * 3, [whole] * 5, [whole] * 700, None]
    assert found["learnt"] == found["sent"] == three
    assert found["other"] == [None, None, None, [whole] * 2]
    assert found["fewer"] == [[whole] * 3, [3.0] * 5, [whole] * 700, None]  # it has one on the first rank alone
    assert found["more"] == [*three[:3], [whole] * 2]
    assert found["fp16"] == [[None, *three[1:3], None]] * 2  # whole numbers so small are not rounded
    if results["backend"] == "horovod":
        assert found["bf16"].startswith("gradient_format bf16: Horovod does not add bf16 numbers")
    else:
        assert found["bf16"] == found["fp16"]
    assert found["different"].startswith("ranks have gradients of different parameters")


def test_ranks_tell_each_other_of_batches_ahead(together):
    n, results = together
    assert results["ahead"]["met"] == [[[rank + k for rank in range(n)], 10 * k * n, True] for k in (1, 2)]


def test_siblings_on_other_ranks_are_masked(together):
    """The cases are worth something: with the siblings kept, and with captions that are about their row's image, the loss is
    another."""
    assert together[1]["cmr"]["loss"] < together[1]["cmr_keep"]["loss"] - 1e-3
    model, heads = build()
    batch = make_batch("cmr_apart", shares("cmr_apart", 1)[0][0])
    batch.num_pairs = shares("cmr_apart", 1)[0][1]
    objective = OBJECTIVES["cmr"]()
    apart = float(objective.forward(model, heads, batch).mean.detach())
    batch.text_image_ids = None
    assert apart == pytest.approx(float(together[1]["cmr_apart"]["loss"]), abs=1e-5)
    assert abs(apart - float(objective.forward(model, heads, batch).mean.detach())) > 1e-3


def test_ranks_start_and_stay_with_the_same_weights(together):
    assert together[1]["weights"]["spread"] == 0


def test_rows_of_every_type_are_gathered(together):
    n, results = together
    rows = [float(rank) for rank in range(n) for _ in range(rank + 1)]
    assert results["types"]["dtypes"] == ["torch.int64", "torch.bfloat16", "torch.bool", "torch.float16"]
    for index, found in enumerate(results["types"]["rows"]):
        assert found.tolist() == [min(row, 1.0) if index == 2 else row for row in rows]


def test_a_rank_out_of_step_is_named(together):
    n, results = together
    assert f"ranks are out of step, at {[[3, rank] for rank in range(n)]}" in results["out_of_step"]["message"]


def test_a_dead_rank_is_not_waited_for(tmp_path):
    """Not through the launcher, which would end the others too."""
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "RANKS_TIMEOUT": "20"}
    command = [sys.executable, str(WORKER), "dead", str(tmp_path / "out.pt")]
    ranks = [subprocess.Popen(command, env=environment | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(2)]
    assert ranks[1].wait(timeout=240) == 7
    ranks[0].wait(timeout=240)
    found = torch.load(tmp_path / "out.pt", weights_only=True)["dead"]
    said, bracket, engine = found["message"].partition(" (")
    assert said == "rank 0 of 2: another rank died, hangs, or is out of step; see its output, and start the same command again"
    assert bracket and len(engine) < 65 and ".cc" not in engine and "\n" not in engine
    assert found["seconds"] < 40


@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_only_ranks_of_torchrun_watch_it(monkeypatch, launcher):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    if launcher:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    def watchers() -> int:
        return [thread.name for thread in threading.enumerate()].count("launcher")

    before = watchers()
    start_ranks("auto", False, 10).close()
    assert watchers() - before == bool(launcher)


def test_one_process_on_its_own():
    x = torch.randn(3, 2, requires_grad=True)
    assert SINGLE.gather(x, [3]) is x and SINGLE.exchange([1, 2]).tolist() == [[1, 2]]
    met = SINGLE.meet([Announced((4,), 3, 2)], "SIGTERM")()[0]
    assert (met.sizes, met.predictions, met.stop) == ([3], 2, True)


def test_backends_need_their_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "HOROVOD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert start_ranks("auto", False, 10) is SINGLE and start_ranks("none", False, 10) is SINGLE
    with pytest.raises(BadInput, match="distributed torch: started without torchrun"):
        start_ranks("torch", False, 10)
    if importlib.util.find_spec("horovod") is None:
        with pytest.raises(BadInput, match="Horovod is not installed"):
            start_ranks("horovod", False, 10)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HOROVOD_SIZE": "--"}, "HOROVOD_RANK in the environment: found None"),
        ({"HOROVOD_SIZE": "--", "HOROVOD_RANK": "0"}, "HOROVOD_SIZE in the environment: found '--'"),
        ({"HOROVOD_SIZE": "0", "HOROVOD_RANK": "0"}, "HOROVOD_RANK in the environment: found 0, expected less than HOROVOD_SIZE, 0"),
        ({"HOROVOD_LOCAL_SIZE": "2", "HOROVOD_LOCAL_RANK": "2"}, "HOROVOD_LOCAL_RANK"),
    ],
)
def test_what_horovod_would_end_the_process_for_is_refused_before_it_starts(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=said):
        start_ranks("horovod", False, 10)


@pytest.mark.horovod
def test_horovod_without_horovodrun_is_refused():
    """It would silently make worlds of one."""
    code = "from model.distributed import start_ranks; start_ranks('horovod', False, 10)"
    environment = {k: v for k, v in os.environ.items() if k != "HOROVOD_SIZE"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=WORKER.parents[1]
    )
    assert "started without horovodrun, Horovod sees 1 ranks (HOROVOD_SIZE is not set)" in done.stderr


def test_gradients_are_sent_in_buckets_of_one_type(monkeypatch):
    monkeypatch.setattr("model.gradient_exchange.BUCKET_BYTES", 40)
    tensors = [torch.zeros(n, dtype=t) for n, t in ((4, torch.float32), (6, torch.float32), (2, torch.float32),
                                                    (3, torch.float64), (9, torch.float64), (1, torch.float64))]  # fmt: skip
    buckets = GradientExchange(tensors, SINGLE)._buckets(range(len(tensors)))
    assert [[len(tensors[n]) for n in bucket] for bucket in buckets] == [[4, 6], [2], [3, 9], [1]]


@pytest.mark.horovod
def test_both_engines_train_alike(small_world, tmp_path):
    """Two ranks under each launcher: the same data and tasks, and losses that differ by rounding alone."""
    metrics = {}
    for backend, launcher in LAUNCHERS.items():
        words = ["--config", small_world / "pretrain.yaml", "--out", tmp_path / backend]
        command = [*launcher(2), WORKER.parents[1] / "pretrain.py", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert json.loads((tmp_path / backend / "run.json").read_text())["distributed"] == backend
        lines = [json.loads(line) for line in (tmp_path / backend / "metrics.jsonl").read_text().splitlines()]
        metrics[backend] = [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]
    assert len(metrics["torch"]) == len(metrics["horovod"]) > 32
    for found, expected in zip(metrics["horovod"], metrics["torch"], strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
