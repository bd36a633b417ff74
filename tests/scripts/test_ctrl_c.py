"""Ctrl-C in commands that are no trainings: one line, status 130, no process left, and what was there is whole."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.regions.db import BoxOptions, Regions
from data.regions.writer import RegionWriter

ROOT = Path(__file__).resolve().parents[2]


def group(leader: int) -> set[int]:
    """Running processes of a process group."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.add(int(folder.name))
    return found


@pytest.mark.parametrize("name", ["make_scenes", "make_scenes in one process", "extract_regions", "inspect_db", "prepare"])
def test_ctrl_c_is_one_line_and_status_130(small_world, tmp_path, name):
    extract = ["--photos", small_world / "photos", "--out", tmp_path / "out", "--feature-dim", 32, "--num-labels", 11]
    words, processes = {
        "make_scenes": (["--out", tmp_path, "--train", 50_000, "--workers", 2], 3),
        "make_scenes in one process": (["--out", tmp_path, "--train", 50_000, "--workers", 1], 1),
        "extract_regions": ([*extract, "--size", 500, "--workers", 2], 3),
        "inspect_db": ([tmp_path / "many", "--verify", "--workers", 2], 3),
        "prepare": (["--photos", small_world / "photos", "--captions", small_world / "captions.jsonl", "--out", tmp_path / "out",
                     "--extract", "size=500", "workers=2", "feature-dim=32"], 4),
    }[name]  # fmt: skip
    if name == "inspect_db":
        regions = Regions(np.ones((12, 32)), np.tile([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], (12, 1)), np.ones(12))
        with RegionWriter(tmp_path / "many", BoxOptions()) as writer:
            for number in range(100_000):  # so many that its workers are met before they are done
                writer.add(f"{number}.npz", regions)
    command = [sys.executable, str(ROOT / "scripts" / f"{name.split()[0]}.py"), *map(str, words)]
    log = tmp_path / "log"
    with open(log, "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    begun = tmp_path / "photos" if name.startswith("make_scenes") else tmp_path
    while process.poll() is None and (len(group(process.pid)) < processes or not begun.exists()):
        time.sleep(0.01)  # until its workers are there
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(240) == 130, log.read_text()[-3000:]
    text = log.read_text()
    assert "Traceback" not in text and text.splitlines()[-1].startswith("stopped by Ctrl-C") and text.count("stopped by Ctrl-C") == 1, text[-3000:]
    until = time.monotonic() + 60
    while group(process.pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not group(process.pid)


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.py"), *ROOT.glob("scripts/[a-z]*.py")]), ids=lambda path: path.stem)
def test_what_makes_ctrl_c_one_line_is_imported_before_all_that_is_not_pythons_own(path):
    statements = [each for each in ast.parse(path.read_text()).body if isinstance(each, ast.Import | ast.ImportFrom)]
    names = [each.module if isinstance(each, ast.ImportFrom) else each.names[0].name for each in statements]
    foreign = [name.partition(".")[0] for name in names if name.partition(".")[0] not in sys.stdlib_module_names]
    assert foreign[0] == "configs"


IMPORT_TORCH = [
    *("pretrain.py", "train_itm.py", "eval_itm.py", "scripts/search.py", "scripts/build_index.py"),
    *("scripts/bench_retrieval.py", "scripts/bench_train.py", "scripts/extract_regions.py"),
]


@pytest.mark.parametrize("name", IMPORT_TORCH)
def test_ctrl_c_while_modules_are_imported_is_one_line_too(tmp_path, name):
    """A torch that is interrupted while it is imported stands in for a user who is quick."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(240)\n")
    command = [sys.executable, str(ROOT / name), "--checkpoint", "absent", "--captions", "absent", "--out", "absent"]
    found = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=240)
    assert found.returncode == 130 and found.stderr.count("\n") == 1 and found.stderr.startswith("stopped by Ctrl-C"), found.stderr
