"""Micro-batches: what comes together is answered together, and no more waits than may."""

import threading
import time

import pytest

from model.serving.batching import Job, MicroBatches, Overloaded


class Gate:
    """Answers when it is opened, and remembers the batches."""

    def __init__(self):
        self.batches, self.opened, self.entered = [], threading.Event(), threading.Event()

    def answer(self, jobs):
        self.batches.append(jobs)
        self.entered.set()
        self.opened.wait(60)
        for job in jobs:
            job.settle(job.size)


def submitted(queue, *sizes):
    jobs = [Job(size=size) for size in sizes]
    for job in jobs:
        queue.submit(job)
    return jobs


def test_what_waits_is_answered_together_up_to_a_size_and_no_job_is_split():
    gate = Gate()
    queue = MicroBatches(gate.answer, 0, 4, 100, "test")
    first = submitted(queue, 1)
    gate.entered.wait(60)
    rest = submitted(queue, 2, 1, 2, 9, 1)
    gate.opened.set()
    assert [job.future.result(60) for job in [*first, *rest]] == [1, 2, 1, 2, 9, 1]
    assert [[job.size for job in batch] for batch in gate.batches] == [[1], [2, 1], [2], [9], [1]]
    queue.close()


def test_a_window_brings_together_what_arrives_a_little_later():
    gate = Gate()
    gate.opened.set()
    queue = MicroBatches(gate.answer, 60, 2, 100, "test")  # which the second ends
    (one,) = submitted(queue, 1)
    time.sleep(0.02)
    (two,) = submitted(queue, 1)
    assert one.future.result(60) and two.future.result(60) and len(gate.batches) == 1
    queue.close()


def test_beyond_the_bound_nothing_is_let_in_until_somebody_gives_up():
    gate = Gate()
    queue = MicroBatches(gate.answer, 0, 1, 3, "test")
    submitted(queue, 1)
    gate.entered.wait(60)
    (large,) = submitted(queue, 5)  # alone, whatever its size
    with pytest.raises(Overloaded):
        submitted(queue, 1)
    large.future.cancel()
    kept = submitted(queue, 2, 1)
    with pytest.raises(Overloaded, match="3 queries wait already, at most 3 may"):
        queue.check_room()
    gate.opened.set()
    assert [job.future.result(60) for job in kept] == [2, 1] and all(large not in batch for batch in gate.batches)
    queue.close()


def test_an_error_is_that_of_its_batch_alone_and_closing_answers_what_waits():
    def answer(jobs):
        if jobs[0].size == 3:
            raise KeyError("three")
        for job in jobs:
            job.settle("done")

    queue = MicroBatches(answer, 0, 1, 100, "test")
    bad, good = submitted(queue, 3, 1)
    with pytest.raises(KeyError):
        bad.future.result(60)
    assert good.future.result(60) == "done"
    last = submitted(queue, 1, 1, 1)
    queue.close()
    assert all(job.future.result(0) == "done" for job in last)
    with pytest.raises(Overloaded, match="being stopped"):
        submitted(queue, 1)
