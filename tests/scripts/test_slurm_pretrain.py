"""The job script under stand-ins for Slurm's own commands: real torchrun, real signals, a run that only waits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import os, pathlib, signal, sys, time
folder, words = pathlib.Path(sys.argv[1]), sys.argv[1:]
stopped = []
signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
rank = os.environ["RANK"]
starts = folder / f"starts-{rank}"
starts.write_text(str(int(starts.read_text()) + 1 if starts.exists() else 1))
with open(folder / f"stores-{rank}", "a") as file:
    print(os.environ["MASTER_PORT"], file=file)
(folder / f"words-{rank}").write_text(" ".join(words[1:]))
if os.environ.get("FAILS") and starts.read_text() == "1":
    sys.exit(3)
if os.environ.get("ENDS"):
    sys.exit(0)
for _ in range(4800):
    if stopped:
        sys.exit(75)
    time.sleep(0.05)
"""


@pytest.fixture
def job(tmp_path):
    """Start the job script on one node with two processes; returns the process, as Slurm would have it."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text(
        f'#!/bin/sh\ncase $1 in show) echo localhost;; *) echo "$@" >>{tmp_path}/requeued;; esac\n'
    )
    # srun runs its words once, and leaves its process id for the signal that Slurm would send to the task
    (commands / "srun").write_text(f'#!/bin/sh\nshift\necho $$ >{tmp_path}/task\nexec "$@"\n')
    for path in commands.iterdir():
        path.chmod(0o755)
    (tmp_path / "run.py").write_text(RUN)

    def start(**settings) -> subprocess.Popen:
        environment = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "PYTHON": sys.executable,
            "SCRIPT": str(tmp_path / "run.py"), "PROCESSES": "2", "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_SUBMIT_DIR": str(ROOT),
        }  # fmt: skip
        words = [ROOT / "scripts/slurm_pretrain.sh", tmp_path, "--optim.lr", "1e-4"]
        return subprocess.Popen(words, env=environment | settings, stderr=subprocess.PIPE, text=True)

    return start


def wait_for(*paths: Path) -> None:
    for _ in range(4800):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.05)
    raise AssertionError(f"{paths} did not appear")


def test_signal_stops_all_processes_and_the_job_is_queued_again(job, tmp_path):
    running = job()
    wait_for(tmp_path / "words-0", tmp_path / "words-1")
    os.kill(int((tmp_path / "task").read_text()), signal.SIGUSR1)
    assert running.wait(240) == 75, running.stderr.read()
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    for rank in "01":
        assert (tmp_path / f"starts-{rank}").read_text() == "1"  # torchrun did not start it again
        assert (tmp_path / f"words-{rank}").read_text() == "--optim.lr 1e-4"
    assert not list(tmp_path.glob("lightningdot.*"))


def test_failed_processes_start_again_and_a_finished_job_is_not_queued(job, tmp_path):
    running = job(FAILS="1", ENDS="1", MAX_RESTARTS="1")
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    assert (tmp_path / "starts-0").read_text() == (tmp_path / "starts-1").read_text() == "2"
    stores = (tmp_path / "stores-0").read_text().split()
    assert len(set(stores)) == 2  # in the first one's store they would find addresses of processes that are gone
    assert not (tmp_path / "requeued").exists()


def test_a_run_that_keeps_failing_ends_the_job(job, tmp_path):
    running = job(FAILS="1", MAX_RESTARTS="0")
    running.communicate(timeout=240)
    assert running.returncode not in (0, 75) and not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SLURM_JOB_ID": ""}, "error: not in a Slurm job; start with: sbatch"),
        ({"SCRIPT": "absent.py"}, "absent.py: not there; submit in the folder of the repository"),
    ],
)
def test_what_is_missing_is_said_in_one_line(job, settings, message):
    _, errors = (running := job(**settings)).communicate(timeout=240)
    assert running.returncode == 2 and message in errors and errors.count("\n") == 1


def test_shell_scripts_are_well_formed():
    for script in [*ROOT.glob("scripts/*.sh"), ROOT / ".ci/run"]:
        checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, ""), script
