"""Published figures beside measured ones: what the results of a command say of a table's row, as JSON and as Markdown."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from data.errors import BadInput
from model.evaluation.published import SOURCES, PublishedRow, PublishedTable
from model.evaluation.recall import METRICS
from model.evaluation.statistics import format_interval

Figures = dict[str, float]
Bounds = dict[str, dict[str, float]]
NAMES = {"paper": "paper", "original": "original repository"}


@dataclass(frozen=True)
class RowOutcome:
    """What was published and what was measured of one row.

    Attributes:
        name: of the row
        published: source → metric → figure, with AR where all six others are published
        measured: metric → value, in percent where it is a recall
        intervals: metric → ``low`` and ``high``; empty where none was computed
        interval: what those are
        of: what was measured, and on what
    """

    name: str
    published: dict[str, Figures]
    measured: Figures
    intervals: Bounds
    interval: str = "95% interval"
    of: dict[str, object] = field(default_factory=dict)

    def as_json(self) -> dict:
        found = {"name": self.name, **self.published, "measured": self.measured, "intervals": self.intervals}
        return found | {"interval": self.interval} | self.of


def outcome_of_row(row: PublishedRow, results: dict, source: str) -> RowOutcome:
    """Put a row beside the results that hold it.

    Args:
        results: what the row's command wrote: results.json of eval_itm.py, or what scripts/bench_retrieval.py writes
        source: that file, for the message

    Raises:
        BadInput: the results lack the row.
    """
    published = {name: _with_mean(getattr(row, name)) for name in SOURCES}
    read = next((reader for sign, reader in READERS.items() if sign in results), None)
    try:
        if read is not None:
            return read(row, results, source, published)
    except BadInput:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(f"{source}: lacks what {row.name} is read from ({error!r}); run its command again") from None
    raise BadInput(f"{source}: no results of eval_itm.py or scripts/bench_retrieval.py; run its command again")


def _recall_outcome(row: PublishedRow, results: dict, source: str, published: dict[str, Figures]) -> RowOutcome:
    section = results
    for part in row.part.split(".") if row.part else []:
        if part not in section:
            raise BadInput(f"{source}: no {row.part}, found {', '.join(section)}")
        section = section[part]
    names = fnmatch.filter(section["recall"], row.row)
    if len(names) != 1:
        raise BadInput(f"{source}: no row {row.row!r}, found {', '.join(section['recall'])}")
    measured, intervals = dict(section["recall"][names[0]]), dict(section["intervals"].get(names[0], {}))
    if candidates := section.get("bi-encoder"):  # re-ranked: how many answers are among what is ranked again
        for metric, value in candidates["recall"]["all"].items():
            name = f"bi-encoder {metric.partition('@')[0]}@K"
            measured[name] = value
            if "all" in candidates["intervals"]:
                intervals[name] = candidates["intervals"]["all"][metric]
    kept = ("images", "captions", "environment")
    of = {"checkpoint": results["config"]["checkpoint"]} | {name: results[name] for name in kept if name in results}
    return RowOutcome(row.name, published, measured, intervals, of=of)


def _speed_outcome(row: PublishedRow, results: dict, source: str, published: dict[str, Figures]) -> RowOutcome:
    """Times faster than cross-attention: ``row`` is a number of images, and the last precision is shown."""
    found = {str(each["images"]): each for each in results["galleries"]}
    if row.row not in found:
        raise BadInput(f"{source}: no gallery of {row.row} images, found {', '.join(found)}")
    precision = results["options"]["precision"][-1]
    systems = found[row.row][precision]
    cross, measured, intervals = systems["cross_attention_seconds"], {}, {}
    for name in results["options"]["backends"]:
        own = systems[name]
        measured[name] = own["times_faster"]
        intervals[name] = {"low": cross / own["answer"]["max"], "high": cross / own["answer"]["min"]}
        measured[f"{name}, 100 at once"] = own["in_batches"]["times_faster"]
        for k, again in own["with_reranking"].items():
            measured[f"{name} + top {k}"] = again["times_faster"]
    of = {"precision": precision, "device": results["device"], "environment": results["environment"]}
    return RowOutcome(row.name, published, measured, intervals, f"of {results['options']['rounds']} rounds", of)


# What a command's results hold that no other's do → how a row is read from them.
Reader = Callable[[PublishedRow, dict, str, dict[str, Figures]], RowOutcome]
READERS: dict[str, Reader] = {"galleries": _speed_outcome, "recall": _recall_outcome}


def _with_mean(figures: Figures) -> Figures:
    """AR, the mean of the six, where all six are published."""
    if not set(METRICS) - {"AR"} <= figures.keys():
        return figures
    return figures | {"AR": round(sum(figures.values()) / len(figures), 2)}


# ---- Markdown --------------------------------------------------------------------------------------------------------


def table_as_markdown(table: PublishedTable, rows: Sequence[RowOutcome]) -> str:
    """All that is known of a table: for each row what was published, what was measured, and its interval; dashes for the rest."""
    columns = columns_of(rows)
    lines = [f"### {table.title}", "", *([table.note.strip(), ""] if table.note else []), *_head(["", "", *columns])]
    for row in rows:
        figures = [(NAMES[source], row.published[source], _format_published) for source in SOURCES]
        figures += [("measured", row.measured, _format_measured), (row.interval, row.intervals, format_interval)]
        for number, (name, values, write) in enumerate(figures):
            cells = [write(values[column]) if column in values else "-" for column in columns]
            lines.append(_line([row.name if number == 0 else "", name, *cells]))
    return "\n".join([*lines, ""])


def tables_as_markdown(tables: Iterable[tuple[PublishedTable, Sequence[RowOutcome]]]) -> str:
    """Several tables, a line each row: what was measured, and the interval of AR or else of the first figure."""
    by_columns: dict[tuple[str, ...], list[str]] = {}
    for table, rows in tables:
        columns = tuple(columns_of(rows))
        lines = by_columns.setdefault(columns, [])
        for number, row in enumerate(rows):
            title = table.title if number == 0 else ""
            cells = [_format_measured(row.measured[column]) if column in row.measured else "-" for column in columns]
            sure = next((row.intervals[column] for column in ("AR", *columns) if column in row.intervals), None)
            lines.append(_line([title, row.name, *cells, format_interval(sure) if sure else "-"]))
    parts = []
    for columns, lines in by_columns.items():
        last = "AR, 95% interval" if "AR" in columns else f"{columns[0]}, least to most"
        parts.append("\n".join([*_head(["table", "row", *columns, last]), *lines, ""]))
    return "\n".join(parts)


def columns_of(rows: Sequence[RowOutcome]) -> list[str]:
    """The metrics that some row has, in the order in which they are met."""
    return list(dict.fromkeys(metric for row in rows for metric in row.measured))


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _format_published(figure: float) -> str:
    """With the digits that it was published with."""
    return f"{figure:,}" if isinstance(figure, int) else str(figure)


def _format_measured(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"
