"""Published figures beside measured ones (configs/published.yaml)."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import BadInput
from model.evaluation.recall import METRICS
from model.evaluation.statistics import format_interval


@dataclass(frozen=True)
class PublishedComparison:
    """One published table beside what was measured, in percent.

    Attributes:
        published: source (``paper``, ``original``) → metric → figure, with AR where all six others are published
        measured: metric → value
        intervals: metric → ``low`` and ``high`` of its 95% interval; empty where none was computed
    """

    published: dict[str, dict[str, float]]
    measured: dict[str, float]
    intervals: dict[str, dict[str, float]]

    def rows(self) -> dict[str, dict[str, str]]:
        """The table to print: metric → column → figure; what is not known is a dash."""
        return {
            metric: {
                "paper": _format_published(self.published["paper"].get(metric)),
                "original repository": _format_published(self.published["original"].get(metric)),
                "measured": f"{self.measured[metric]:.2f}",
                "95% interval": format_interval(self.intervals[metric]) if metric in self.intervals else "-",
            }
            for metric in METRICS
        }


def compare_with_published(table: dict, results: dict, source: str) -> PublishedComparison:
    """Put an entry of configs/published.yaml beside the contents of a results.json of eval_itm.py.

    Args:
        source: the results' file, for the message

    Raises:
        BadInput: the results lack the table's row.
    """
    row = table["row"]
    if row not in results["recall"]:
        raise BadInput(f"{source}: no row {row!r}, found {', '.join(results['recall'])}")
    published = {name: _with_mean(table[name]) for name in ("paper", "original")}
    return PublishedComparison(published, results["recall"][row], results["intervals"].get(row, {}))


def _with_mean(figures: dict[str, float]) -> dict[str, float]:
    """AR, the mean of the six, where all six are published."""
    if len(figures) < len(METRICS) - 1:
        return figures
    return figures | {"AR": round(sum(figures.values()) / len(figures), 2)}


def _format_published(figure: float | None) -> str:
    """A figure with the digits that it was published with."""
    return "-" if figure is None else str(float(figure))
