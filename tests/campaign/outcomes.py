"""What a case came to, and the table of all."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

GOOD = {
    "identical": "the outputs are those of undamaged inputs",
    "refused": "status 2 and one line",
    "noticed": "a line says so, or a documented status",
    "other": "another input, another output: what was changed has no checksum",
}
BAD = {
    "traceback": "a traceback",
    "untidy": "status 1, or status 2 without its one line",
    "crash": "ended by a signal",
    "hang": "waits for ever, or works far too long",
    "memory": "more memory than its input warrants",
    "escaped": "ran a program of the input, or wrote outside of its folder",
    "silent": "status 0 and another output, though a checksum was there",
    "broken": "a rule of this kind of case was broken: the detail says which",
}


@dataclass
class Result:
    """One case.

    Attributes:
        target: its name
        number: the case's, of this target
        outcome: a key of `GOOD` or `BAD`
        done: what was done to the input
        detail: last lines of stderr, or what differed
        words: the command
        seconds: that it took
    """

    target: str
    number: int
    outcome: str
    done: str
    detail: str = ""
    words: list[str] = field(default_factory=list)
    seconds: float = 0.0


def summary(results: list[Result]) -> dict[str, Counter]:
    table: dict[str, Counter] = defaultdict(Counter)
    for result in results:
        table[result.target][result.outcome] += 1
    return dict(sorted(table.items()))


def markdown(results: list[Result], seed: int, facts: dict) -> str:
    """The table target x outcome, and each finding with the command that shows it again."""
    table, outcomes = summary(results), [*GOOD, *BAD]
    used = [name for name in outcomes if any(counts[name] for counts in table.values()) or name in ("identical", "refused", "traceback", "crash", "silent")]
    lines = [f"{len(results):,} cases, seed {seed}" + "".join(f", {key} {value}" for key, value in facts.items()), ""]
    lines += [f"| target | cases | {' | '.join(used)} |", f"|---|{'---:|' * (len(used) + 1)}"]
    for name, counts in table.items():
        lines.append(f"| {name} | {counts.total()} | {' | '.join(str(counts[outcome] or '') for outcome in used)} |")
    total = sum(table.values(), Counter())
    lines.append(f"| **all** | {total.total()} | {' | '.join(str(total[outcome] or '') for outcome in used)} |")
    lines += ["", *(f"* {name}: {(GOOD | BAD)[name]}" for name in used)]
    findings = [result for result in results if result.outcome in BAD]
    if findings:
        lines += ["", f"## {len(findings)} findings", ""]
    for result in findings:
        again = f"python tests/campaign/run.py --target '{result.target}' --seed {seed} --case {result.number}"
        lines += [f"* **{result.outcome}** {result.target}: {result.done}  ", f"  `{again}`"]
        lines += [f"      {line}" for line in result.detail.splitlines()[-6:]]
    return "\n".join(lines) + "\n"


def write_results(results: list[Result], seed: int, facts: dict, path: Path) -> None:
    """PATH.json with all cases, PATH.md with the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) for result in results]
    path.with_suffix(".json").write_text(json.dumps({"seed": seed, **facts, "cases": rows}, indent=1))
    path.with_suffix(".md").write_text(markdown(results, seed, facts), encoding="utf-8", errors="backslashreplace")
