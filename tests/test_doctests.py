"""The examples in docstrings of what a Python user imports run as they stand, in a folder with what they name."""

import doctest
import importlib
import os
import shutil

import pytest

MODULES = ["model.retrieval.retriever", "model.retrieval.results", "model.bi_encoder", "data.index.reader", "data.search", "data.captions.tokenizers", "data.regions.db", "data.captions.db"]


@pytest.fixture(scope="module")
def folder(small_world, finetuned, command, tmp_path_factory):
    """checkpoint, photos, regions, db, index/img and index/txt."""
    root = tmp_path_factory.mktemp("user")
    for name, target in {"checkpoint": finetuned / "best", "regions": small_world / "regions", "db": small_world / "db"}.items():
        (root / name).symlink_to(target)
    pictures = sorted((small_world / "photos").iterdir())
    shutil.copytree(small_world / "photos", root / "photos")
    shutil.copyfile(pictures[0], root / "photos" / "new.jpg")
    for kind, database in (("img", ["--regions", root / "regions"]), ("txt", ["--captions", root / "db/test"])):
        command("scripts/build_index.py", "--checkpoint", root / "checkpoint", *database, "--out", root / "index" / kind, "--device", "cpu")
    return root


@pytest.mark.parametrize("name", MODULES)
def test_examples_run_as_they_stand(name, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    assert tests, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
    assert os.getcwd() == str(folder)
