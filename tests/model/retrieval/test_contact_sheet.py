"""The contact sheet: its drawing, and scripts/contact_sheet.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import BadInput
from data.notices import say_once
from data.regions.pictures import PictureFiles
from model.retrieval import contact_sheet
from model.retrieval.contact_sheet import SheetPicture
from scripts import contact_sheet as contact_sheet_command
from tests.gallery import KEYS, command


def test_contact_sheet_frames_the_hits(tmp_path, world):
    photos = PictureFiles(world / "photos")
    assert all(photos.find(key).stem == Path(key).stem for key in KEYS) and photos.remarks() == []
    first, second = photos.find("scene_00.npz"), photos.find("scene_01.npz")
    rows = [
        ("ein Hund läuft über die Straße, " * 8, [SheetPicture(first, 1.5, False), SheetPicture(second, 1.25, True)]),
        ("kůň", [SheetPicture(None, 0.5, False), SheetPicture(first, 0.25, False)]),
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


def test_contact_sheet_text_fits_and_accents_are_drawn():
    font = contact_sheet.sheet_font(18)
    for text in ("ein Hund läuft über die Straße " * 9, "x" * 300, "kurz"):
        lines = contact_sheet.wrap_text(text, font, 200)
        assert all(font.getlength(line) <= 200 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    absent = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != absent for letter in "äöüßéèçœůěščřžýáíťďňĄЖΩ")


def test_contact_sheet_refuses(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    for rows, message in (
        ([], "no queries"),
        ([("q", [SheetPicture(None, 1.0, False)])], "none of the images"),
        ([("q", [SheetPicture(tmp_path / "bad.jpg", 1.0, False)])], "bad.jpg: cannot read"),
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
    for queries, captions in ((None, None), ("x", "y")):
        with pytest.raises(BadInput, match="either"):
            contact_sheet_command.Options("i", "c", "p", "o", queries=queries, captions=captions)
    with pytest.raises(BadInput, match="n 0 and k 5 must be at least 1"):
        contact_sheet_command.Options("i", "c", "p", "o", captions="y", n=0)
    say_once.cache_clear()
    command(contact_sheet_command, *words, "--captions", world / "captions", "--out", tmp_path / "a.png", "--n", 100)
    shown = capsys.readouterr()
    number = int(shown.err.split("n 100 is lowered to ")[1].split(":")[0])
    assert f"{number} queries" in shown.out and f"there are no more images in {indexes[0]}" in shown.err
