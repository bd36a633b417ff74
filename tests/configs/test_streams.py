"""Commands whose standard streams were closed by whoever started them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import os, subprocess, sys
from dataclasses import dataclass
from configs import cli
from data.errors import BadInput

@dataclass
class Options:
    '''A command.

    Args:
        out: file to write
    '''
    out: str

def main(options):
    with open(options.out, "wb", buffering=0) as file:
        file.write(b"a record")
        print("said"), print("said", file=sys.stderr), sys.stderr.isatty()
        os.write(1, b"said by a library"), os.write(2, b"said by a library")
        subprocess.run(["echo", "said by a child"], check=True)
    raise BadInput("refused")

cli.run(main, Options)
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_nothing_that_is_said_gets_into_a_file(tmp_path, closed):
    words = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", COMMAND, "--out", tmp_path / "out"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and (tmp_path / "out").read_bytes() == b"a record", done.stderr
    assert ("said" in done.stdout) == (" >" not in f" {closed}") and ("error: refused" in done.stderr) == ("2>" not in closed)
    assert "error" not in done.stdout
