"""Re-ranker scores: written, read, aligned with a data set, and put beside a batch."""

import numpy as np
import pytest
import torch

from data.batches.teacher import read_teacher_scores, write_teacher_scores
from data.errors import BadInput
from data.scores.files import read_scores
from model.objectives.distillation import teacher_matrix
from tests.flipped_bits import assert_noticed_or_harmless

CANDIDATES = np.array([[0, 2, -1], [1, 0, 2], [2, 1, 0]])
SCORES = np.array([[3.0, 1.0, 0.0], [2.0, -1.0, 0.5], [9.0, 8.0, 7.0]])


@pytest.fixture
def path(tmp_path):
    write_teacher_scores(tmp_path / "scores.npz", ["t0", "t1", "t2"], ["a", "b", "c"], CANDIDATES, SCORES)
    return tmp_path / "scores.npz"


def test_scores_follow_the_data_set(path):
    images = ["c", "x", "a"]  # another order, one image more, one less
    candidates, scores = read_teacher_scores(path, ["t2", "t0"], images)
    found = [
        {images[c]: s for c, s in zip(*row, strict=True) if c >= 0} for row in zip(candidates, scores, strict=True)
    ]
    assert found == [{"c": 9.0, "a": 7.0}, {"a": 3.0, "c": 1.0}]


def test_teacher_matrix_against_a_loop(path):
    candidates, scores = read_teacher_scores(path, ["t0", "t1", "t2"], ["a", "b", "c"])
    image_ids = torch.tensor([2, 0, 0, 7])  # an image may stand twice in a batch, or be unknown to the re-ranker
    matrix = teacher_matrix(torch.from_numpy(candidates), torch.from_numpy(scores), image_ids)
    for row in range(3):
        for column, image in enumerate(image_ids.tolist()):
            known = [float(s) for c, s in zip(CANDIDATES[row], SCORES[row], strict=True) if c == image]
            assert matrix[row, column].tolist() == (known[0] if known else pytest.approx(float("nan"), nan_ok=True))


def test_bad_files_are_refused(path, tmp_path):
    with pytest.raises(BadInput, match=r"scores.npz: has no scores for caption t9"):
        read_teacher_scores(path, ["t0", "t9"], ["a"])
    with pytest.raises(BadInput, match=r"absent.npz: cannot be read"):
        read_teacher_scores(tmp_path / "absent.npz", ["t0"], ["a"])
    (tmp_path / "text.npz").write_text("scores")
    with pytest.raises(BadInput, match=r"text.npz: no file of numpy"):
        read_teacher_scores(tmp_path / "text.npz", ["t0"], ["a"])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"scores.npz: no file of numpy"):
        read_teacher_scores(path, ["t0"], ["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_keys": np.array(["a"])}, "do not fit 3 captions, 1 images"),
        ({"candidates": CANDIDATES - 1}, r"candidates \(3, 3\) from -2 to 1"),
        ({"candidates": CANDIDATES + 0.0}, "do not fit"),
        ({"scores": np.where(SCORES == -1.0, np.nan, SCORES)}, "the score of caption t1 and image a is nan"),
        ({"scores": np.where(SCORES == 8.0, np.inf, SCORES)}, "the score of caption t2 and image b is inf"),
    ],
)
def test_candidates_that_are_no_images_and_scores_that_are_no_numbers_are_refused(path, change, message):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file if name != "digest"}
    np.savez(path, **arrays | change)  # as another program may write it
    for read in (lambda: read_teacher_scores(path, ["t0"], ["a"]), lambda: read_scores(path)):
        with pytest.raises(BadInput, match=message):
            read()
    changed = {"txt_ids": arrays["txt_ids"], "img_keys": arrays["img_keys"], "candidates": CANDIDATES, "scores": SCORES} | change
    if changed["candidates"].dtype.kind == "i":
        with pytest.raises(BadInput, match=message):
            write_teacher_scores(path, **changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"txt_ids": np.array("t0")}, "txt_ids is no list of texts"),
        ({"img_keys": np.arange(3)}, "img_keys is no list of texts"),
        ({"scores": SCORES.astype("c8")}, "scores are complex64"),
        ({"data": np.array("[1]")}, "data: holds a list, expected an object"),
        ({"data": np.array('{"captions": 3}')}, "captions: found 3, expected a text"),
        ({"data": np.array("x")}, "data is not JSON"),
    ],
)
def test_arrays_of_other_kinds_are_refused(path, change, message):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file if name != "digest"}
    np.savez(path, **arrays | change)
    for read in (lambda: read_teacher_scores(path, ["t0"], ["a"]), lambda: read_scores(path)):
        with pytest.raises(BadInput, match=message):
            read()


def test_padding_needs_no_score(path):
    write_teacher_scores(path, ["t0", "t1", "t2"], ["a", "b", "c"], CANDIDATES, np.where(CANDIDATES < 0, np.nan, SCORES))
    assert read_teacher_scores(path, ["t0"], ["a"])[0].tolist() == [[0, -1, -1]]


def test_a_flipped_bit_of_scores_is_noticed_or_harmless(path):
    noticed = assert_noticed_or_harmless(path, lambda: read_teacher_scores(path, ["t0", "t2"], ["c", "a"], {"captions": "1"}), 150)
    assert noticed > 80


def test_scores_of_other_captions_are_refused(tmp_path):
    path, data = tmp_path / "scores.npz", {"captions": "11", "regions": "22"}
    write_teacher_scores(path, ["t0", "t1", "t2"], ["a", "b", "c"], CANDIDATES, SCORES, data)
    read_teacher_scores(path, ["t0"], ["a"], data)
    read_teacher_scores(path, ["t0"], ["a"])
    with pytest.raises(BadInput, match=r"scores.npz: the captions that were scored are not those of the training data"):
        read_teacher_scores(path, ["t0"], ["a"], data | {"captions": "12"})
    with np.load(path) as file:  # as it was before the file said what it was made from
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in file if name not in ("data", "digest")})
    read_teacher_scores(tmp_path / "old.npz", ["t0"], ["a"], data)
