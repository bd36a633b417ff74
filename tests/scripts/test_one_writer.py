"""Two commands with one output: the second is refused at once, before it reads anything, with the process that has it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import eval_itm
from configs import cli
from data.errors import BadInput
from data.storage.locks import only_writer
from scripts import (
    bench_data,
    bench_retrieval,
    bench_serve,
    bench_versions,
    build_captions,
    build_index,
    compare,
    contact_sheet,
    convert_checkpoint,
    convert_config,
    demo,
    download,
    download_pictures,
    export_index,
    extract_regions,
    inspect_db,
    make_scenes,
    plan,
    plot_runs,
    prepare,
    report,
    retrieval_table,
    score_pairs,
    search,
    train_tokenizer,
    translate,
)

ROOT = Path(__file__).resolve().parents[2]
MINE = f"process {os.getpid()} on .* is writing there; wait for it, or end it"
POSITIONAL = {
    compare: ("a", "b"),
    convert_checkpoint: ("src", "dst"),
    convert_config: ("old",),
    download: ("name",),
    download_pictures: ("list",),
    inspect_db: ("path",),
    plot_runs: ("runs",),
    report: ("run",),
    search: ("query",),
}
PLACES = ["--reranker", "absent", "--checkpoint", "absent", "--captions", "absent", "--regions", "absent"]
COMMANDS = {
    "bench_data": (bench_data, ["--out", "out"], "out"),
    "bench_retrieval": (bench_retrieval, ["--out", "out.json"], "out.json"),
    "bench_serve": (bench_serve, ["--out", "out.json"], "out.json"),
    "bench_versions": (bench_versions, ["--other", str(ROOT), "--out", "out.json"], "out.json"),
    "download_pictures": (download_pictures, ["absent", "--out", "out"], "out"),
    "eval_itm": (eval_itm, [*PLACES[2:], "--out", "out"], "out"),
    "compare": (compare, ["absent", "absent", "--json", "out.json"], "out.json"),
    "contact_sheet": (contact_sheet, ["--index", "absent", "--photos", "absent", *PLACES[2:6], "--out", "a.png"], "a.png"),
    "convert_config": (convert_config, ["absent.json", "--out", "a.yaml"], "a.yaml"),
    "download": (download, ["karpathy", "--out", "out"], "out"),
    "inspect_db": (inspect_db, ["absent", "--json", "a/out.json"], "a/out.json"),
    "plan": (plan, ["--config", "absent", "--gpu", "h100", "--json", "out.json"], "out.json"),
    "plot_runs": (plot_runs, ["absent", "--out", "out.png"], "out.png"),
    "report": (report, ["absent", "--out", "out.html"], "out.html"),
    "retrieval_table": (retrieval_table, ["--results", "absent", "--plot", "out.png"], "out.png"),
    "search": (search, ["dog", "--index", "absent", *PLACES[2:4], "--json", "out.json"], "out.json"),
    "sheet of a search": (
        search,
        ["dog", "--index", "absent", *PLACES[2:4], "--photos", "absent", "--sheet", "a.png"],
        "a.png",
    ),
    "score_pairs": (score_pairs, [*PLACES, "--out", "scores.npz"], "scores.npz"),
    "build_captions": (build_captions, ["--annotations", "absent", "--tokenizer", "absent", "--out", "out"], "out"),
    "build_index": (build_index, ["--checkpoint", "absent", "--regions", "absent", "--out", "out", "--device", "cpu"], "out"),
    "delete from an index": (build_index, ["--checkpoint", "absent", "--delete", "absent", "--out", "out"], "out"),
    "convert_checkpoint": (convert_checkpoint, ["absent", "out"], "out"),
    "export_index": (export_index, ["--index", "absent", "--uri", "out.db"], "out.db"),
    "extract_regions": (extract_regions, ["--photos", "absent", "--out", "out"], "out"),
    "a shard of extract_regions": (
        extract_regions,
        ["--photos", "absent", "--out", "out", "--shard", "2/3"],
        "out/part-2-of-3",
    ),
    "merge of extract_regions": (extract_regions, ["--photos", "absent", "--out", "out", "--merge"], "out"),
    "make_scenes": (make_scenes, ["--out", "out"], "out"),
    "prepare": (prepare, ["--photos", "absent", "--captions", "absent", "--out", "out"], "out"),
    "train_tokenizer": (train_tokenizer, ["--annotations", "absent", "--out", "out"], "out"),
    "translate": (translate, ["--captions", "absent", "--tokenizer", "absent", "--out", "out"], "out"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_command_is_refused(tmp_path, monkeypatch, name):
    script, words, out = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    with only_writer(out):
        with pytest.raises(BadInput, match=MINE):
            script.main(cli.parse(getattr(script, "Options", None) or script.EvalConfig, words, POSITIONAL.get(script, ())))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_second_demo_does_not_empty_the_folder_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / demo.OUT).mkdir(parents=True)
    (tmp_path / demo.OUT / "results.json").write_text("of the first")
    with only_writer(f"{tmp_path / demo.OUT} (all of it)"), pytest.raises(BadInput, match=MINE):
        demo.main(demo.Options())
    assert (tmp_path / demo.OUT / "results.json").read_text() == "of the first"


def test_the_demo_empties_a_folder_that_is_a_link_to_another_disk(tmp_path, monkeypatch):
    """Else runs of before would be gone on with, and their table shown as this one's."""
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / "disk/finetune/checkpoints").mkdir(parents=True)
    (tmp_path / "disk/results.json").write_text("of the run before")
    (tmp_path / demo.OUT).parent.mkdir()
    (tmp_path / demo.OUT).symlink_to(tmp_path / "disk")
    left = []
    monkeypatch.setattr(demo, "run_command", lambda *_, **__: left.append(list((tmp_path / "disk").iterdir())) or 1)
    with pytest.raises(BadInput, match=r"the demo stopped at: python scripts/make_scenes\.py"):
        demo.main(demo.Options())
    assert left == [[]] and (tmp_path / demo.OUT).is_symlink()


def test_shards_of_one_extraction_are_written_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with only_writer("out/part-1-of-2"), pytest.raises(BadInput, match="absent"):
        words = ["--photos", "absent", "--out", "out", "--shard", "2/2"]
        extract_regions.main(cli.parse(extract_regions.Options, words))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("pretrain.py", ["--data", "[{name: a, captions: absent, regions: absent, tasks: {cmr: 1}}]"]),
        ("train_itm.py", ["--train-captions", "absent", "--train-regions", "absent", "--val-captions", "absent"]),
    ],
)
def test_a_run_folder_has_one_training_of_any_number_of_ranks(tmp_path, script, words):
    words = [sys.executable, str(ROOT / script), *words, "--device", "cpu", "--out", str(tmp_path / "run")]
    for ranks in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            free_port = free.getsockname()[1]
        together = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
        with only_writer(tmp_path / "run"):
            processes = [
                subprocess.Popen(words, stderr=subprocess.PIPE, text=True,
                                 env=os.environ | (together | {"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}))
                for r in range(ranks)
            ]  # fmt: skip
            said = [process.communicate(timeout=240)[1] for process in processes]
        assert [process.returncode for process in processes] == [2] * ranks, said
        assert f"{tmp_path / 'run'}: process {os.getpid()} on" in said[0] and said[0].count("\n") == 1
        assert all("is writing there" in text for text in said)
    assert list(tmp_path.iterdir()) == []
