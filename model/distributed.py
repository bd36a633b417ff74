"""Processes that train one model together, over torch.distributed (torchrun) or Horovod (horovodrun).

    ranks = start_ranks("auto", device, timeout=1800)     # a single process when neither launcher started it
    sizes = ranks.exchange([len(batch)])[:, 0]      # small integers of every rank, on the host
    everyone = ranks.gather(embeddings, sizes)      # differentiable: what other ranks do with a row comes back
    wait = ranks.sum_soon(numbers, "name")          # on its way; model/gradient_exchange.py sends gradients so
    ranks.close()

Gradients are summed, not averaged: every rank divides its share of the loss by the number of predictions of all ranks, so
that the sum is the gradient of one process with the whole batch, however unequal the ranks' shares are.
"""

from __future__ import annotations

import datetime
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.errors import BadInput
from data.storage.environment import number_in_environment
from data.storage.locks import claim_output
from data.storage.processes import end_with_launcher

_SHOWN = 60  # characters of what an engine says
Backend = Literal["auto", "torch", "horovod", "none"]


class Announced(NamedTuple):
    """What a rank tells the others of its next batch.

    Attributes:
        position: where it is: step, batch, task ...; it must be the same everywhere
        rows: of the batch
        predictions: what its loss averages over
    """

    position: tuple[int, ...]
    rows: int
    predictions: int


class Meeting(NamedTuple):
    """What ranks told each other of a batch: rows of each, predictions of all together, whether one has to stop."""

    sizes: list[int]
    predictions: int
    stop: bool


class Ranks:
    """A process on its own. The backends add `_all_gather`, `_sum`, `_sum_soon`, `_broadcast`, `_exchange_soon` and `_sum_host`,
    which all ranks call in the same order. Those that end in ``soon`` give what waits for the result.

    Attributes:
        rank: number of this process, 0 to size - 1
        size: number of processes
        local_rank: number of this process on its machine, which chooses its GPU
    """

    backend: str = "none"
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes logs and prints."""
        return self.rank == 0

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows of all ranks, in rank order: [n,...] → [sum of sizes,...]. Gradients flow back to the rank of each row.

        Args:
            x: [sizes[rank], ...]; the other ranks have other numbers of rows, and the same further dimensions and dtype
            sizes: rows of every rank, the same list on each
        """
        if self.size == 1:
            return x
        return _Gather.apply(x, self, [int(size) for size in sizes])

    def sum_soon(self, tensor: Tensor, name: str) -> Callable[[], None]:
        """Begin to replace a tensor by its sum over ranks, next to all other operations → what waits until it is.

        Ranks must begin these sums in the same order among themselves, each under a name that none has that is underway.
        """
        if self.size == 1:
            return lambda: None
        with self._waiting():
            wait = self._sum_soon(tensor, name)
        return functools.partial(self._wait_for, wait)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of rank 0."""
        if self.size > 1:
            with torch.no_grad(), self._waiting():
                for tensor in tensors:
                    self._broadcast(tensor)

    def exchange(self, values: Sequence[float]) -> np.ndarray:
        """A few numbers of every rank, by way of the host: n numbers → [size,n] float64.

        Raises:
            BadInput: no answer from the others within the time limit, or from one that stopped; so do all operations here.
        """
        return self.exchange_soon(values)()

    def exchange_soon(self, values: Sequence[float]) -> Callable[[], np.ndarray]:
        """Begin `exchange` → what waits for the numbers, which are on their way meanwhile."""
        mine = np.array(values, dtype=np.float64)
        if self.size == 1:
            return lambda: mine[None]
        with self._waiting():
            wait = self._exchange_soon(torch.from_numpy(mine))
        return lambda: self._wait_for(wait).numpy()

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """Sum over ranks of an array of one shape, by way of the host."""
        if self.size == 1:
            return array
        summed = torch.from_numpy(np.array(array))
        with self._waiting():
            self._sum_host(summed)
        return summed.numpy()

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.exchange([0])

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank goes through the block before the others: what it stores, they find."""
        if not self.is_first:
            self.barrier()
        yield
        if self.is_first:
            self.barrier()

    def claim_output(self, path: str | Path) -> None:
        """Be the only run that writes to ``path``, of all ranks, until these processes end.

        Raises:
            BadInput: another process has claimed it.
        """
        problem = None
        if self.is_first:
            try:
                claim_output(path)
            except BadInput as error:
                problem = error
        if self.exchange([problem is not None]).any():  # together: nobody waits for a rank that is gone
            self.close()
            raise problem or BadInput(f"{path}: another process is writing there; the first rank says which")

    def meet(self, batches: Sequence[Announced], stop: object = None) -> Callable[[], list[Meeting]]:
        """Tell the others of the next batches, as many as they tell of → what waits until all have, for a meeting of each.

        Args:
            stop: true when this rank was asked to stop

        Raises:
            BadInput: a rank is somewhere else, or did not come; when it is waited for.
        """
        numbers = [number for batch in batches for number in (*batch.position, batch.rows, batch.predictions)]
        return functools.partial(_met, batches, self.exchange_soon([*numbers, bool(stop)]))

    def close(self) -> None:
        """Leave in good order."""

    def _wait_for(self, wait: Callable[[], Any]) -> Any:
        with self._waiting():
            return wait()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """While this rank depends on the others."""
        try:
            yield
        except RuntimeError as error:  # what both engines raise
            raise BadInput(
                f"rank {self.rank} of {self.size}: another rank died, hangs, or is out of step; see its output, and start the same command "
                f"again ({_shortened(error)})"
            ) from error


SINGLE = Ranks()


def _shortened(error: Exception) -> str:
    """The beginning of what an engine says, without the place in its source."""
    line = re.sub(r"^\[[^\]]*\]\s*", "", (str(error).strip().splitlines() or [repr(error)])[0])
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _met(batches: Sequence[Announced], exchanged: Callable[[], np.ndarray]) -> list[Meeting]:
    found, meetings, column = exchanged(), [], 0
    stop = bool(found[:, -1].any())
    for batch in batches:
        where = found[:, column : column + len(batch.position)]
        if (where != where[0]).any():
            raise BadInput(f"ranks are out of step, at {where.astype(int).tolist()}; start the same command again")
        column += len(batch.position) + 2
        sizes, counts = found[:, column - 2 : column].T
        meetings.append(Meeting(sizes.astype(int).tolist(), int(counts.sum()), stop))
    return meetings


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every rank wants of a row, and keeps this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, sizes: list[int]) -> Tensor:
        ctx.ranks, ctx.start, ctx.stop = ranks, sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1])
        with ranks._waiting():
            return ranks._all_gather(x.contiguous(), sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()  # autograd may hold on to the one it gave
        with ctx.ranks._waiting():
            ctx.ranks._sum([gradient])
        return gradient[ctx.start : ctx.stop], None, None


class TorchRanks(Ranks):
    """torch.distributed: NCCL between GPUs, Gloo between CPUs, and Gloo for what the host says."""

    backend = "torch"

    def __init__(self, uses_gpu: bool, timeout: float):
        import torch.distributed as dist  # slow to import
        import torch.distributed.nn.functional  # imported later, its default arguments would hold the group

        self._dist = dist
        self.local_rank = number_in_environment("LOCAL_RANK", 0)
        limit = datetime.timedelta(seconds=timeout)
        if uses_gpu:
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=limit))
            # ranks that torchrun starts again find its store as the dead ones left it: their addresses must not be read
            store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            backend = "nccl" if uses_gpu else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        except (ValueError, RuntimeError) as error:
            raise BadInput(f"the ranks cannot find each other; start with torchrun ({_shortened(error)})") from error
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._host = dist.new_group(backend="gloo", timeout=limit) if uses_gpu else dist.group.WORLD
        self._beside = dist.new_group(timeout=limit)  # what is sent meanwhile holds up nothing else
        if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun, which ends its ranks unless it was killed
            end_with_launcher(f"rank {rank} of {size}: torchrun, which started it, is gone, so it stops too; the same command goes on")

    def _all_gather(self, x: Tensor, sizes: list[int]) -> Tensor:
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        self._dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def _sum(self, tensors: list[Tensor]) -> None:
        for work in [self._dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    def _sum_soon(self, tensor: Tensor, name: str) -> Callable[[], object]:
        return self._dist.all_reduce(tensor, group=self._beside, async_op=True).wait

    def _broadcast(self, tensor: Tensor) -> None:
        self._dist.broadcast(tensor, src=0)

    def _exchange_soon(self, values: Tensor) -> Callable[[], Tensor]:
        parts = [torch.empty_like(values) for _ in range(self.size)]
        work = self._dist.all_gather(parts, values, group=self._host, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return torch.stack(parts)

        return wait

    def _sum_host(self, tensor: Tensor) -> None:
        self._dist.all_reduce(tensor, group=self._host)

    def close(self) -> None:
        # Threads of Gloo that let go of a tensor while the interpreter ends abort the process. They end with the last reference.
        self._host = self._beside = None
        self._dist.destroy_process_group()


def check_horovod_environment() -> None:
    """What horovodrun puts into the environment are numbers, and ranks are below their sizes: Horovod's own code ends the process
    otherwise. Raises BadInput."""
    for kind in ("", "LOCAL_", "CROSS_"):
        rank, size = f"HOROVOD_{kind}RANK", f"HOROVOD_{kind}SIZE"
        if rank in os.environ or size in os.environ:
            found = number_in_environment(rank), number_in_environment(size)
            if found[0] >= found[1]:
                raise BadInput(f"{rank} in the environment: found {found[0]}, expected less than {size}, {found[1]}; start with horovodrun")


class HorovodRanks(Ranks):
    """Horovod, with operations of its own instead of its optimizer: nothing hooks into backward or step."""

    backend = "horovod"

    def __init__(self, uses_gpu: bool, timeout: float):
        check_horovod_environment()
        # no fusion: gradients come in buckets already, and the order of a sum would depend on when tensors arrive
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(max(int(timeout / 2), 1)))
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(int(timeout)))
        try:
            import horovod.torch as hvd  # optional
        except ImportError as error:
            raise BadInput(
                f"distributed horovod: Horovod is not installed or was built for another torch ({error}); build it with "
                "scripts/build_horovod.sh, or start with torchrun"
            ) from error
        self._hvd = hvd
        hvd.init()
        expected = number_in_environment("HOROVOD_SIZE", 0)
        if hvd.size() != expected:  # under plain python or torchrun Horovod silently makes worlds of one
            raise BadInput(
                f"distributed horovod: started without horovodrun, Horovod sees {hvd.size()} ranks (HOROVOD_SIZE is "
                f"{expected or 'not set'}); start with horovodrun -np N python ..."
            )
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()
        self._begun: Counter[str] = Counter()
        if uses_gpu:
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())

    def _all_gather(self, x: Tensor, sizes: list[int]) -> Tensor:
        exact = {torch.bfloat16: torch.float32, torch.bool: torch.uint8}.get(x.dtype, x.dtype)  # it has neither
        return self._hvd.allgather(x.to(exact), name=self._name("gather")).to(x.dtype)

    def _name(self, kind: str) -> str:
        """Names by which ranks know each other's operations: Horovod's own count all of them, in whatever order they came."""
        self._begun[kind] += 1
        return f"{kind}.{self._begun[kind]}"

    def _sum(self, tensors: list[Tensor]) -> None:
        names = [self._name("sum") for _ in tensors]
        for wait in [self._sum_soon(tensor, name) for tensor, name in zip(tensors, names, strict=True)]:
            wait()

    def _sum_soon(self, tensor: Tensor, name: str) -> Callable[[], object]:
        handle = self._hvd.allreduce_async_(tensor, name=name, op=self._hvd.Sum)
        return lambda: self._hvd.synchronize(handle)

    def _broadcast(self, tensor: Tensor) -> None:
        self._hvd.broadcast_(tensor, root_rank=0, name=self._name("broadcast"))

    def _exchange_soon(self, values: Tensor) -> Callable[[], Tensor]:
        handle = self._hvd.allgather_async(values[None], name=self._name("exchange"))
        return lambda: self._hvd.synchronize(handle)

    def _sum_host(self, tensor: Tensor) -> None:
        self._hvd.allreduce_(tensor, name=self._name("host"), op=self._hvd.Sum)

    def close(self) -> None:
        self._hvd.shutdown()


def start_ranks(backend: Backend, uses_gpu: bool, timeout: float) -> Ranks:
    """Join the other ranks.

    Args:
        backend: auto takes the launcher that started this process, or none when there was none
        uses_gpu: whether tensors are on GPUs
        timeout: seconds to wait for another rank before giving up

    Raises:
        BadInput: the backend is not there or was not started by its launcher.
    """
    if backend == "auto":
        backend = "horovod" if "HOROVOD_SIZE" in os.environ else "torch" if "WORLD_SIZE" in os.environ else "none"
    if backend == "none":
        return SINGLE
    if backend == "torch" and "WORLD_SIZE" not in os.environ:
        raise BadInput("distributed torch: started without torchrun (WORLD_SIZE is not set); use torchrun, or auto")
    return (HorovodRanks if backend == "horovod" else TorchRanks)(uses_gpu, timeout)

