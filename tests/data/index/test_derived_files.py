"""Files that are made from an index: whose they are, when they fit, and that a changed index deletes them all."""

import json

import numpy as np
import pytest

from data.errors import BadInput
from data.index.derived import DerivedFiles
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from tests.small_indexes import write


def test_they_fit_the_state_that_they_were_made_of_and_go_with_it(tmp_path):
    folder = tmp_path / "index"
    files = DerivedFiles(write(folder, np.ones((3, 4), np.float32)), "mine", 1)  # a backend that data/index never heard of
    assert files.description() is None
    files.path("big").write_bytes(b"...")
    files.path("bigger").write_bytes(b"......")
    files.describe({"bytes": 3})
    assert files.description()["bytes"] == 3 and files.fit(files.description())
    assert not DerivedFiles(EmbeddingIndex(folder), "mine", 2).fit(files.description())
    (folder / "notes.txt").write_text("not ours")
    (folder / "notes.json").write_text('{"not": "ours"}')
    (folder / "odd.json").write_text("[")
    kept = {path.name: path.read_bytes() for path in folder.glob("mine.*")}
    with IndexEditor(folder, "m0") as editor:
        editor.replace(["id_00000.npz"], np.zeros((1, 4)))
    assert sorted(path.name for path in folder.iterdir()) == ["data.mdb", "notes.json", "notes.txt", "odd.json"]
    for name, content in kept.items():  # as copied back from elsewhere
        (folder / name).write_bytes(content)
    files = DerivedFiles(EmbeddingIndex(folder), "mine", 1)
    assert not files.fit(files.description())
    files.describe({"bytes": 3})
    write(folder, np.ones((3, 4), np.float32))  # built anew
    assert not list(folder.glob("mine.*"))


@pytest.mark.parametrize("lost", ["checksum", "mine"])
def test_what_a_description_does_not_say_any_more_is_noticed(tmp_path, lost):
    files = DerivedFiles(write(tmp_path / "index", np.ones((3, 4), np.float32)), "mine", 1)
    files.describe({"mine": 5})
    about = json.loads(files.path("json").read_text())
    files.path("json").write_text(json.dumps({name: value for name, value in about.items() if name != lost}))
    with pytest.raises(BadInput, match="not what was written"):
        files.description()


def test_a_damaged_description_says_so_and_a_disowned_file_is_nobodys(tmp_path):
    files = DerivedFiles(write(tmp_path / "index", np.ones((3, 4), np.float32)), "mine", 1)
    for text in ("{", json.dumps([1])):
        files.path("json").write_text(text)
        with pytest.raises(BadInput):
            files.description()
    files.disown()
    assert files.description() is None
