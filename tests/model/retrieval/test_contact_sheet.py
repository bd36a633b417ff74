"""The contact sheet: its drawing, and scripts/contact_sheet.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.notices import say_once
from data.regions.pictures import PictureFiles
from data.search.topk import ranks_of_rows
from model.retrieval import contact_sheet, sheet_text
from model.retrieval.contact_sheet import SheetPicture, SheetRow
from model.retrieval.results import Found, Hit
from scripts import contact_sheet as contact_sheet_command
from tests.gallery import KEYS, command


def test_contact_sheet_frames_the_hits(tmp_path, world):
    photos = PictureFiles(world / "photos")
    assert all(photos.find(key).stem == Path(key).stem for key in KEYS) and photos.remarks() == []
    first, second = photos.find("scene_00.npz"), photos.find("scene_01.npz")
    rows = [
        SheetRow("ein Hund läuft über die Straße, " * 8, [SheetPicture(first, 1.5, False), SheetPicture(second, 1.25, True)]),
        SheetRow("kůň", [SheetPicture(None, 0.5, False), SheetPicture(first, 0.25, False)]),
    ]
    sheet = tmp_path / "deep" / "sheet.png"
    contact_sheet.write_contact_sheet(rows, sheet, thumb=100)
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 2 * 16 + 2 * 100 + 10
    framed = (pixels == contact_sheet.HIT).all(-1)
    rows_framed, columns_framed = np.flatnonzero(framed.sum(1) >= 100), np.flatnonzero(framed.sum(0) >= 100)
    assert len(rows_framed) == 2 * contact_sheet.BORDER and np.ptp(rows_framed) == 99  # top and bottom of one frame
    assert columns_framed.min() == 16 + 110 and columns_framed.max() == 16 + 209  # of the second picture
    colour = Image.open(second).getpixel((0, 0))
    assert (pixels == colour).all(-1).sum() > 90 * 60  # the whole picture, scaled to the frame
    assert sorted(p.name for p in sheet.parent.iterdir()) == ["sheet.png"]


def test_pictures_look_as_the_extractor_saw_them(tmp_path):
    """16 bits scaled to 8, transparency on white; and one that is so long that its other side vanishes."""
    Image.fromarray(np.full((40, 40), 64 << 8, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (40, 40), (200, 0, 0, 128)).save(tmp_path / "clear.png")
    Image.new("RGB", (20_000, 1), (10, 20, 30)).save(tmp_path / "long.png")
    for name, colour in (("deep", (64, 64, 64)), ("clear", (227, 127, 127)), ("long", (10, 20, 30))):
        row = SheetRow("q", [SheetPicture(tmp_path / f"{name}.png", 1.0, False)])
        sheet = np.asarray(contact_sheet.draw_contact_sheet([row], thumb=100)).astype(int)
        assert (np.abs(sheet[:, 16 + 50] - colour) <= 1).all(-1).any(), name  # a column through its middle


def size_of(*rows):
    return contact_sheet.draw_contact_sheet(rows, thumb=50).size


def test_more_than_six_pictures_begin_a_new_row(world):
    picture = SheetPicture(PictureFiles(world / "photos").find(KEYS[0]), 1.0, False)
    one, six, seven = (size_of(SheetRow("q", [picture] * n)) for n in (1, 6, 7))
    assert six == (2 * 16 + 6 * 50 + 5 * 10, one[1]) and seven[0] == six[0]
    assert seven[1] == six[1] + 50 + contact_sheet._Layout(SheetRow("q", [picture]), 50).text_height + 10
    answer = size_of(SheetRow("q", [picture] * 6, answer=picture))
    assert answer == seven  # it takes a place of its own


def test_a_reranked_order_stands_beside_the_first(world):
    picture = SheetPicture(PictureFiles(world / "photos").find(KEYS[0]), 1.0, False)
    three, four = (size_of(SheetRow("q", [picture] * n, [picture] * n)) for n in (3, 4))
    assert three[0] == four[0] == 2 * 16 + 2 * (3 * 50 + 2 * 10) + contact_sheet.BETWEEN and four[1] > three[1]
    labels = [SheetPicture(None, 0.5, False, rank=2, rank_before=before).label for before in (None, 2, 7)]
    assert labels == ["2.  0.500", "2.  0.500", "2. (was 7)  0.500"]


def test_rows_of_what_was_found(world):
    photos = PictureFiles(world / "photos")
    hits, first = ([Hit(KEYS[n], 1 / (1 + n)) for n in order] for order in ((3, 1, 2, 0), (0, 1, 2, 3)))
    found = Found([hits, hits], [first, first], [], {})
    near, far = contact_sheet.found_rows(["a", "b"], found, photos, 2, CaptionDB(world / "captions"), answers=[KEYS[1], KEYS[0]])
    assert [(p.id, p.rank, p.rank_before, p.is_right) for p in near.pictures] == [(KEYS[3], 1, 4, False), (KEYS[1], 2, 2, True)]
    assert near.answer is None and (far.answer.id, far.answer.rank, far.answer.rank_before) == (KEYS[0], 4, 1)
    assert [p.id for p in far.first] == KEYS[:2] and far.first[0].is_right
    captions = CaptionDB(world / "captions")
    assert near.pictures[1].caption == captions[captions.img2txts[KEYS[1]][0]]["raw"] and near.pictures[1].path.stem == "scene_01"


def test_contact_sheet_text_fits_and_accents_are_drawn():
    font = sheet_text.SheetFont(18)
    for text in ("ein Hund läuft über die Straße " * 9, "x" * 300, "kurz", "街道上的狗" * 40):
        lines = sheet_text.wrap_text(text, font, 200)
        assert all(font.getlength(line) <= 200 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        two = sheet_text.wrap_text(text, font, 200, 2)
        assert two[0] == lines[0] and len(two) <= 2 and two[-1].endswith("…") == (len(lines) > 2)
        assert all(font.getlength(line) <= 200 for line in two)
    assert set("äöüßéèçœůěščřžýáíťďňĄЖΩ") <= sheet_text.letters_of(sheet_text.main_font())


def test_marks_stay_with_their_letters():
    assert sheet_text.clusters("e\u0301a n\u0303\u0323") == ["e\u0301", "a", " ", "n\u0303\u0323"]
    assert sheet_text.wrap_text("e\u0301" * 9, sheet_text.SheetFont(18), 1) == ["e\u0301"] * 9
    assert sheet_text.shorten("e\u0301" * 50, sheet_text.SheetFont(18), 60).removesuffix("…").endswith("\u0301")


def test_letters_come_from_a_font_that_has_them(tmp_path, monkeypatch):
    has = {"main.ttf": "ab. ", "first.ttf": "b犬。", "second.ttf": "犬猫."}
    monkeypatch.setattr(sheet_text, "main_font", lambda: "main.ttf")
    monkeypatch.setattr(sheet_text, "system_fonts", lambda: ("first.ttf", "second.ttf"))
    monkeypatch.setattr(sheet_text, "letters_of", lambda file: frozenset(has[file]))
    monkeypatch.setattr(sheet_text, "font_for", sheet_text.font_for.__wrapped__)
    assert sheet_text.text_runs("a犬。 猫.b.?") == [
        ("main.ttf", "a"), ("first.ttf", "犬。 "), ("second.ttf", "猫."), ("main.ttf", "b.?")
    ]  # fmt: skip
    assert sheet_text.remarks_on(["a犬猫"]) == []
    with monkeypatch.context() as patch:
        patch.setattr(sheet_text, "system_fonts", lambda: pytest.fail("the system's fonts are listed"))
        assert sheet_text.font_for("a") == "main.ttf"
    (remark,) = sheet_text.remarks_on(["狗", "狗鳥"])
    assert "no font of this system has 狗 鳥 (2 letters)" in remark and "fonts-noto-cjk" in remark
    monkeypatch.setattr(sheet_text.features, "check", lambda name: False)
    has["main.ttf"] += "\u05d0"
    (remark,) = sheet_text.remarks_on(["ab \u05d0"])
    assert "right-to-left" in remark


def test_cjk_is_drawn_where_the_system_has_it():
    if sheet_text.font_for("犬") is None:
        pytest.skip("no font of this system has it")
    pictures = []
    for text in ("犬", "猫", "\ue000"):
        picture = Image.new("RGB", (40, 40), "white")
        sheet_text.SheetFont(24).draw(ImageDraw.Draw(picture), (2, 2), text, (0, 0, 0))
        pictures.append(np.asarray(picture).tobytes())
    assert len(set(pictures)) == 3  # not the same box for all


def test_a_font_file_that_is_none_has_no_letters(tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    assert sheet_text.letters_of(str(tmp_path / "bad.ttf")) == frozenset()


def test_contact_sheet_refuses(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    for rows, message in (
        ([], "no queries"),
        ([SheetRow("q", [SheetPicture(None, 1.0, False)])], "none of the images"),
        ([SheetRow("q", [SheetPicture(tmp_path / "bad.jpg", 1.0, False)])], "bad.jpg: cannot read"),
    ):
        with pytest.raises(BadInput, match=message):
            contact_sheet.write_contact_sheet(rows, tmp_path / "sheet.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no picture"):
        PictureFiles(tmp_path / "empty")
    assert not (tmp_path / "sheet.png").exists()


def test_contact_sheet_command(tmp_path, world, indexes, capsys):
    words = ["--index", indexes[0], "--checkpoint", world / "model", "--photos", world / "photos"]
    command(contact_sheet_command, *words, "--captions", world / "captions", "--out", tmp_path / "a.png")
    assert "6 queries" in capsys.readouterr().out
    (tmp_path / "queries.txt").write_text("a dog\n\nzwei hund\n", encoding="utf-8")
    command(contact_sheet_command, *words, "--queries", tmp_path / "queries.txt", "--out", tmp_path / "b.png")
    assert "2 queries" in capsys.readouterr().out
    words_b = [*words, "--queries", tmp_path / "queries.txt", "--captions", world / "captions", "--out", tmp_path / "c.png"]
    command(contact_sheet_command, *words_b)
    heights = [Image.open(tmp_path / name).height for name in ("b.png", "c.png")]
    assert "2 queries" in capsys.readouterr().out and heights[0] < heights[1]  # captions stand under the pictures
    for wrong, message in (({}, "give --queries FILE, or --captions"), ({"captions": "y", "reranker": "r"}, "go together"),
                           ({"captions": "y", "mix": 0.5}, "needs --reranker")):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            contact_sheet_command.Options("i", "c", "p", "o", **wrong)
    with pytest.raises(BadInput, match="n 0 and k 5 must be at least 1"):
        contact_sheet_command.Options("i", "c", "p", "o", captions="y", n=0)
    say_once.cache_clear()
    command(contact_sheet_command, *words, "--captions", world / "captions", "--out", tmp_path / "a.png", "--n", 100)
    shown = capsys.readouterr()
    number = int(shown.err.split("n 100 is lowered to ")[1].split(":")[0])
    assert f"{number} queries" in shown.out and f"there are no more images in {indexes[0]}" in shown.err


def test_pictures_without_a_caption_are_drawn_without_and_asked_for_by_none(tmp_path, world, indexes):
    shutil.copytree(world / "captions", tmp_path / "captions", ignore=shutil.ignore_patterns("columns*"))
    lengths = json.loads((world / "captions/id2len.json").read_text())
    captions = CaptionDB(world / "captions")
    few = {name: length for name, length in lengths.items() if captions.txt2img[name] == KEYS[0]}
    (tmp_path / "captions/id2len.json").write_text(json.dumps(few))  # the others stay listed under their pictures
    few = CaptionDB(tmp_path / "captions")
    assert list(few.img2txts) == list(captions.img2txts) and list(contact_sheet.first_captions(few, KEYS)) == [KEYS[0]]
    words = ["--index", indexes[0], "--checkpoint", world / "model", "--photos", world / "photos", "--captions", tmp_path / "captions"]
    for seed in range(3):
        command(contact_sheet_command, *words, "--n", 1, "--seed", seed, "--out", tmp_path / "sheet.png")


def test_a_right_picture_that_was_missed_is_shown_with_its_rank(tmp_path, world, indexes, matrices, captions, monkeypatch):
    drawn = []
    monkeypatch.setattr(contact_sheet_command, "write_contact_sheet", lambda rows, out: drawn.extend(rows))
    words = ["--index", indexes[0], "--checkpoint", world / "model", "--photos", world / "photos", "--captions", world / "captions"]
    command(contact_sheet_command, *words, "--out", tmp_path / "a.png", "--n", 12, "--k", 2)
    images, texts = matrices
    for row in drawn:
        number = next(n for n, name in enumerate(captions.ids) if captions[name]["raw"] == row.query)
        order = [KEYS[n] for n in np.argsort(-images @ texts[number], kind="stable")]
        right = captions.txt2img[captions.ids[number]]
        if row.answer is None:
            assert right in order[:2] and sum(p.is_right for p in row.pictures) == 1
        else:
            assert (row.answer.id, row.answer.rank) == (right, 1 + order.index(right)) and not any(p.is_right for p in row.pictures)
            assert row.answer.score == pytest.approx(float(images[KEYS.index(right)] @ texts[number]), abs=1e-4)
    assert len(drawn) == 12 and sum(row.answer is not None for row in drawn) > 3


def test_ranks_of_rows_are_those_of_a_full_sort():
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (300, 5)).astype(np.float32)  # with many equal scores
    queries, rows = rng.integers(-2, 3, (20, 5)).astype(np.float32), rng.integers(0, 300, 20)
    blocks = [(start, vectors[start : start + 70]) for start in range(0, 300, 70)]
    before, scores = ranks_of_rows(queries, blocks, vectors.__getitem__, rows)
    for query, row, rank, score in zip(queries, rows, before, scores):
        assert np.argsort(-(vectors @ query), kind="stable").tolist().index(row) == rank and score == vectors[row] @ query
