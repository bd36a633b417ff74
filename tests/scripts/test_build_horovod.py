"""The script's key and its store of wheels, with an environment and wheels of our own: nothing is built here."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/build_horovod.sh"
KEY = f"cpython{sys.version_info.major}.{sys.version_info.minor}"


class Environment:
    """A Python with a torch of some version that cannot be imported, and a folder of kept wheels."""

    def __init__(self, folder: Path):
        self.cache = folder / "cache"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        self.python = folder / "env/bin/python"
        self.packages = next((folder / "env/lib").glob("python*/site-packages"))
        # pip and what Horovod needs, from the environment of the tests
        (self.packages / "outer.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
        self.set_torch("9.9.0")
        pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
        for name in ("cloudpickle", "psutil", "cffi"):  # or pip would fetch them
            self.write_package(name, pinned.get(name, "99.0"))

    def write_package(self, name: str, version: str) -> None:
        info = self.packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def set_torch(self, version: str, cuda: str | None = None) -> None:
        (self.packages / "torch").mkdir(exist_ok=True)
        (self.packages / "torch/__init__.py").write_text("raise ImportError('torch was imported')\n")
        (self.packages / "torch/version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")

    def run(self, *words: str, status: int = 0, **settings: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"XDG_CACHE_HOME": str(self.cache), "PIP_NO_INDEX": "1"} | settings
        words = [str(SCRIPT), "--python", str(self.python), *words]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done

    def key(self, **settings: str) -> str:
        return self.run("--print-key", **settings).stdout.strip()

    def keep_wheel(self, says: str) -> None:
        """A wheel of one module that says where it comes from, kept under the present key."""
        folder = self.cache / "lightningdot/wheels" / self.key()
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "horovod-0.28.1-py3-none-any.whl", "w") as wheel:
            info = "horovod-0.28.1.dist-info"
            wheel.writestr("horovod/__init__.py", "")
            wheel.writestr("horovod/torch.py", f"says = {says!r}\n" if says != "broken" else "import nothing_there\n")
            wheel.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: horovod\nVersion: 0.28.1\nRequires-Dist: torch>99\n"
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            names = [*wheel.namelist(), f"{info}/RECORD"]
            wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))

    def installed(self) -> str:
        words = [self.python, "-c", "import horovod.torch; print(horovod.torch.says)"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path)


def test_key_changes_with_torch_python_and_cuda(environment, tmp_path):
    key = environment.key()
    assert key == f"horovod0.28.1-torch9.9.0-{KEY}-cpu-{sys.platform}-{os.uname().machine}"
    environment.set_torch("9.9.1+cpu")
    assert environment.key() == key.replace("torch9.9.0", "torch9.9.1+cpu")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "bin/nvcc").chmod(0o755)
    assert "-cpu-" in environment.key(CUDA_HOME=str(tmp_path))  # torch has no CUDA
    environment.set_torch("9.9.1", cuda="12.6")
    assert "-cuda12.6-" in environment.key(CUDA_HOME=str(tmp_path))


def test_kept_wheel_is_installed_once_and_again_for_another_torch(environment):
    environment.keep_wheel("first")
    done = environment.run()
    assert "from the kept wheel" in done.stdout and environment.installed() == "first"
    assert environment.run().stdout == ""  # nothing to do
    environment.set_torch("9.10.0")
    environment.keep_wheel("second")
    assert "from the kept wheel" in environment.run().stdout and environment.installed() == "second"


def test_horovod_from_elsewhere_is_replaced(environment):
    environment.keep_wheel("ours")
    environment.write_package("horovod", "0.27.0")
    (environment.packages / "horovod-0.27.0.dist-info/RECORD").write_text("")
    environment.run()
    assert environment.installed() == "ours"


def test_without_a_kept_wheel_or_with_force_it_builds(environment):
    """Up to the first thing that a build needs and this environment lacks."""
    assert "no C++ compiler (nothing)" in environment.run(status=2, CXX="nothing").stderr
    environment.keep_wheel("kept")
    assert "no C++ compiler (nothing)" in environment.run("--force", status=2, CXX="nothing").stderr
    environment.run(CXX="nothing")
    assert environment.installed() == "kept"


def test_a_build_that_stops_leaves_nothing_behind(environment):
    errors = environment.run(status=2, CXX="true").stderr  # a compiler of sorts, and a torch that cannot be imported
    assert "torch cannot be imported" in errors or "the build tools cannot be installed" in errors
    assert list((environment.cache / "lightningdot/wheels").iterdir()) == []


def test_wheel_that_does_not_import_is_an_error(environment):
    environment.keep_wheel("broken")
    errors = environment.run(status=2).stderr
    assert (
        "does not import (ModuleNotFoundError: No module named 'nothing_there'); build it again with --force" in errors
    )
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pyton", "x"], "error: unknown option --pyton"),
        (["--python"], "error: --python needs a path"),
        (["--python", "/absent/python"], "error: /absent/python: no such Python"),
    ],
)
def test_bad_words_are_one_line(environment, words, message):
    errors = environment.run(*words, status=2).stderr
    assert errors.startswith(message) and errors.count("\n") == 1


def test_python_without_torch_is_an_error(environment):
    for path in (environment.packages / "torch").iterdir():
        path.unlink()
    (environment.packages / "torch").rmdir()
    (environment.packages / "outer.pth").unlink()
    assert "torch is not installed there" in environment.run(status=2).stderr
