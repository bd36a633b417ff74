"""Files of scores: each form against the same numbers, and what is refused."""

import gzip
import pickle
import re

import numpy as np
import pytest
import torch

from data.batches.teacher import write_teacher_scores
from data.errors import BadInput
from data.scores.files import MatrixIds, read_ids, read_scores

CAPTIONS, IMAGES = ["c0", "c1", "c2"], ["a.npz", "b.npz"]
MATRIX = np.array([[0.5, -1.0], [2.0, 0.25], [np.nan, 3.0]], np.float32)
KNOWN = MatrixIds(CAPTIONS, IMAGES)


def table_of(table):
    """All scores of a table, [T,I] in the order of CAPTIONS and IMAGES."""
    captions, images = (np.array([list(own).index(i) if i in own else -1 for i in names]) for own, names in ((table.captions, CAPTIONS), (table.images, IMAGES)))
    return table.look_up(np.repeat(captions[:, None], 2, 1), np.repeat(images[None], 3, 0))


def check(path, ids=None):
    np.testing.assert_array_equal(table_of(read_scores(path, ids)), MATRIX)


def pairs():
    rows = np.argwhere(~np.isnan(MATRIX))[[3, 0, 4, 2, 1]]  # in no order
    return rows[:, 0], rows[:, 1], MATRIX[rows[:, 0], rows[:, 1]]


def refusal(path, ids=None):
    with pytest.raises(BadInput) as error:
        read_scores(path, ids)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    return str(error.value)


def test_text(tmp_path):
    lines = [f"{CAPTIONS[c]}\t{IMAGES[i]}\t{score}" for c, i, score in zip(*pairs())]
    (tmp_path / "s.tsv").write_text("\n".join(lines))
    check(tmp_path / "s.tsv")
    (tmp_path / "s.txt.gz").write_bytes(gzip.compress("\n".join(["caption\timage\tscore", *lines, "", lines[0]]).encode()))
    check(tmp_path / "s.txt.gz")  # a pair that is said twice with one score is one
    for text, message in (
        (lines[0] + "\nc1 b.npz 3", "line 2 is 'c1 b.npz 3', expected caption id"),
        (lines[0].replace("\t", "\tx\t"), "line 1"),
        (lines[0] + "x", "line 1"),
        ("", "no scores in it"),
        (lines[0] + "\n" + lines[0] + "5", "caption c1 and image b.npz have two scores"),
        ("c0\ta.npz\tnan", "the score of caption c0 and image a.npz is NaN"),
        ("c0\ta.npz\t1e99", "1 scores are infinite"),
    ):
        (tmp_path / "s.tsv").write_text(text)
        assert message in refusal(tmp_path / "s.tsv")


def test_npz(tmp_path):
    path, (captions, images, scores) = tmp_path / "s.npz", pairs()
    ids = {"caption_ids": np.array(CAPTIONS), "image_ids": np.array(IMAGES)}
    np.savez(path, captions=np.array(CAPTIONS)[captions], images=np.array(IMAGES)[images], scores=scores)
    check(path)
    np.savez(path, captions=captions, images=images, scores=scores.astype(np.float64), **ids)
    check(path)
    np.savez(path, scores=MATRIX, **ids)
    check(path)
    np.savez(path, scores=MATRIX.T, **ids)
    assert "a matrix of 2 x 3 scores, there are 3 captions and 2 images, and a row is caption's; with --rerank-rows images it would fit" in refusal(path)
    check(path, MatrixIds(rows="images"))
    candidates = np.array([[1, 0], [1, 0], [-1, 1]])
    write_teacher_scores(path, CAPTIONS, IMAGES, candidates, np.take_along_axis(MATRIX, candidates.clip(0), 1), {"captions": "1f"})
    check(path)
    assert read_scores(path).data == {"captions": "1f"}

    for arrays, message in (
        ({"x": scores}, "holds ['x'], expected scores"),
        ({"scores": MATRIX}, "a matrix of scores without ids; say what its rows and columns are: --rerank-ids database"),
        ({"scores": MATRIX, "caption_ids": ids["caption_ids"]}, "needs caption_ids and image_ids"),
        ({"scores": MATRIX[:2], **ids}, "a matrix of 2 x 2 scores"),
        ({"scores": MATRIX, **ids, "image_ids": np.array(["a", "a"])}, "image a stands twice"),
        ({"scores": scores[1:], "captions": captions, "images": images, **ids}, "lists of one length"),
        ({"scores": scores, "captions": captions + 1, "images": images, **ids}, "rows of them, from 0 to 2"),
        ({"scores": np.array(["x"] * 5), "captions": captions, "images": images, **ids}, "expected numbers"),
        ({"scores": MATRIX * np.inf, **ids}, "scores are infinite"),
        ({"scores": MATRIX, **ids, "image_ids": np.array([["a"], ["b"]])}, "are lists of ids"),
        ({"scores": MATRIX, "candidates": candidates + 1, "txt_ids": CAPTIONS, "img_keys": IMAGES}, "do not fit 3 captions, 2 images"),
        ({"scores": MATRIX, "candidates": candidates[:2], "txt_ids": CAPTIONS, "img_keys": IMAGES}, "do not fit 3 captions, 2 images"),
        ({"scores": MATRIX[:2], "candidates": candidates[:2], "txt_ids": CAPTIONS[:2], "img_keys": IMAGES, "data": "{"}, "data"),
    ):
        np.savez(path, **arrays)
        assert message in refusal(path)
    np.savez(path, scores=np.array([None]), **ids)  # objects are pickled
    assert "no file of numpy's" in refusal(path)
    path.write_bytes(path.read_bytes()[:50])
    assert "no file of numpy's" in refusal(path)
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.npz")


@pytest.mark.parametrize("form", ["npy", "npz", "array", "half", "columns first", "tensor", "rows", "rows of arrays", "turned", "torch.save"])
def test_matrices_without_ids(tmp_path, form):
    matrix = {"turned": MATRIX.T, "half": MATRIX.astype(np.float16)}.get(form, MATRIX)
    path = tmp_path / {"npy": "s.npy", "npz": "s.npz"}.get(form, "results.bin")
    if form == "npy":
        np.save(path, matrix)
    elif form == "npz":
        np.savez(path, scores=matrix)
    elif form == "torch.save":
        torch.save(torch.from_numpy(matrix), path)
    else:
        values = {
            "columns first": np.asfortranarray(matrix), "tensor": torch.from_numpy(matrix), "rows": matrix.tolist(),
            "rows of arrays": list(matrix.astype(np.float64)),
        }  # fmt: skip
        path.write_bytes(pickle.dumps(values.get(form, matrix), 2))
    check(path, KNOWN)
    assert "a matrix of scores without ids; say what" in refusal(path)
    assert "there are 3 captions and 1 images" in refusal(path, MatrixIds(CAPTIONS, IMAGES[:1]))


def test_the_matrix_of_uniter_with_its_ids(tmp_path):
    for matrix in (torch.from_numpy(MATRIX), MATRIX, MATRIX.tolist()):
        (tmp_path / "results.bin").write_bytes(pickle.dumps((matrix, CAPTIONS, IMAGES)))
        check(tmp_path / "results.bin")
    (tmp_path / "results.bin").write_bytes(pickle.dumps((MATRIX, np.array(CAPTIONS), np.array(IMAGES[:1]))))
    assert "a matrix of 3 x 2 scores, there are 3 captions and 1 images" in refusal(tmp_path / "results.bin")


@pytest.mark.parametrize("form", ["list", "mapping", "array", "one row"])
def test_scores_in_one_row(tmp_path, form):
    path, row = tmp_path / "scores.pkl", MATRIX.ravel()
    values = {"list": row.tolist(), "mapping": dict(enumerate(row.tolist())), "array": row, "one row": row[None]}
    path.write_bytes(pickle.dumps(values[form]))
    assert "say what was counted first: --rerank-rows captions or" in refusal(path, KNOWN)
    check(path, MatrixIds(CAPTIONS, IMAGES, "captions"))
    path.write_bytes(pickle.dumps(MATRIX.T.ravel()))
    check(path, MatrixIds(CAPTIONS, IMAGES, "images"))


def test_as_many_captions_as_images(tmp_path):
    np.save(tmp_path / "s.npy", MATRIX[:2])
    assert "as many captions as images; say what a row is" in refusal(tmp_path / "s.npy", MatrixIds(CAPTIONS[:2], IMAGES))
    for rows, expected in (("captions", MATRIX[:2]), ("images", MATRIX[:2].T)):
        found = read_scores(tmp_path / "s.npy", MatrixIds(CAPTIONS[:2], IMAGES, rows))
        np.testing.assert_array_equal(found.matrix, expected)


ROW = [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({0: 1.0, 2: 2.0}, "whose keys are not 0, 1, 2"),
        ([[1.0, 2.0], [3.0]], "its rows are of several lengths"),
        ([ROW, ROW, ROW], "holds 3 rows of 2 scores"),  # one list three times: a small file of a huge matrix
        ([[1.0, "x"], [1.0, 2.0], [3.0, 4.0]], "rows of other things than numbers"),
        ([[[1.0]], [[2.0]]], "holds 2 rows of 1 scores"),
        ("text", "holds str, expected a matrix"),
        (None, "holds NoneType"),
        (3, "holds int"),
        ([], "holds 1 rows of 0 scores"),
        (np.array(["a"] * 6).reshape(3, 2), "scores are of type <U1"),
        (np.zeros((3, 2, 1)), "an array of more than two axes"),
        (np.zeros((5, 2)), "a matrix of 5 x 2 scores, there are 3 captions and 2 images"),
    ],
)
def test_what_is_no_matrix(tmp_path, value, message):
    (tmp_path / "p.bin").write_bytes(pickle.dumps(value))
    assert message in refusal(tmp_path / "p.bin", KNOWN)


def test_ids_of_a_matrix(tmp_path):
    (tmp_path / "c.txt").write_text("c0\n\n c1 \nc2\n")
    (tmp_path / "c.json").write_text('["c0", "c1", 2]')
    assert read_ids(tmp_path / "c.txt") == CAPTIONS and read_ids(tmp_path / "c.json") == ["c0", "c1", "2"]
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path}/no.txt")):
        read_ids(tmp_path / "no.txt")
