"""How long answers took: the median and the 95th percentile of the latest and of all."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping

import numpy as np

LATEST = 20
REMEMBERED = 10_000  # answers that "all" is taken over: memory stays as it is, however long the service runs


class Latencies:
    """Counts, and milliseconds by stage; may be told and asked by any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._stages: dict[str, deque[float]] = {}

    def count(self, what: str, number: int = 1) -> None:
        """One more of something, as ``refused``."""
        with self._lock:
            self._counts[what] += number

    def add(self, milliseconds: Mapping[str, float]) -> None:
        """What one answer took, by stage."""
        with self._lock:
            for stage, value in milliseconds.items():
                self._stages.setdefault(stage, deque(maxlen=REMEMBERED)).append(value)

    def counts(self) -> dict[str, int]:
        """How many of each there were."""
        with self._lock:
            return dict(self._counts)

    def as_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """Stage → ``latest`` (20 answers) and ``all`` (up to 10,000) → ``median`` and ``p95``, in milliseconds."""
        with self._lock:
            stages = {stage: np.array(values) for stage, values in self._stages.items()}
        return {stage: {"latest": _summary(values[-LATEST:]), "all": _summary(values)} for stage, values in stages.items()}


def _summary(values: np.ndarray) -> dict[str, float]:
    median, p95 = np.percentile(values, [50, 95]).tolist()
    return {"median": median, "p95": p95, "answers": len(values)}
