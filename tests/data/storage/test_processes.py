"""Ctrl-C and the processes that a command has started."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import _ExecutorManagerThread
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from configs.cli import parse
from data.errors import BadInput, Stopped
from data.storage.processes import check_workers, ctrl_c_held, run_command, starting_workers, worker_pool
from scripts.inspect_db import Options as InspectOptions

ROOT = Path(__file__).resolve().parents[3]

POOL = """
import sys, time
sys.path.insert(0, {root!r})
from configs import cli
from data.storage.processes import starting_workers, worker_pool
from dataclasses import dataclass

@dataclass
class Options:
    \"\"\"Nothing.\"\"\"

def main(options):
    with worker_pool(2, {method!r}) as pool:
        with starting_workers():
            jobs = [pool.submit(time.sleep, 0.05) for _ in range(2)]
        [job.result() for job in jobs]
        print(*pool._processes, flush=True)
        time.sleep(600)

if __name__ == "__main__":
    cli.run(main, Options)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pids: list[int], seconds: float = 240) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    return not any(map(is_running, pids))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_pool_leaves_ctrl_c_to_its_command_and_ends_with_it(tmp_path, method, name):
    (tmp_path / "pool.py").write_text(POOL.format(root=str(ROOT), method=method))
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        if name == "SIGINT":  # a terminal sends it to all
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=240)
    assert ends(workers)
    assert process.returncode == (130 if name == "SIGINT" else -getattr(signal, name))
    if name == "SIGINT":
        assert said == "stopped by Ctrl-C; what was there before is whole\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_is_left_at_once_whatever_its_workers_are_at(method):
    """As one is that waits for the lock of a worker that was killed."""
    started = time.monotonic()
    with worker_pool(2, method) as pool, starting_workers():
        workers = [pool.submit(time.sleep, 600) for _ in range(2)]
        pids = list(pool._processes)
    assert time.monotonic() - started < 300 and pids and ends(pids)
    assert all(job.done() for job in workers)


RESULTS = """
import sys
sys.path.insert(0, {root!r})
from data.storage.processes import starting_workers, worker_pool

def large(number):
    return bytes(32 << 20)

if __name__ == "__main__":
    try:
        with worker_pool(2, {method!r}) as pool:
            with starting_workers():
                jobs = [pool.submit(large, number) for number in range(4)]
            jobs[0].result()
            raise ValueError("the others are on their way")
    except ValueError as error:
        print(error)
    try:
        with worker_pool(2, {method!r}) as pool:
            with starting_workers():
                found = pool.map(large, range(50))
            for _ in found:
                break
            found.close()  # cancels those that are left
    finally:
        print("left")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_is_left_while_a_worker_hands_over_a_large_result(tmp_path, method):
    (tmp_path / "results.py").write_text(RESULTS.format(root=str(ROOT), method=method))
    done = subprocess.run([sys.executable, tmp_path / "results.py"], capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.stderr) == ("the others are on their way\nleft\n", "")


def test_a_pool_is_left_in_silence_however_late_its_thread_hears_of_it(monkeypatch):
    """As on a busy machine, where the workers are gone before it has dropped the jobs that were cancelled."""
    leaving, killed, errors = threading.Event(), threading.Event(), []
    wait, kill = _ExecutorManagerThread.wait_result_broken_or_wakeup, BaseProcess.kill

    def wait_late(thread):
        found = wait(thread)
        return wait(thread) if leaving.is_set() and killed.wait(240) else found

    monkeypatch.setattr(_ExecutorManagerThread, "wait_result_broken_or_wakeup", wait_late)
    monkeypatch.setattr(BaseProcess, "kill", lambda process: (kill(process), killed.set()))
    monkeypatch.setattr(threading, "excepthook", errors.append)
    with worker_pool(1, "fork") as pool, starting_workers():
        jobs = [pool.submit(time.sleep, 600) for _ in range(9)]
        assert jobs[-1].cancel()
        leaving.set()
    assert not errors and all(job.done() for job in jobs)


KILLED = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from data.storage.processes import starting_workers, worker_pool

def large(number):
    def write_a_part(connection, content):
        os.write(connection.fileno(), content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    Connection._send = write_a_part
    return bytes(32 << 20)

main_closes, close = threading.Event(), Connection._close

def close_late(connection):
    if threading.current_thread() is threading.main_thread():
        main_closes.set()
    close(connection)
    main_closes.wait(1)  # what closes it besides, does it now

if __name__ == "__main__":
    Connection._close = close_late
    with worker_pool(1, "spawn") as pool:
        with starting_workers():
            job = pool.submit(large, 0)
        main_closes.clear()
        try:
            job.result()
        except BrokenProcessPool:
            print("broken")
"""


def test_a_worker_that_is_killed_while_it_hands_over_a_result_is_noticed(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, tmp_path / "killed.py"], capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.stderr) == ("broken\n", "")


FILES = """
import resource, sys
sys.path.insert(0, {root!r})
import torch
from data.storage.processes import leave_ctrl_c_to_parent, starting_workers, worker_pool

def start(tensors):
    leave_ctrl_c_to_parent()

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with worker_pool(2, "spawn", start, ([torch.zeros(3) for _ in range(200)],)) as pool:
        with starting_workers():
            jobs = [pool.submit(abs, -5) for _ in range(2)]
        print(*[job.result() for job in jobs])
"""


def test_a_model_of_more_tensors_than_files_may_be_open_goes_to_workers(tmp_path):
    (tmp_path / "files.py").write_text(FILES.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, tmp_path / "files.py"], capture_output=True, text=True)
    assert done.stdout == "5 5\n", done.stderr[-2000:]


def test_what_must_not_be_left_half_done_is_finished_first():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with ctrl_c_held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append(1)
    assert done == [1]
    with pytest.raises(ZeroDivisionError), ctrl_c_held():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def command(*statements: str) -> list[str]:
    return [sys.executable, "-c", "; ".join(("import os, signal, time", *statements))]


def test_a_command_ends_in_its_own_time(tmp_path):
    assert run_command(command("exit(3)")) == 3
    assert run_command(command("print(os.getcwd(), file=open('out', 'w'))"), cwd=tmp_path) == 0
    assert (tmp_path / "out").read_text() == f"{tmp_path}\n"
    press = "os.kill(os.getppid(), signal.SIGINT)"
    with pytest.raises(Stopped, match="the same command goes on"):
        run_command(command(press, "time.sleep(0.5)", press, "time.sleep(0.5)", "exit(75)"))
    with pytest.raises(KeyboardInterrupt):
        run_command(command(press, "time.sleep(0.5)", "exit(130)"))
    assert run_command(command(press, "time.sleep(0.5)")) == 0  # it had ended anyway
    handler = "signal.signal(signal.SIGTERM, lambda *_: os._exit(75))"
    with pytest.raises(Stopped):
        run_command(command(handler, "os.kill(os.getppid(), signal.SIGTERM)", "time.sleep(20)"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_no_machine_runs_so_many():
    for number in (None, 0, 1024):
        check_workers(number)
    with pytest.raises(BadInput, match="workers: found 1,000,000, expected at most 1,024 processes"):
        parse(InspectOptions, ["db", "--workers", "1000000"], ("path",))
    with pytest.raises(BadInput, match="workers: found -1, expected 0 or more processes"):
        parse(InspectOptions, ["db", "--workers", "-1"], ("path",))


def test_a_command_ends_with_a_parent_that_is_killed(tmp_path):
    inner = command("print(os.getpid(), flush=True)", "time.sleep(600)")
    outer = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from data.storage.processes import run_command; run_command({inner!r})"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert ends([pid])


@pytest.mark.parametrize("answer", ["pass", "signal.signal(signal.SIGTERM, lambda *_: None)"])
def test_a_process_ends_with_the_launcher_that_started_it(answer):
    """Also one that does not heed SIGTERM; and it says why."""
    watch = "from data.storage.processes import end_with_launcher; end_with_launcher('the launcher is gone', 0.2)"
    going_on = ("[time.sleep(0.1) for _ in range(600)]", "print('it went on', file=sys.stderr)")
    inner = command(f"import sys; sys.path.insert(0, {str(ROOT)!r})", watch, answer, "print(os.getpid(), flush=True)", *going_on)
    outer = command(f"import subprocess; subprocess.run({inner!r})")
    with subprocess.Popen(outer, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        assert process.stderr.read() == "the launcher is gone\n"  # to its end: nobody holds it open any more
        assert ends([pid])
