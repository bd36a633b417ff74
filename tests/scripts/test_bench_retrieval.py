"""scripts/bench_retrieval.py: the table, of tiny models and galleries; times are only that they are there."""

import json
import os

import numpy as np
import pytest

from configs import cli
from data.errors import BadInput
from scripts import bench_retrieval, retrieval_table
from scripts.bench_retrieval import Options
from scripts.benchmarking.galleries import Synthetic, in_another_process
from scripts.benchmarking.retrieval_report import FLAT
from scripts.benchmarking.work_folder import MARK, work_folder
from tests.kill_points import run_killed

TINY = (
    "--galleries 300 900 --encoded 20 --rerank-top 5 20 --rounds 2 --seconds 0.01 --hidden-size 32 --num-hidden-layers 1 "
    "--num-attention-heads 2 --intermediate-size 64 --dim 32 --feature-dim 16 --vocab-size 500 --regions 12 --device cpu"
).split()


def test_the_table(tmp_path, capsys):
    options = [*TINY, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out/table.json")]
    bench_retrieval.main(cli.parse(Options, options))
    table = json.loads((tmp_path / "out/table.json").read_text())
    assert (tmp_path / "out/table.png").stat().st_size > 10_000 and not (tmp_path / "work").exists()
    assert [row["images"] for row in table["galleries"]] == [300, 900]
    for precision in ("fp32", "bf16"):
        models = table["models"][precision]
        pair = models["cross_attention_seconds_per_pair"]
        assert pair == models["reranking"]["20"]["median"] / 20
        for row in table["galleries"]:
            cross = row[precision]["cross_attention_seconds"]
            assert cross == pytest.approx(pair * row["images"])
            for name in ("exact", "hnsw", "ivfpq"):
                each = row[precision][name]
                again = each["with_reranking"]["5"]
                assert each["times_faster"] == pytest.approx(cross / each["answer"]["median"])
                whole = models["text_encoding"]["batch of 100"]["median"] + row["search"][name]["batch of 100"]["median"]
                assert each["in_batches"]["seconds"] == pytest.approx(whole / 100)
                assert again["seconds"] == pytest.approx(each["answer"]["median"] + models["reranking"]["5"]["median"])
    for row in table["galleries"]:
        assert row["same_ids_as_flat"] == 1 and set(row["search"]) == {"exact", "hnsw", "ivfpq", FLAT}
        assert min(row[name]["recall"] for name in ("hnsw", "ivfpq")) > 0.9
        assert set(row["opening"]) == {"seconds", "bytes", "bytes_after_100_vectors", "bytes_after_exact_search"}
    shown = capsys.readouterr().out
    again = retrieval_table.Options(str(tmp_path / "out/table.json"), str(tmp_path / "again.png"))
    retrieval_table.main(again)
    assert capsys.readouterr().out in shown and (tmp_path / "again.png").stat().st_size > 10_000
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(BadInput, match=r"other.json: no results of scripts/bench_retrieval.py"):
        retrieval_table.main(retrieval_table.Options(str(tmp_path / "other.json")))
    assert "extrapolated" in shown and FLAT in shown and shown.count("ivfpq") == 2 * 2 + 2


def test_vectors_are_spread_as_the_trained_ones_were():
    shape, rng = Synthetic(96), np.random.default_rng(1)
    images = shape.vectors(rng, 20000)
    assert np.linalg.norm(images, axis=1).mean() == pytest.approx(6, abs=0.05)
    values = np.linalg.eigvalsh(np.cov(images.T))[::-1]
    for i, measured in ((2, 0.76), (4, 0.52), (8, 0.32), (16, 0.14), (32, 0.026), (64, 0.0073)):
        assert values[i - 1] / values[0] == pytest.approx(measured, rel=0.75)  # heavier tails are harder to search
    queries = shape.queries(rng, images[:5000])
    cosines = (queries * images[:5000]).sum(1) / 6 / np.linalg.norm(images[:5000], axis=1)
    assert cosines.mean() == pytest.approx(0.46, abs=0.08)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rerank-top", "50"], "the best 50 cannot be ranked again among 20 images"),
        (["--rounds", "0"], "must be at least 1"),
        (["--rerank-top", ""], "rerank_top: found none, expected at least one"),
        (["--galleries", "[]"], "galleries: found none"),
        (["--out", "a.png"], "out: a.png is where the plot is written"),
    ],
)
def test_it_refuses(words, message):
    with pytest.raises(BadInput, match=message):
        cli.parse(Options, [*TINY, *words])


def test_a_folder_of_somebody_is_no_folder_to_work_in(tmp_path):
    with pytest.raises(BadInput, match="exists; it is deleted at the end"):
        bench_retrieval.main(cli.parse(Options, [*TINY, "--work", str(tmp_path), "--out", str(tmp_path / "out.json")]))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(BadInput, match="exists; it is deleted at the end"), work_folder(str(tmp_path / "link")):
        pass
    with work_folder(str(tmp_path / "work")), pytest.raises(BadInput, match="is writing there"), work_folder(str(tmp_path / "work")):
        pass


def test_what_a_killed_benchmark_has_left_is_deleted_by_the_next(tmp_path):
    def main() -> None:
        with work_folder(str(tmp_path / "work"), "of the killed one") as work:
            (work / "index").mkdir()
            (work / "index" / "data.mdb").write_text("x")
            (work / "model").mkdir()

    number, notes = 0, []
    while run_killed(main, tmp_path / "work", number):
        with work_folder(str(tmp_path / "work"), "", notes.append) as work:
            assert [path.name for path in work.iterdir()] == [MARK]
        assert not list(tmp_path.iterdir()), f"killed before change {number}"
        number += 1
    assert number > 8 and set(notes) == {"of the killed one"}


def dies(status):
    os._exit(status)


def test_a_process_that_dies_is_waited_for_by_nobody():
    with pytest.raises(BadInput, match="a process that measures died, perhaps out of memory"):
        in_another_process(dies, 7)
