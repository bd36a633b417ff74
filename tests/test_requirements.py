"""What is installed: ranges with a reason each, and the one exact set that is tested."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("requirements.txt", "tests/requirements.txt")


def entries(name):
    """Requirement and the rest of its line, of every line that is no comment."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [(Requirement(line.partition("#")[0].strip()), line.partition("#")[2]) for line in lines if line.partition("#")[0].strip()]


def exact_versions():
    found = {}
    for requirement, _ in entries("constraints.txt"):
        (version,) = requirement.specifier
        assert version.operator == "==" and "+" not in version.version and requirement.url is None, requirement
        found[canonicalize_name(requirement.name)] = version.version
    return found


@pytest.mark.parametrize("name", LISTS)
def test_every_requirement_is_a_range_with_a_reason_and_a_tested_version(name):
    exact = exact_versions()
    for requirement, reason in entries(name):
        operators = sorted(each.operator for each in requirement.specifier)
        assert operators == ["<", ">="], f"{requirement}: expected a range, as >=1.0,<2"
        assert reason or requirement.name == "pytest", f"{requirement}: say what it is for"
        version = exact.get(canonicalize_name(requirement.name))
        assert version is not None and requirement.specifier.contains(version), f"{requirement}: constraints.txt has {version}"


def test_extras_are_named_with_the_tested_ranges():
    named = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition("# Extras")[2]
    for requirement, _ in entries("tests/requirements.txt"):
        if requirement.name in ("pymilvus", "milvus-lite", "h5py", "sentencepiece"):
            assert re.search(rf"{requirement.name}>=\S+,<\d+", named)[0].replace(requirement.name, "").split(",") == sorted(
                map(str, requirement.specifier), reverse=True
            )


def test_documented_installs_keep_to_the_tested_versions():
    assert exact_versions()["torch"] == "2.13.0"
    files = [ROOT / "Makefile", ROOT / "README.md", *LISTS, *(ROOT / "docs").glob("*.md"), *(ROOT / "scripts").glob("*.sh")]
    for path in (ROOT / file for file in files):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"pip install .*-r \S*requirements\.txt", line) or re.search(r"pip install .*\btorch(vision)?\b", line):
                assert "-c constraints.txt" in line, f"{path}: {line}"
