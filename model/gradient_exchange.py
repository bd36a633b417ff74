"""Gradients of all ranks are summed while backward still runs.

    exchange = GradientExchange(parameters, ranks)
    with exchange.last_backward("cmr"):       # after it, no gradient of this update changes any more
        loss.backward()
    exchange.finish()                         # every gradient is the sum of all ranks'

Gradients come in an order that is the same in every update of one loss. It is learnt in the first one, which sends them when backward
is done; afterwards a bucket of gradients leaves as soon as its last one has come. What is in a bucket, and so the order in
which numbers are added, is the same in the first update as in the others, so that a run that goes on computes what it would have.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.errors import BadInput
from model.distributed import Ranks

GradientFormat = Literal["fp32", "bf16", "fp16"]
BUCKET_BYTES = 32 << 20  # gradients sent at a time
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class _Plan:
    """The buckets of one loss, in the order in which they leave, as numbers of parameters.

    Attributes:
        times: how often each parameter's gradient is added to, until it is whole
    """

    buckets: list[list[int]]
    times: dict[int, int]


class GradientExchange:
    """The sum over ranks of the gradients of some parameters.

    The sum is that of `Ranks` for each number: with two ranks the order of adding makes no difference, with more it differs from
    that of other buckets by rounding.

    Args:
        parameters: what is trained, in the same order on every rank
        ranks: whose gradients are added
        number_format: in which fp32 gradients travel and are added; bf16 and fp16 halve what is sent, and round

    Attributes:
        waited: seconds that `finish` has waited for other ranks, all updates together

    Raises:
        BadInput: ranks have gradients of different parameters; another rank died; Horovod is asked for bf16, which it does not add.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: Ranks, number_format: GradientFormat = "fp32"):
        if number_format == "bf16" and ranks.backend == "horovod":
            raise BadInput("gradient_format bf16: Horovod does not add bf16 numbers; use fp16 or fp32, or start with torchrun")
        self.parameters, self.ranks, self.dtype = list(parameters), ranks, _DTYPES[number_format]
        self.waited = 0.0
        self._plans: dict[str, _Plan] = {}
        self._underway: list[tuple[list[int], Tensor, Callable[[], None]]] = []
        self._sent: set[int] = set()

    @contextmanager
    def last_backward(self, name: str) -> Iterator[None]:
        """The backward pass after which the gradients of an update are whole.

        Args:
            name: of the loss; losses whose gradients come in another order, or of other parameters, have other names
        """
        if self.ranks.size == 1:
            yield
            return
        plan, came = self._plans.get(name), []
        sender = None if plan is None else _Sender(plan, self._send)
        note = came.append if sender is None else sender.came
        hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(_call_with_number, note, number))
            for number, parameter in enumerate(self.parameters)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if sender is None:
            plan = self._plans[name] = self._agreed(came)
            sender = _Sender(plan, self._send)
        sender.send_rest()

    def finish(self) -> None:
        """Send what has not been sent, and wait until every gradient is the sum of all ranks'."""
        if self.ranks.size == 1:
            return
        rest = [n for n, p in enumerate(self.parameters) if p.grad is not None and n not in self._sent]
        for bucket in self._buckets(rest):
            self._send(bucket)
        for bucket, flat, wait in self._underway:
            started = time.perf_counter()
            wait()
            self.waited += time.perf_counter() - started
            parts = flat.split([self.parameters[number].numel() for number in bucket])
            for number, part in zip(bucket, parts, strict=True):
                parameter = self.parameters[number]
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))
        self._underway.clear()
        self._sent.clear()

    def _send(self, bucket: list[int]) -> None:
        """Begin to add up a bucket. A parameter without a gradient, which has one elsewhere, takes part with zeros."""
        parameters = [self.parameters[number] for number in bucket]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        if self.dtype is not None and flat.dtype == torch.float32:
            flat = flat.to(self.dtype)
        self._sent.update(bucket)
        self._underway.append((bucket, flat, self.ranks.sum_soon(flat, f"gradients.{len(self._underway)}")))

    def _agreed(self, came: list[int]) -> _Plan:
        """What this rank saw, in the order of the first rank."""
        last = dict.fromkeys(reversed(came))  # a gradient that is added to several times is whole after the last
        mine = list(reversed(last))
        counts = self.ranks.exchange([len(mine), hash(tuple(sorted(mine))) % (1 << 50)])
        if (counts != counts[0]).any():
            raise BadInput("ranks have gradients of different parameters; start the same command, with the same settings, on all")
        order = self.ranks.exchange(mine)[0].astype(int).tolist()
        return _Plan(list(self._buckets(order)), {number: came.count(number) for number in order})

    def _buckets(self, numbers: list[int]) -> Iterator[list[int]]:
        """Consecutive parameters whose gradients have one dtype, of `BUCKET_BYTES` together or a little more."""
        bucket: list[int] = []
        size = 0
        for number in numbers:
            parameter = self.parameters[number]
            if bucket and (parameter.dtype != self.parameters[bucket[0]].dtype or size >= BUCKET_BYTES):
                yield bucket
                bucket, size = [], 0
            bucket.append(number)
            size += parameter.nbytes
        if bucket:
            yield bucket


class _Sender:
    """Sends the buckets of one backward pass, always in the same order: ranks must send the same at the same time."""

    def __init__(self, plan: _Plan, send: Callable[[list[int]], None]):
        self.buckets, self.send = plan.buckets, send
        self.next = 0
        self.place = {number: place for place, bucket in enumerate(plan.buckets) for number in bucket}
        self.missing = np.array([sum(plan.times[number] for number in bucket) for bucket in plan.buckets])

    def came(self, number: int) -> None:
        """A gradient was added to."""
        place = self.place.get(number)
        if place is None:
            return  # sent at the end
        if place < self.next:
            raise RuntimeError("a gradient changed after it was sent; losses of different graphs need different names")
        self.missing[place] -= 1
        while self.next < len(self.buckets) and self.missing[self.next] <= 0:
            self._send_next()

    def send_rest(self) -> None:
        while self.next < len(self.buckets):
            self._send_next()

    def _send_next(self) -> None:
        self.next += 1
        self.send(self.buckets[self.next - 1])


def _call_with_number(note: Callable[[int], None], number: int, parameter: Tensor) -> None:
    note(number)
