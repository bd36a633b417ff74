"""Progress on a terminal and in a log."""

import io
import re
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest

from data import progress
from data.captions.vocabulary import train_vocabulary
from data.progress import ProgressBar, print_above_bars, said_when_slow

ROOT = Path(__file__).resolve().parents[2]


class Screen(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when it is told to; of what is around tqdm and of tqdm."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr(ProgressBar, "_last_line", -progress.BETWEEN_LINES)
    return clock


def stderr(monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def test_a_log_gets_a_line_every_thirty_seconds_and_no_more(monkeypatch, clock):
    log = stderr(monkeypatch, io.StringIO())
    with ProgressBar(what="encoding img", total=1000, unit="img") as bar:
        for _ in range(700):
            clock.now += 0.1
            bar.update()
        assert log.getvalue().count("\n") == 2
        for _ in range(300):
            clock.now += 0.1
            bar.update()
    lines = log.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in log.getvalue()
    assert re.fullmatch(r"encoding img: 3\d% of 1000 img \[00:30<01:\d\d, +\d+\.\d+ img/s\]", lines[0]), lines


def test_several_bars_share_the_lines(monkeypatch, clock):
    log = stderr(monkeypatch, io.StringIO())
    with ProgressBar(what="training", total=100, unit="step") as outer:
        for _ in range(100):
            for _ in ProgressBar(range(10), "validating"):
                clock.now += 0.2
            outer.update()
            outer.say("epoch 2/3", "loss 0.5")
            print_above_bars("a line of another kind")
    assert log.getvalue().count("\n") <= 200 / 30, log.getvalue()
    assert "epoch 2/3: " in log.getvalue() and "loss 0.5]" in log.getvalue()


def test_what_is_done_in_two_seconds_shows_nothing(monkeypatch, clock):
    for stream in (io.StringIO(), Screen()):
        stderr(monkeypatch, stream)
        for _ in ProgressBar(range(19), "short"):
            clock.now += 0.1
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_with_a_rate_and_the_time_left(monkeypatch, clock):
    screen = stderr(monkeypatch, Screen())
    for _ in ProgressBar(range(100), "long", unit="step"):
        clock.now += 0.1
        with ProgressBar(what="inner", total=1) as inner:
            clock.now += 3.0
            inner.update()
    text = screen.getvalue()
    assert "\r" in text and re.search(r"long: +\d+%\|.*\| \d+/100 \[\d+:\d+<\d+:\d+, ", text), text
    assert re.search(r"inner: 100%", text) and "inner" not in text.rpartition("\r")[2], "one inside another goes away"


def test_without_a_total_there_is_a_rate(monkeypatch, clock):
    log = stderr(monkeypatch, io.StringIO())
    for _ in ProgressBar(iter(range(40)), "reading x", unit="lines"):
        clock.now += 1
    assert re.match(r"reading x: 3\d lines \[00:3\d, +1\.00 lines/s\]\n", log.getvalue()), log.getvalue()


def test_bytes_are_written_short(monkeypatch, clock):
    log = stderr(monkeypatch, io.StringIO())
    with ProgressBar(what="x.tar", total=3 << 20, in_bytes=True, initial=1 << 20) as bar:
        clock.now += 40
        bar.update(1 << 20)
    assert log.getvalue().startswith("x.tar: 67% of 3.00MB [00:40<00:40, 26.2kB/s]"), log.getvalue()


@pytest.mark.parametrize(("name", "rank", "shows"), [("RANK", "0", True), ("RANK", "1", False), ("HOROVOD_RANK", "2", False)])
def test_of_several_processes_the_first_shows_it(monkeypatch, clock, name, rank, shows):
    monkeypatch.setenv(name, rank)
    log = stderr(monkeypatch, io.StringIO())
    for _ in ProgressBar(range(40), "long"):
        clock.now += 1
    assert bool(log.getvalue()) == shows
    assert list(ProgressBar([1, 2], "hidden", show=False)) == [1, 2]


def test_all_progress_is_shown_in_this_one_way():
    files = [path for room in ("data", "model", "optim", "scripts", "configs") for path in (ROOT / room).rglob("*.py")]
    users = {str(path.relative_to(ROOT)) for path in files if re.search(r"^\s*(from|import) tqdm\b", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert users == {"data/progress.py"}


def test_a_step_without_a_rate_is_told_when_it_is_slow(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.02)
    with said_when_slow("thinking"):
        sleep(0.2)
    with said_when_slow("winking"):
        pass
    assert re.fullmatch(r"thinking: one step without a rate\nthinking: done in \d+ s\n", capsys.readouterr().err)


def test_the_merging_of_word_pieces_is_such_a_step(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.001)
    train_vocabulary([f"{n * 7919:b} {n:x}" for n in range(4000)], 4000, True)
    assert "merging word pieces: one step without a rate\n" in capsys.readouterr().err


KILLED_AT_A_BAR = """
import os, signal
from data.progress import ProgressBar
ProgressBar(total=1).close()
if (child := os.fork()) == 0:
    ProgressBar.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
with ProgressBar(what="going on", total=1) as bar:
    bar.update()
print("went on")
"""


def test_a_process_that_is_killed_at_its_bar_leaves_the_others_going_on():
    done = subprocess.run([sys.executable, "-c", KILLED_AT_A_BAR], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n", done.stderr
