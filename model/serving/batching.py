"""A thread that answers what comes in, several at a time, from a queue that cannot grow without bound.

    queue = MicroBatches(answer, window=0.003, at_once=64, waiting=256)
    job = Job(size=1)
    queue.submit(job)                       # Overloaded beyond 256 that wait
    job.future.result()                     # what `answer` has settled it with
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


class Overloaded(Exception):
    """More waits than is let in: ask again after ``seconds``."""

    def __init__(self, message: str, seconds: int = 1):
        super().__init__(message)
        self.seconds = seconds


@dataclass(kw_only=True, eq=False)
class Job:
    """Something to be answered.

    Attributes:
        size: how many queries it holds
        future: its answer, or what went wrong; cancelled by who asked and gave up
        arrived: when it was made, in seconds of ``time.perf_counter``
    """

    size: int = 1
    future: Future = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do: it is answered, has failed, or nobody waits for it."""
        return self.future.done()

    def settle(self, result: Any) -> None:
        """Answer it, unless nobody waits any more."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Say what went wrong, unless nobody waits any more."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class MicroBatches:
    """Answers jobs on a thread of its own: those that arrive within a short window together.

    Args:
        answer: settles every job of a list, or hands it on; what it raises fails those that it has not
        window: seconds that the first job waits for others
        at_once: queries that are answered together; a job is never split, a larger one comes alone
        waiting: queries that may wait. One job is let in whatever its size where none waits
        name: of the thread
    """

    def __init__(self, answer: Callable[[list[Any]], None], window: float, at_once: int, waiting: int, name: str):
        self._answer, self._window, self._at_once, self._waiting = answer, window, at_once, waiting
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Put jobs behind those that wait, all of them at once, or none.

        Raises:
            Overloaded: too many wait already, or this is closed.
        """
        with self._changed:
            self._check_room(sum(job.size for job in jobs))
            self._queue.extend(jobs)
            self._changed.notify()

    def check_room(self, size: int = 1) -> None:
        """Raise Overloaded where a job of this size would not be let in now."""
        with self._changed:
            self._check_room(size)

    def _check_room(self, size: int) -> None:
        if not self._is_open:
            raise Overloaded("the service is being stopped", 5)
        if self.num_waiting and self.num_waiting + size > self._waiting:
            self._queue = deque(job for job in self._queue if not job.is_settled)  # of those that gave up
        if self._queue and self.num_waiting + size > self._waiting:
            raise Overloaded(f"{self.num_waiting:,} queries wait already, at most {self._waiting:,} may: ask again in a second")

    @property
    def num_waiting(self) -> int:
        """Queries that wait now."""
        with self._changed:
            return sum(job.size for job in self._queue)

    def close(self) -> None:
        """Answer what waits, let nothing more in, and end the thread."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._next_batch():
            wanted = [job for job in jobs if not job.is_settled]
            if not wanted:
                continue
            try:
                self._answer(wanted)
            except Exception as error:  # of whatever kind: those who wait must learn of it, and the next batch is another
                for job in wanted:
                    job.fail(error)

    def _next_batch(self) -> list[Job]:
        """The jobs to be answered next; none when this is closed and nothing waits."""
        with self._changed:
            while not self._queue and self._is_open:
                self._changed.wait()
            while self._queue and self._is_open and self.num_waiting < self._at_once:
                left = self._queue[0].arrived + self._window - time.perf_counter()
                if left <= 0 or not self._changed.wait(left):
                    break
            jobs: list[Job] = []
            size = 0
            while self._queue and (not jobs or size + self._queue[0].size <= self._at_once):
                jobs.append(self._queue.popleft())
                size += jobs[-1].size
            return jobs
