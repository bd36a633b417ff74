"""What an inspection found: facts, histograms, problems by kind; as lines of text and as JSON-able values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

EXAMPLES = 3  # named of each kind of problem


@dataclass
class Findings:
    """Problems by kind: how many, and the first few by name."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.counts[kind] += count
        self.examples.setdefault(kind, []).append(example)
        del self.examples[kind][EXAMPLES:]

    def add_all(self, kind: str, examples: Iterable[str]) -> None:
        for example in examples:
            self.add(kind, example)

    def merge(self, other: Findings) -> None:
        for kind, count in other.counts.items():
            self.counts[kind] += count
            self.examples[kind] = [*self.examples.get(kind, []), *other.examples[kind]][:EXAMPLES]


@dataclass
class Report:
    """What one database is.

    Args:
        path: its folder
        kind: image DB, text DB or feature index
        facts: name -> value, as printed
        histograms: what is counted -> (value -> how many)
        first: its first records, a line each
        problems: what is wrong
        notes: what is worth knowing and not wrong
    """

    path: str
    kind: str
    facts: dict[str, str | int] = field(default_factory=dict)
    histograms: dict[str, Counter] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"{self.path}: {self.kind}"
        for name, value in self.facts.items():
            yield f"  {name:15} {f'{value:,}' if isinstance(value, int) else value}"
        for name, counts in self.histograms.items():
            if counts:
                mean = sum(value * n for value, n in counts.items()) / counts.total()
                yield f"  {name}: min {min(counts)}, mean {mean:.1f}, max {max(counts)}"
                yield from histogram_lines(counts)
        if self.first:
            yield "  first records"
            yield from (f"    {line}" for line in self.first)
        for title, findings in (("note", self.notes), ("problem", self.problems)):
            for kind, count in findings.counts.items():
                yield f"  {title}: {kind}: {count:,}"
                yield from (f"    {example}" for example in findings.examples[kind])
        if not self.problems.counts:
            yield "  nothing is wrong" + ("" if self.facts["records read"] == "all" else " with what was read")

    def as_json(self) -> dict:
        """The report as plain values."""
        found = {
            name: {kind: {"count": n, "examples": findings.examples[kind]} for kind, n in findings.counts.items()}
            for name, findings in (("problems", self.problems), ("notes", self.notes))
        }
        return vars(self) | {"histograms": {k: dict(sorted(v.items())) for k, v in self.histograms.items()}} | found


def histogram_lines(counts: Counter, width: int = 40, most: int = 20) -> list[str]:
    """A histogram in text: one line a value, or a range of values when there are more than `most`."""
    low, high = min(counts), max(counts)
    step = -(-(high - low + 1) // most)
    bins = Counter()
    for value, n in counts.items():
        bins[(value - low) // step] += n
    lines = []
    for i in range((high - low) // step + 1):
        start = low + i * step
        name = str(start) if step == 1 else f"{start}-{start + step - 1}"
        lines.append(f"{name:>9} {'#' * -(-bins[i] * width // max(bins.values())):{width}} {bins[i]:,}")
    return lines
