#!/usr/bin/env python
"""Show what scripts/bench_retrieval.py measured: the paper's table, and a plot.

python scripts/retrieval_table.py --results benchmarks/retrieval_cpu.json
python scripts/retrieval_table.py --results benchmarks/retrieval_cpu.json --plot retrieval.png
python scripts/retrieval_table.py --results benchmarks/retrieval_gpu.json | less
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.text_files import read_json
from scripts.benchmarking.retrieval_report import plot, print_table


@dataclass
class Options:
    """Show what scripts/bench_retrieval.py measured.

    Args:
        results: its JSON file
        plot: PNG to draw
    """

    results: str
    plot: str | None = None


def main(options: Options) -> None:
    if options.plot:
        claim_output(options.plot)
    results = read_json(options.results, "give the results of scripts/bench_retrieval.py")
    try:
        print_table(results)
        if options.plot:
            plot(results, Path(options.plot))
    except BadInput:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:  # what is deep in such a file has no other check
        raise BadInput(f"{options.results}: no results of scripts/bench_retrieval.py ({error!r})") from None


if __name__ == "__main__":
    cli.run(main, Options)
