"""What a command does not write over."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.own_files import check_written_over, other_part
from scripts import convert_config


@pytest.mark.parametrize(("holder", "name"), [("data.mdb", "data.mdb"), ("data.mdb", "pictures.json"), ("run.json", "config.yaml"), ("ranks.npz", "results.json")])
def test_parts_of_something_are_not_written_over(tmp_path, holder, name):
    for each in {holder, name}:
        (tmp_path / each).write_text("{}")
    (tmp_path / "link.json").symlink_to(name)
    for path in (tmp_path / name, tmp_path / "link.json"):
        with pytest.raises(BadInput, match=f"{path.name}: is part of a database, an index, a checkpoint or a run"):
            claim_output(path)
    check_written_over(tmp_path / "found.json")
    (tmp_path / "found.json").write_text("{}")
    check_written_over(tmp_path / "found.json")  # of the same command before, say
    check_written_over(tmp_path)


def test_files_of_such_names_elsewhere_are(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    check_written_over(tmp_path / "results.json")


def test_a_file_that_is_read_is_not_written_over(tmp_path):
    (tmp_path / "old.json").write_text(content := json.dumps({"txt_model_type": "bert-base"}))
    (tmp_path / "link.json").symlink_to("old.json")
    words = [sys.executable, convert_config.__file__, "old.json", "--out", f"../{tmp_path.name}/link.json"]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2 and "is read by this command, which would write over it" in ended.stderr
    assert (tmp_path / "old.json").read_text() == content


def test_what_is_no_part_of_a_database_is_found(tmp_path):
    assert other_part(tmp_path / "absent") is None
    for name in ("data.mdb", "meta.json", ".DS_Store", "columns_0.2", "run"):
        Path(tmp_path, name).mkdir()
    assert other_part(tmp_path) == "run"
