"""Processes that this one starts: Ctrl-C is their parent's to handle, and they end with it."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import resource
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import InvalidStateError, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from data.errors import STOPPED, BadInput, InterruptTold, Stopped

MOST_WORKERS = 1024  # processes of a command: more than any machine has cores


def check_workers(number: int | None) -> None:
    """Refuse less than none, and more processes, or threads, than any machine runs: starting them would take all of its memory. BadInput
    then."""
    if number is not None and number < 0:
        raise BadInput(f"workers: found {number}, expected 0 or more processes")
    if number is not None and number > MOST_WORKERS:
        raise BadInput(f"workers: found {number:,}, expected at most {MOST_WORKERS:,} processes")


@contextmanager
def ctrl_c_held() -> Iterator[None]:
    """Ctrl-C comes through when the block ends: for what must not be left half done."""
    received: list[tuple[int, Any]] = []
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield  # only the main thread hears signals
        return
    before = signal.signal(signal.SIGINT, lambda *how: received.append(how))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def starting_workers() -> Iterator[None]:
    """The processes that are started in this block never hear Ctrl-C, which a terminal sends to all of a command's."""
    with ctrl_c_held():  # another thread may hear it, and this one would be interrupted with half a process started
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ctrl_c_to_parent(worker: int | None = None) -> None:
    """Call this in a worker: it leaves Ctrl-C to its parent, and ends when that is gone, however it went.

    Args:
        worker: its number, which torch's data loader gives; not used
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def admit_open_files() -> None:
    """Let this process and those that it starts open as many files as the machine admits, and not the thousand that a shell does: a
    model goes to a worker as one file a tensor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # where the hard limit is beyond the system's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def worker_pool(
    workers: int, start_method: str, initializer: Callable[..., object] = leave_ctrl_c_to_parent, initargs: tuple = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes for jobs whose results are taken in this block; submit in `starting_workers`.

    Leaving the block ends the workers at once, whatever they are at: a pool that waits for them waits for good where one was killed
    while it held the lock of the queue of jobs, as an idle one does.

    Args:
        start_method: "fork" or "spawn"
        initializer: called in each worker with ``initargs``; it must call `leave_ctrl_c_to_parent`
    """
    admit_open_files()
    pool, over = ProcessPoolExecutor(workers, multiprocessing.get_context(start_method), initializer, initargs), threading.Event()
    watching = threading.Thread(target=_end_with_one, args=(pool, pool._result_queue, over), daemon=True, name="pool")
    if start_method == "spawn":  # a fork wants no other thread, and what is forked hands over little
        watching.start()
    try:
        yield pool
    finally:
        over.set()
        try:
            if start_method == "spawn":
                watching.join()  # it closes what is closed here, and two at once would close another's file
        finally:
            _end_pool(pool)


def _end_with_one(pool: ProcessPoolExecutor, results: Any, over: threading.Event) -> None:
    """Where a worker is killed while it hands over a result, let the pool be broken, which waits for the rest of it for good."""
    while not over.wait(0.5):
        processes = list((pool._processes or {}).values())
        if any(process.exitcode is not None for process in processes) and not over.wait(1):  # in which a pool sees that for itself
            for process in processes:
                process.kill()
            results._writer.close()
            return


def _end_pool(pool: ProcessPoolExecutor) -> None:
    """Kill the workers of a pool, and wait for the thread that looks after them. That calls every job that is left failed, also one that
    was cancelled before, of which Python 3.11 would raise an error in that thread."""
    processes, manager, results = list(pool._processes.values()), pool._executor_manager_thread, pool._result_queue
    try:
        for job in list(pool._pending_work_items.values()):
            job.future.set_exception = functools.partial(_fail_unless_over, job.future.set_exception)
        pool.shutdown(wait=False, cancel_futures=True)
    finally:
        for process in processes:
            process.kill()
        results._writer.close()  # of this process: else it waits for the rest of a result that a worker was handing over
    if manager is not None:
        manager.join()


def _fail_unless_over(set_exception: Callable[[BaseException], None], error: BaseException) -> None:
    with suppress(InvalidStateError):
        set_exception(error)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


_DEATH_SIGNAL = 1  # Linux: PR_SET_PDEATHSIG
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up here: little is safe between fork and exec


def ends_with_this() -> Callable[[], None]:
    """The ``preexec_fn`` of a command that gets SIGTERM when this process is gone, however it went."""
    return functools.partial(_end_with_parent, os.getpid())


def _end_with_parent(parent: int) -> None:
    """In a child, before it becomes a command: it gets SIGTERM when its parent is gone, however that went."""
    if _prctl is not None:
        _prctl(_DEATH_SIGNAL, int(signal.SIGTERM))
    if os.getppid() != parent:  # gone already
        os._exit(1)


def end_with_launcher(told: str, grace: float = 120.0) -> None:
    """From now on, end when the process that started this one is gone, however it went: say so in one line, then SIGTERM, which a training
    answers by saving; what goes on regardless is ended ``grace`` seconds later. Of debuggers nothing is noticed, they are no parents.

    Args:
        told: what the line says
    """
    threading.Thread(target=_watch_parent, args=(os.getppid(), told, grace), daemon=True, name="launcher").start()


def _watch_parent(parent: int, told: str, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    with suppress(OSError):  # its pipe may be gone with it
        os.write(2, f"{told}\n".encode())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)


def run_command(words: Sequence[str], cwd: str | Path | None = None) -> int:
    """Run a command of ours to its end → its exit status. SIGTERM is passed on to it, and sent to it where this process is killed;
    Ctrl-C it hears by itself. Either way it ends in its own time: a training saves.

    Raises:
        Stopped: the command was, and goes on when it is given again.
        KeyboardInterrupt: Ctrl-C has ended the command (``InterruptTold`` where that has said so).
    """
    interrupted = False
    with subprocess.Popen(words, cwd=cwd, preexec_fn=ends_with_this()) as process:
        main_thread = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate()) if main_thread else None
        try:
            while process.returncode is None:
                try:
                    process.wait()
                except KeyboardInterrupt:
                    interrupted = True
        finally:
            if main_thread:
                signal.signal(signal.SIGTERM, before)
    if process.returncode == STOPPED:
        raise Stopped(f"stopped at: {shlex.join(words)}; the same command goes on from there")
    if interrupted and process.returncode != 0:
        raise InterruptTold if process.returncode == 128 + signal.SIGINT else KeyboardInterrupt
    return process.returncode
