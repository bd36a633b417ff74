"""Benchmarks that are killed: what they have started ends, too."""

import contextlib
import os
import select
import signal
import sys
import threading

import pytest

from scripts.benchmarking.serving_galleries import running_service
from scripts.benchmarking.table_memory import run_processes

ENDS_WITHIN = 120  # seconds, on a machine that others use


def say_and_wait(number: int, barrier, say: int | str) -> dict:
    """In a process that is measured: say who it is, and wait for one that never comes."""
    with open(say, "w") as pipe:
        pipe.write(f"{os.getpid()}\n")
    threading.Event().wait()
    return {}


def a_service(pipe: str) -> None:
    with running_service([]):
        os.kill(os.getpid(), signal.SIGKILL)


def processes(pipe: str) -> None:
    run_processes(say_and_wait, 2, pipe)


@pytest.mark.parametrize(("started", "number"), [(a_service, 1), (processes, 2)])
def test_what_a_benchmark_has_started_ends_when_it_is_killed(tmp_path, monkeypatch, started, number):
    """A shell that says an address and sleeps stands in for the service."""
    pipe, service = tmp_path / "pipe", tmp_path / "python"
    os.mkfifo(pipe)
    service.write_text(f"#!/bin/sh\necho $$ > {pipe}\necho http://127.0.0.1:80/\nexec sleep 1000\n")
    service.chmod(0o755)
    heard = os.open(pipe, os.O_RDWR)
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.setpgid(0, 0)
        if started is a_service:
            sys.executable = str(service)
        started(str(pipe))
        os._exit(1)
    found = b""
    try:
        while found.count(b"\n") < number:
            assert select.select([heard], [], [], ENDS_WITHIN)[0], "it has started nothing"
            found += os.read(heard, 100)
        ends = [os.pidfd_open(int(pid)) for pid in found.split()]
        if started is processes:
            os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        for end in ends:
            assert select.select([end], [], [], ENDS_WITHIN)[0], "it is there for ever"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
