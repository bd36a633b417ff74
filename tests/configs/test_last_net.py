"""What the machine refuses, and words that are no text: one line and status 2, without a traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import cli
from data.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Inner:
    """Inner.

    Args:
        word: a text
    """

    word: str = ""


@dataclass
class Options:
    """Something.

    Args:
        name: a text
        names: texts
        inner: more
        more: yet more
    """

    name: str = ""
    names: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    more: list[Inner] = field(default_factory=list)


@dataclass
class Numbers:
    """Something.

    Args:
        count: a number
        counts: numbers
        inner: more
        more: yet more
    """

    count: int | None = None
    counts: list[int] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    more: list[Inner] = field(default_factory=list)


def fail(error: BaseException) -> Callable[[Options], None]:
    def main(options: Options) -> None:
        raise error

    return main


def nest(options: Options) -> None:
    nest(options)


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (fail(OSError(errno.ENOSPC, "No space left on device", "a/b.json")), "error: a/b.json: cannot be written, the disk is full; make room"),
        (fail(PermissionError(errno.EACCES, "Permission denied", "a", None, "b")), "error: a: b: Permission denied"),
        (fail(OSError("something\nelse")), "error: OSError: something else"),
        (fail(OSError(24, "Too many open files")), "error: more files were to be opened than this user may ([Errno 24] Too many open"),
        (fail(RuntimeError("unable to open shared memory object </torch_1_2_3>")), "error: more files were to be opened"),
        (fail(RuntimeError("can't start new thread")), "error: more processes or threads were to be started than this user may"),
        (fail(MemoryError()), "error: out of memory; give it less at a time, or more memory"),
        (fail(MemoryError("Unable to allocate 7 PiB")), "error: out of memory (Unable to allocate 7 PiB); give it"),
        (lambda _: np.empty((1 << 31, 1 << 31)), "error: out of memory (array is too big"),
        (lambda _: np.empty(1 << 63), "error: out of memory (Maximum allowed dimension exceeded)"),
        (lambda _: torch.empty(1 << 31, 1 << 31), "error: out of memory (Storage size calculation overflowed"),
        (fail(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")), "error: out of memory ([enforce"),
        (fail(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")), "error: DataLoader worker (pid 7) is killed"),
        (nest, "error: something that was given is nested too deeply"),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, main, line):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit) as stop:
        cli.run(main, Options)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(line) and said.count("\n") == 1


def test_a_line_that_quotes_something_very_long_is_a_line_that_can_be_read(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    for length in (3000, 10**6):
        with pytest.raises(SystemExit):
            cli.run(fail(BadInput(f"img: no id {'x' * length!r} in this index")), Options)
        said = capsys.readouterr().err
        assert said.startswith("error: img: no id 'xxx") and said.endswith("xxx' in this index\n") and len(said) < 4100
        assert ("x ... (996,087 characters) ... x" in said) == (length == 10**6)


@pytest.mark.parametrize("kind", [ZeroDivisionError, RuntimeError, KeyError, ValueError, TypeError])
def test_a_bug_of_ours_is_not_hidden(monkeypatch, kind):
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(kind):
        cli.run(fail(kind("bug")), Options)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "events"), "warning: what was written beside this command is not whole: events: cannot be written, the disk is full"),
        (ZeroDivisionError("bug"), "Exception in thread beside:\nTraceback"),
    ],
)
def test_a_thread_that_the_machine_stops_is_one_line(monkeypatch, capsys, error, said):
    def main(options):
        thread = threading.Thread(target=fail(error), args=(options,), name="beside")
        thread.start()
        thread.join()

    monkeypatch.setattr(sys, "argv", ["x.py"])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # is put back at the end
    cli.run(main, Options)
    found = capsys.readouterr().err
    assert found.startswith(said) and (found.count("\n") == 1) == (not isinstance(error, ZeroDivisionError))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), BadInput("a: cannot be written: no space left")])
def test_a_thread_that_ends_as_the_command_did_says_nothing_more(monkeypatch, capsys, error):
    """TensorBoard's writes until the process ends, on the same full disk."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(sys, "argv", ["x.py"])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # is put back at the end
    with pytest.raises(SystemExit):
        cli.run(fail(error), Options)
    thread = threading.Thread(target=fail(full), args=(None,))
    thread.start()
    thread.join()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("word", ["caf\udce9", "\ud800"])
def test_words_that_are_no_text_are_refused(tmp_path, word):
    for words in (["--name", word], [f"--inner.word={word}"], [f"--{word}"], ["--names", "a", word], ["--config", word], ["--", word]):
        with pytest.raises(BadInput, match=r"^the command line: .* is not UTF-8 text"):
            cli.parse(Options, words)


@pytest.mark.parametrize(
    ("text", "where"),
    [('name: "a\\0b"', "name"), ('inner: {word: "\\uD800"}', "inner.word"), ('names: ["a", "\\uDC80"]', "names"), ('more: [{word: "\\0"}]', "more.word")],
)
def test_a_text_of_a_file_that_no_name_can_be_is_refused(tmp_path, text, where):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadInput, match=f"{where}.*(is not UTF-8 text|surrogates not allowed)"):
        cli.parse(Options, ["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("word", ["!!int ''", "!!timestamp x", "!!set {a: [}", "!!binary x", "2024-13-45", "0o9", "9" * 5000, "[" * 900])
def test_words_that_yaml_stumbles_over_are_bad_input(word):
    for words in (["--count", word], ["--inner", word], ["--more", word], [f"--more=[{{word: {word}}}]"]):
        try:
            cli.parse(Numbers, words)
        except (BadInput, RecursionError) as error:  # the latter is one line in `cli.run`
            assert str(error)


SHOW = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from dataclasses import dataclass
from configs import cli

@dataclass
class Options:
    '''Nothing.'''

def main(options):
    print("ü\\ud800")

cli.run(main, Options)
"""


def test_a_full_screen_file_is_one_line_and_a_name_that_cannot_be_shown_is_none():
    command = [sys.executable, "-c", SHOW, str(ROOT)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\xfc\\ud800\n", b"")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "error: a file: cannot be written, the disk is full; make room, and start the same command again\n"


@pytest.mark.parametrize("words", [["--count", "1" + "0" * 300], ["--count=-1" + "0" * 300], ["--counts", "[1,9223372036854775808]"]])
def test_whole_numbers_that_no_library_takes_are_refused(words):
    with pytest.raises(BadInput, match=r"count: found a number of [\d,]+ bits, expected at most 9,223,372,036,854,775,807|^counts: found a number of 64 bits"):
        cli.parse(Numbers, words)


@dataclass
class Waits:
    """Something.

    Args:
        share: a number
        distributed_timeout: seconds
    """

    share: float = 0.5
    distributed_timeout: float = 20


@pytest.mark.parametrize("words", [["--share", ".nan"], *(["--distributed-timeout", word] for word in (".nan", ".inf", "1e300", "0", "-1"))])
def test_what_is_no_number_and_what_nobody_can_wait_for_is_refused(words):
    with pytest.raises(BadInput, match=r"^share: found nan, expected a number$|^distributed_timeout: found "):
        cli.parse(Waits, words)
    assert cli.parse(Waits, ["--share", ".inf"]).share == float("inf")


ENDING = """
import atexit, os, signal, sys
from dataclasses import dataclass
sys.path.insert(0, sys.argv.pop(1))
from configs import cli

@dataclass
class Options:
    name: str = ""

def main(options):
    atexit.register(os.kill, os.getpid(), signal.SIGINT)  # as a library clears up when it is imported late

cli.run(main, Options)
"""


def test_ctrl_c_while_python_clears_up_is_no_traceback(tmp_path):
    (tmp_path / "ending.py").write_text(ENDING)
    done = subprocess.run([sys.executable, tmp_path / "ending.py", ROOT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_that_a_shell_has_ignored_is_ignored_while_python_clears_up_too(tmp_path):
    """As of a command in the background of a script: it has come to its end, and says so."""
    (tmp_path / "ending.py").write_text(ENDING)
    words = ["bash", "-c", 'trap "" INT; exec "$@"', "-", sys.executable, tmp_path / "ending.py", ROOT]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
