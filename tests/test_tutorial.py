"""docs/tutorial.md: every command is run, in the order it stands."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Folder in which all commands were run, as from the repository's, and what each printed."""
    root = tmp_path_factory.mktemp("tutorial")
    for name in ("scripts", "configs", "train_itm.py", "eval_itm.py"):
        (root / name).symlink_to(ROOT / name)
    shown = []
    for line in COMMANDS:
        python, *words = shlex.split(line)
        assert python == "python"
        done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        shown.append(done.stdout)
    return root, shown


def test_the_tutorial_leads_to_a_search(walked):
    root, shown = walked
    assert [shlex.split(line)[1] for line in COMMANDS] == [
        "scripts/make_scenes.py", "scripts/prepare.py", "scripts/inspect_db.py", "train_itm.py", "eval_itm.py",
        "scripts/build_index.py", "scripts/search.py",
    ]  # fmt: skip
    assert "nothing is wrong" in shown[2] and "TR@1" in shown[4] and "scene_" in shown[6]
    assert (root / "tutorial/found.png").stat().st_size > 1000


def test_prepare_prints_the_commands_that_follow(walked):
    _, shown = walked
    printed = {name: re.search(rf"^{name}: +(python .*)$", shown[1], re.MULTILINE)[1] for name in ("train", "evaluate")}
    assert COMMANDS[3] == printed["train"] + " --epochs 2"
    assert COMMANDS[4] == printed["evaluate"]


def test_files_that_the_tutorial_names_are_there(walked):
    root, _ = walked
    for path in set(re.findall(r"`((?:tutorial|configs|tests|scripts)/[\w./]+)`", TEXT)):
        assert (root / path).exists() or (ROOT / path).exists(), path
    report = json.loads((root / "tutorial/data/report.json").read_text())
    assert {Path(name).name: found["records"] for name, found in report["checks"].items() if "/db/" in name} == {
        "train": 96 * 5, "val": 12 * 5, "test": 12 * 5,
    }  # fmt: skip
