"""How OpenMP's threads wait is said before torch starts them, unless somebody has said it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import configs

ROOT = Path(__file__).parents[2]
COMMANDS = sorted([*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py")])
MAY_LOAD_TORCH = {"torch", "transformers", "data", "model", "optim", "scripts", "faiss"}


def imported(path):
    """Packages that a file imports at its top, in order."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_command_imports_configs_first(path):
    packages = list(imported(path))
    if MAY_LOAD_TORCH.intersection(packages):
        first = next(name for name in packages if name == "configs" or name in MAY_LOAD_TORCH)
        assert first == "configs"


@pytest.mark.parametrize("said", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "77"}, {"KMP_BLOCKTIME": "0"}])
def test_what_is_said_stays(said):
    names = {"OMP_WAIT_POLICY", *configs.WAITING}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import configs, os; print({{n: v for n, v in os.environ.items() if n in {names}}})"
    done = subprocess.run([sys.executable, "-c", code], env=clean | said, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == (said or configs.WAITING)


def test_torch_hears_it():
    """Where its OpenMP is GNU's, which says so itself."""
    clean = {n: v for n, v in os.environ.items() if n not in {"OMP_WAIT_POLICY", *configs.WAITING}}
    code = "import configs, torch"
    env = clean | {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch's OpenMP is not GNU's")
    assert f"GOMP_SPINCOUNT = '{configs.WAITING['GOMP_SPINCOUNT']}'" in done.stderr
