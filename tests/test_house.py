"""The house rules that no linter knows: sizes, reasons for imports inside functions, paths named in the documents."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOT_SCRIPTS = ["pretrain.py", "train_itm.py", "eval_itm.py"]
PRODUCT = ["configs", "data", "model", "optim", "scripts", *ROOT_SCRIPTS]


def product_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *PRODUCT], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name.endswith(".py") and (ROOT / name).exists()]
    assert len(names) > 50
    return names


def functions(name: str) -> list[tuple[str, int]]:
    """Every function of a file with its number of lines, from ``def`` to its end."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f"{name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1) for node in found]


def unexplained_imports(text: str) -> list[int]:
    """Lines of imports inside functions without a comment that says why: behind it, or on top of its block."""
    lines = text.splitlines()
    inner = {
        node.lineno: node.end_lineno
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    unexplained, explained_until = [], 0
    for start, end in sorted(inner.items()):
        above = lines[start - 2].strip()
        if any("#" in line for line in lines[start - 1 : end]) or above.startswith("#") or explained_until == start - 1:
            explained_until = end
        else:
            unexplained.append(start)
    return unexplained


def test_no_function_is_longer_than_a_screen():
    assert not [f"{where}: {size} lines" for name in product_files() for where, size in functions(name) if size > 60]


def test_no_file_is_longer_than_its_place_allows():
    for name in product_files():
        limit = 150 if name.startswith("scripts/") else 100 if name in ROOT_SCRIPTS else 400
        size = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert size <= limit, f"{name}: {size} lines, at most {limit}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import os", []),
        ("def f():\n    import os", [2]),
        ("def f():\n    import os  # slow", []),
        ("def f():\n    # optional\n    import os\n    import sys\n\n    import re", [6]),
        ("class C:\n    def f(self):\n        if self:\n            from a import (\n                b,  # slow\n            )", []),
    ],
)
def test_what_counts_as_a_reason(body, expected):
    assert unexplained_imports(body) == expected


def test_an_import_inside_a_function_says_why():
    for name in product_files():
        found = unexplained_imports((ROOT / name).read_text(encoding="utf-8"))
        assert not found, f"{name}: imports inside functions without a comment, lines {found}"


def named_paths(text: str) -> set[str]:
    """Paths of the repository that a text names, ``*`` included: ``data/search/faiss.py``, ``configs/*/demo.yaml``."""
    folders = "configs|data|model|optim|scripts|tests|docs"
    found = re.findall(rf"(?<![\w/.*{{}}-])((?:{folders})/[\w./*-]*\.(?:py|yaml|md|sh)\b)", text)
    return {*found, *re.findall(r"(?<![\w/.-])(?:pretrain|train_itm|eval_itm)\.py\b", text)}


def test_named_paths_are_found():
    text = "see data/search/faiss.py, `configs/*/demo.yaml`; not tutorial/data/a.py, DATA/b.py; python pretrain.py"
    assert named_paths(text) == {"data/search/faiss.py", "configs/*/demo.yaml", "pretrain.py"}


def test_every_file_that_a_document_a_recipe_or_a_docstring_names_is_there():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name.endswith((".py", ".yaml", ".md", ".sh", "Makefile"))]
    for name in names:
        if not name.startswith("tests/") and name != "configs/downloads.yaml" and (ROOT / name).exists():  # names others'
            for path in named_paths((ROOT / name).read_text(encoding="utf-8")):
                assert "NAME" in path or any(ROOT.glob(path)), f"{name} names {path}, which is not there"


def test_every_room_says_what_it_holds():
    for name in product_files():
        if name.endswith("/__init__.py"):
            assert ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))), f"{name}: no docstring"


UNBOUNDED = re.compile(
    r"torch\.load|np\.load|Image\.open|pickle\.(?:loads?|Unpickler)|yaml\.(?:safe_load|load|compose)|lz4\.frame\.decompress|\.read_(?:bytes|text)"
    r"|(?<![\w.])open"
)
OWN_BYTES = {  # what is read there is this process's own, or was looked at before
    "configs/yaml_file.py": {"yaml.compose"},  # by the bounded loader
    "data/batches/shared_memory.py": {"pickle.Unpickler"},
    "data/downloads/fetch.py": {".read_text"},
    "model/evaluation/scoring.py": {".read_bytes"},
    "optim/run.py": {"yaml.safe_load"},
}


def unbounded_reads(text: str) -> set[str]:
    """Calls, and base classes, that read files or compressed data without a bound; `open` for writing is none."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        called = [node] if isinstance(node, ast.Call) else []
        names = [ast.unparse(call.func) for call in called] + [ast.unparse(base) for base in getattr(node, "bases", [])]
        for name in names:
            match = UNBOUNDED.search(name)
            mode = ast.unparse(node.args[1]) if called and len(node.args) > 1 else "'r'"
            if match and match.end() == len(name) and not (match[0] == "open" and re.search("[wax+]", mode)):
                found.add(match[0])
    return found


def test_which_reads_are_unbounded():
    text = "open(a)\nopen(a, 'w')\nfile.open(b)\ntorch.load(x)\nclass A(pickle.Unpickler): pass\nPath(a).read_text()\nread_text(a)\n"
    assert unbounded_reads(text) == {"open", "torch.load", "pickle.Unpickler", ".read_text"}


def test_files_are_read_through_data_storage():
    """There sizes, kinds and depths are looked at once: data/storage/regular_files.py, text_files.py, arrays.py, and their like."""
    for name in product_files():
        if not name.startswith(("data/storage/", "scripts/bench", "scripts/documenting/")):
            found = unbounded_reads((ROOT / name).read_text(encoding="utf-8")) - OWN_BYTES.get(name, set())
            assert not found, f"{name}: {', '.join(found)}; use what data/storage/ has for it"


def test_links_are_followed_by_what_no_circle_of_links_stops():
    """``Path.resolve`` of Python before 3.13 raises RuntimeError for a link to itself, which no reader of files expects."""
    for name in product_files():
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            assert ".resolve()" not in line or "__file__" in line, f"{name}: {line.strip()}: use data.storage.regular_files.real_path"
