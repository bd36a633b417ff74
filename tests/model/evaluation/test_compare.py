"""``scripts/compare.py``: its numbers from outcomes made here, and what it refuses to compare."""

import json

import numpy as np
import pytest

from data.errors import BadInput
from model.evaluation.outcomes import QueryRanks, write_ranks
from model.evaluation.recall import METRICS, mean_table, recall_table
from model.evaluation.statistics import holm, mcnemar
from scripts import compare

IMAGES = [f"{i:03d}.npz" for i in range(100)]


def write(folder, ranks, img_ids=IMAGES, suffix=""):
    """An evaluation as eval_itm.py leaves it, as far as it is compared."""
    tables = {name: recall_table(task.t2i, task.i2t) for name, task in ranks.items()}
    tables.setdefault("all", mean_table(list(tables.values())))
    txt_ids = {name: [f"{name}{t}{suffix}" for t in range(len(task.t2i))] for name, task in ranks.items()}
    write_ranks(folder / "ranks.npz", img_ids, txt_ids, ranks)
    (folder / "results.json").write_text(json.dumps({"recall": tables, "ranks": "ranks.npz"}))
    return folder


def outcomes(seed, names=("all",), hit=0.5):
    """3 captions an image; each query is answered at once with probability ``hit``, or not at all."""
    rng = np.random.default_rng(seed)
    ranks = {name: np.where(rng.random(400) < hit, 0, 300) for name in names}
    return {name: QueryRanks(each[:300], each[300:], np.arange(300) // 3) for name, each in ranks.items()}


def run(capsys, *paths, **options):
    capsys.readouterr()
    compare.main(compare.Options(*map(str, paths), **{"bootstrap": 500} | options))
    return capsys.readouterr().out


@pytest.fixture
def pair(tmp_path):
    return write(tmp_path / "a", outcomes(0)), write(tmp_path / "b", outcomes(1, hit=0.7))


def test_numbers_and_table(pair, tmp_path, capsys):
    a, b = outcomes(0)["all"], outcomes(1, hit=0.7)["all"]
    shown = run(capsys, pair[0], pair[1] / "results.json", json=str(tmp_path / "out" / "c.json"))
    written = json.loads((tmp_path / "out" / "c.json").read_text())
    row = written["comparison"]["all"]
    assert list(row) == list(METRICS) and written["images"] == 100 and written["captions"] == 300
    before, after = recall_table(a.t2i, a.i2t), recall_table(b.t2i, b.i2t)
    for metric, cell in row.items():
        assert (cell["a"], cell["b"]) == (before[metric], after[metric])
        assert cell["difference"] == pytest.approx(after[metric] - before[metric])
        assert cell["low"] < cell["difference"] < cell["high"]
    only_a, only_b = ((a.t2i < 1) & (b.t2i > 0)).sum(), ((a.t2i > 0) & (b.t2i < 1)).sum()
    assert row["IR@1"]["p"] == pytest.approx(mcnemar(int(only_a), int(only_b))) and row["IR@1"]["test"] == "mcnemar"
    assert row["AR"]["p"] == 1 / 501 and row["AR"]["test"] == "sign-flip"
    assert [cell["p_holm"] for cell in row.values()] == holm([cell["p"] for cell in row.values()])
    line = next(line for line in shown.splitlines() if line.startswith("IR@1"))
    assert line.split()[1:4] == [f"{before['IR@1']:.2f}", f"{after['IR@1']:.2f}", f"{row['IR@1']['difference']:+.2f}"]
    assert "corrected for looking at all 7 at once" in shown


def test_intervals_of_paired_differences_are_narrower_than_of_independent_ones(tmp_path, capsys):
    """B differs from A in 10 of 300 text queries: the interval of the difference is sqrt(10) / 300 wide, not more."""
    a = outcomes(0)["all"]
    t2i = a.t2i.copy()
    t2i[np.flatnonzero(a.t2i > 0)[:10]] = 0
    folders = write(tmp_path / "a", {"all": a}), write(tmp_path / "b", {"all": QueryRanks(t2i, a.i2t, a.image_of)})
    run(capsys, *folders, json=str(tmp_path / "c.json"), bootstrap=2000)
    row = json.loads((tmp_path / "c.json").read_text())["comparison"]["all"]
    assert row["IR@1"]["p"] == 2 / 2**10 and row["TR@1"]["p"] == 1
    assert row["TR@1"]["low"] == row["TR@1"]["high"] == 0
    assert row["IR@1"]["high"] - row["IR@1"]["low"] == pytest.approx(2 * 1.96 * 100 * np.sqrt(10) / 300, rel=0.15)


def test_the_same_evaluation_does_not_differ(pair, capsys):
    shown = run(capsys, pair[0], pair[0])
    for line in shown.splitlines():
        if line.startswith(METRICS):
            assert line.split()[3] == "+0.00" and line.split()[-3:-1] == ["1", "1"], line


def test_languages_and_their_mean(tmp_path, capsys):
    names = ("en", "de")
    a, b = outcomes(0, names), outcomes(1, names, 0.6)
    folders = write(tmp_path / "a", a), write(tmp_path / "b", b)
    shown = run(capsys, *folders, json=str(tmp_path / "c.json"), resample="images")
    rows = json.loads((tmp_path / "c.json").read_text())["comparison"]
    assert list(rows) == ["en", "de", "all"] and "all 21 at once" in shown
    for metric in METRICS:
        parts = [rows[name][metric]["difference"] for name in names]
        assert rows["all"][metric]["difference"] == pytest.approx(np.mean(parts))
        assert rows["all"][metric]["test"] == "sign-flip"
    flat = [cell for row in rows.values() for cell in row.values()]
    assert [cell["p_holm"] for cell in flat] == holm([cell["p"] for cell in flat])


def test_only_the_same_queries_are_compared(pair, tmp_path, capsys):
    a = pair[0]
    swapped = [*IMAGES[:5], IMAGES[6], IMAGES[5], *IMAGES[7:]]
    moved = outcomes(0)["all"]
    moved.image_of = moved.image_of[::-1].copy()
    fewer = outcomes(0)["all"]
    fewer = QueryRanks(fewer.t2i[:299], fewer.i2t, fewer.image_of[:299])
    some = outcomes(0)["all"]
    some = QueryRanks(some.t2i, some.i2t[1:], some.image_of, np.arange(1, 100))
    for other, words in (
        (write(tmp_path / "c", outcomes(0), swapped), "image 5 is 005.npz in the first and 006.npz in the second"),
        (write(tmp_path / "d", outcomes(0), suffix="x"), "all caption 0 is all0 in the first and all0x in the second"),
        (write(tmp_path / "e", {"all": fewer}), "all caption 299, all299, is only in .*a/results.json"),
        (write(tmp_path / "f", {"all": moved}), r"captions \(all\) belong to other images"),
        (write(tmp_path / "g", outcomes(0, ("en", "de"))), "has all, .* has en, de"),
        (write(tmp_path / "h", {"all": some}), "in all 100 images in the first and 99 in the second"),
    ):
        with pytest.raises(BadInput, match=words):
            run(capsys, a, other)


def test_bad_files(pair, tmp_path, capsys, command):
    a, b = pair
    results = json.loads((b / "results.json").read_text())
    for content, words in (
        ("{", r"b/results\.json: the file is not JSON .* a results\.json of eval_itm\.py"),
        ("[1]", "holds a list"),
        (json.dumps({"recall": results["recall"]}), "no 'ranks' in it: evaluate again"),
        (json.dumps(results | {"recall": {}}), r"b/ranks\.npz: not of the same evaluation"),
        (json.dumps(results | {"ranks": "other.npz"}), r"other\.npz: cannot be read"),
        *((json.dumps(results | {"config": {name: {}}}), f"{name}: found an object, expected a text") for name in ("checkpoint", "captions", "data_root")),
    ):
        (b / "results.json").write_text(content)
        with pytest.raises(BadInput, match=words):
            run(capsys, a, b)
    done = command("scripts/compare.py", a, tmp_path / "nowhere", status=2)
    assert done.stderr.startswith("error: ") and "nowhere" in done.stderr and done.stderr.count("\n") == 1
    with pytest.raises(BadInput, match="at least 1, found 0"):
        compare.Options("a", "b", bootstrap=0)


def test_other_contents_of_one_name_are_not_compared(tmp_path, capsys):
    a, b = write(tmp_path / "a", outcomes(0)), write(tmp_path / "b", outcomes(1, hit=0.7))

    def says(folder, **data):
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps(results | {"data": data}))

    says(a, captions="11", regions="22")
    run(capsys, a, b)  # the other one is older and does not say
    says(b, captions="11", regions="33")
    assert "regions: A and B were measured on different ones" in run(capsys, a, b)
    says(b, captions="12", regions="22")
    with pytest.raises(BadInput, match=r"the captions are not the same in both, .*contents 11 and 12"):
        run(capsys, a, b)
