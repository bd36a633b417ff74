"""Reports as text."""

from collections import Counter

from data.checks.report import histogram_lines


def test_bars():
    lines = histogram_lines(Counter({3: 10, 5: 1}), width=10)
    assert [line.split() for line in lines] == [["3", "#" * 10, "10"], ["4", "0"], ["5", "#", "1"]]
    counts = Counter({n: 1 for n in range(1, 101)})
    lines = [line.split() for line in histogram_lines(counts, most=20)]
    assert lines[0][0] == "1-5" and lines[-1][0] == "96-100" and sum(int(line[-1]) for line in lines) == 100
