"""Progress of what takes longer than two seconds, with a rate and the time left: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from data.notices import is_first_process, say

DELAY = 2.0  # seconds; what is done sooner shows nothing
BETWEEN_LINES = 30.0  # seconds, where stderr is no terminal
BETWEEN_LOOKS = {True: 0.1, False: 1.0}  # seconds between two looks at the clock: on a terminal, elsewhere
LINE = "{desc}: {percentage:.0f}% of {total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_fmt}{postfix}]"


class ProgressBar(tqdm):
    """How far something is. Use it as tqdm's, around what is gone through or with ``update(n)``.

        for key in ProgressBar(keys, "counting boxes", unit="img"): ...
        with ProgressBar(what="encoding", total=len(order), unit="img") as bar:
            bar.update(32)

    Nothing is shown in the first two seconds. On a terminal it is a bar; one inside another goes away at its end. Elsewhere, in the
    log of a batch job for instance, it is a line of its own, and all bars of a process together write one at most every 30 s. Of
    several processes that work together (torchrun, horovodrun) the first shows it.

    Args:
        items: what is gone through; None: `update` says how far it is
        what: what is done
        total: how many there are; None: as many as the items, where they know; else there is no time left to be shown
        unit: of what
        show: False shows nothing
        initial: how many were done before
        in_bytes: the unit is bytes: they are written as 1.3M
    """

    monitor_interval = 0  # no thread beside the training: a bar that is stuck need not move
    _last_line = -BETWEEN_LINES  # when any bar of this process wrote one

    def __init__(
        self, items: Iterable | None = None, what: str = "", total: int | None = None, unit: str = "it", show: bool = True,
        initial: int = 0, in_bytes: bool = False,
    ):  # fmt: skip
        self.on_terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        super().__init__(
            items, what, total, unit="B" if in_bytes else f" {unit}", unit_scale=in_bytes, unit_divisor=1024, initial=initial,
            disable=not (show and is_first_process()), delay=DELAY, mininterval=BETWEEN_LOOKS[self.on_terminal], miniters=1,
            leave=None if self.on_terminal else False, dynamic_ncols=self.on_terminal,
            bar_format=None if self.on_terminal else LINE if total else LINE_WITHOUT_TOTAL,
        )  # fmt: skip

    def say(self, stage: str | None = None, remark: str | None = None) -> None:
        """What is done now, and a remark behind the rate; shown when the bar moves next."""
        if stage is not None:
            self.set_description_str(stage, refresh=False)
        if remark is not None:
            self.set_postfix_str(remark, refresh=False)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar; where there is no terminal, write a line if it is time for one."""
        if self.on_terminal:
            return super().display(msg, pos)
        now = time.monotonic()
        if msg is not None or now - max(self._began, ProgressBar._last_line) < BETWEEN_LINES:
            return False
        ProgressBar._last_line = now
        self.fp.write(f"{self}\n")
        self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Make room for a line of text, where there is a bar."""
        if self.on_terminal:
            super().clear(nolock)

    def close(self) -> None:
        """End it, with a last line where it is time for one."""
        if not hasattr(self, "disable"):  # Ctrl-C came while it was made
            return
        if not self.disable and not self.on_terminal and self.n != self.last_print_n:
            self.display()
        super().close()


# tqdm's own lock is one of all processes: a forked one that is killed while it holds it would leave the others waiting for ever
ProgressBar.set_lock(threading.RLock())


@contextmanager
def said_when_slow(what: str) -> Iterator[None]:
    """Say what is done in the block, and that there is no rate, where it takes longer than two seconds; and then how long it took. It is
    for a single step of a library that does not tell how far it is, and lets other threads run meanwhile.
    """
    began = time.monotonic()
    said = threading.Event()

    def tell() -> None:
        said.set()
        say(f"{what}: one step without a rate")

    timer = threading.Timer(DELAY, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if said.is_set():
        say(f"{what}: done in {time.monotonic() - began:.0f} s")


def print_above_bars(text: str) -> None:
    """Print a text on standard output, above the bars that are there."""
    ProgressBar.write(text)
