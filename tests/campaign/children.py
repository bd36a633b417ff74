"""Children of one process that has imported every command: a case costs a fork and its own work, not ten seconds of imports."""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.isolation import FILE_SIZE, ROOT, become_nobody, end_with_parent, set_limits
from tests.warm_python import exit_status


def import_commands() -> None:
    """Import what the commands import, so that their children need not."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
    import faiss  # noqa: F401
    import h5py  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pymilvus  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers
    import transformers.models.marian  # noqa: F401

    for name in [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py")]:
        __import__(".".join(name.relative_to(ROOT).with_suffix("").parts))
    for name in ("model.bi_encoder", "model.original.files", "model.retrieval.retriever", "data.search.faiss", "data.search.exact"):
        __import__(name)


class Child:
    """A function in a forked process; what it returns comes back as JSON.

    Attributes:
        pid: of the process
        pipe: readable when it has answered or died
        answers: in that process, where it answers; what it starts closes it, so that its death is seen though they live on
    """

    answers: int | None = None

    def __init__(self, function: Callable[[], Any]):
        self.pipe, answer = os.pipe()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            Child.answers = answer
            try:
                text = json.dumps({"answer": function()})
            except BaseException:
                text = json.dumps({"broken": traceback.format_exc()})
            with os.fdopen(answer, "w") as file:
                file.write(text)
            os._exit(0)
        os.close(answer)

    def result(self) -> Any:
        """Wait for it. Raises RuntimeError when the function failed: that is the campaign's fault, not a command's."""
        with os.fdopen(self.pipe) as file:
            text = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        found = json.loads(text) if text else {"broken": f"the case's own process ended with {status}"}
        if "broken" in found:
            raise RuntimeError(found["broken"])
        return found["answer"]


@dataclass
class Ended:
    """A command that has ended.

    Attributes:
        status: exit status; negative: the signal that ended it
        seconds: that it took
        peak: bytes of resident memory at the most
        timed_out: whether it was ended for having taken too long
        errors: what it wrote to stderr
        was_busy: of one that was ended: whether it was at work, or waited
    """

    status: int
    seconds: float
    peak: int
    timed_out: bool
    errors: str
    was_busy: bool = False


class Command:
    """A command of this repository, running in a folder as a child of this process.

    Args:
        words: script, and its words; bytes that are no UTF-8 as surrogates
        folder: current folder of it
        log: its stderr goes to this file, its stdout to the same name with .out
        environment: added to a small one
        file_size: most bytes of a file that it writes
    """

    def __init__(self, words, folder: Path, log: Path, environment: dict[str, str] | None = None, file_size: int = FILE_SIZE):
        self.log, self.started = log, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(list(words), folder, environment or {}, file_size)
        self._descriptor = os.pidfd_open(self.pid)

    def _become(self, words: list[str], folder: Path, environment: dict[str, str], file_size: int) -> None:
        if Child.answers is not None:
            os.close(Child.answers)
        os.setpgid(0, 0)  # and not a session: where Linux groups tasks by session, a low priority would end there
        become_nobody()
        end_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the campaign's own handler is not the command's
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a campaign that a shell runs in the background ignores
        os.chdir(folder)
        for number, name in ((0, os.devnull), (1, f"{self.log}.out"), (2, self.log)):
            os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False, errors=how) for n, how in ((1, "strict"), (2, "backslashreplace")))
        faulthandler.disable()
        set_limits(file_size)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES") if name in os.environ}
        os.environ.clear()
        os.environ.update(kept | {"HOME": str(folder), "TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")} | environment)
        sys.argv = [str(ROOT / words[0]), *words[1:]]
        self._leave(exit_status(lambda: runpy.run_path(sys.argv[0], run_name="__main__")))

    def _leave(self, status: int) -> None:
        import atexit

        try:
            atexit._run_exitfuncs()
            sys.stdout.flush(), sys.stderr.flush()
        except BaseException:
            pass
        os._exit(status)

    def kill(self, number: int = signal.SIGKILL, group: bool = True) -> None:
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:
            pass

    def has_ended(self, seconds: float) -> bool:
        """Whether it ends within so long."""
        return bool(select.select([self._descriptor], [], [], seconds)[0])

    def _group(self) -> list[list[str]]:
        """What /proc says of it and of what it started, those left out that have ended: from the state on."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # has ended
                continue
            if int(fields[2]) == self.pid and fields[0] not in "ZX":
                found.append(fields)
        return found

    def work(self) -> int:
        """Clock ticks that it and what it started have computed for so far."""
        return sum(int(fields[11]) + int(fields[12]) for fields in self._group())

    def group_ends(self, seconds: float) -> bool:
        """Whether all that it started ends, itself having ended, within so long; six times as long where it is still at work, since a
        worker that is being started imports first, which takes long on a machine that others use."""
        started, before = time.monotonic(), self.work()
        while time.monotonic() - started < (seconds if self.work() == before else 6 * seconds):
            if not self._group():
                return True
            time.sleep(0.1)
        return False

    def wait(self, seconds: float, end_group: bool = True) -> Ended:
        """Until it ends, or for so long; then it is killed. What it started is killed too."""
        in_time, was_busy = self.has_ended(seconds), False
        took = time.monotonic() - self.started
        if not in_time:
            before = self.work()
            was_busy = not self.has_ended(0.3) and self.work() - before > 3
            self.kill()
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self._descriptor)
        if end_group:
            self.kill()  # what is left of it
        errors = self.log.read_bytes()[-200_000:].decode("utf-8", "replace") if self.log.exists() else ""
        return Ended(os.waitstatus_to_exitcode(status), took, usage.ru_maxrss << 10, not in_time, errors, was_busy)
