"""All commands."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["pretrain.py", "train_itm.py", "eval_itm.py"]
COMMANDS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts").glob("*.py") if path.name != "__init__.py")


@pytest.fixture(params=COMMANDS)
def command_line(request, monkeypatch):
    """Path of a command below the repository, which may be run in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # scripts put the repository in front
    return request.param
