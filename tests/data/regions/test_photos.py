"""Finding photographs, and reading the bad ones: truncated, empty, 16-bit, CMYK, animated, huge, rotated."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from data.errors import BadInput
from data.regions import photos
from data.regions.db import RegionDB
from data.regions.photos import find_photos, read_photo, tar_members
from data.storage import picture_files
from scripts.extract_regions import Options, main
from tests.flipped_bits import assert_noticed_or_harmless


def read(path) -> Image.Image:
    (photo,) = [photo for photo in find_photos(str(Path(path).parent)) if photo.path == Path(path)]
    return read_photo(photo)


def ramp(width=32, height=24) -> np.ndarray:
    """Different in every pixel and channel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height - 2)], 2).astype(
        np.uint8
    )


def test_16_bit_greys_are_scaled_and_not_cut_off(tmp_path):
    values = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    for name in ("grey16.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        picture = read(tmp_path / name)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2))


def test_32_bit_integers_that_hold_8_bits(tmp_path):
    values = np.arange(24 * 10).reshape(24, 10).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "i.tif")
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "i.tif"))[..., 1], values)


@pytest.mark.parametrize("top", [70000, 2**31 - 1, -5])
def test_32_bit_integers_of_unknown_range_are_refused(tmp_path, top):
    Image.fromarray(np.linspace(0, top, 240).reshape(24, 10).astype(np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(OSError, match="32-bit integer pixels"):
        read(tmp_path / "i.tif")


def test_cmyk_and_grey_and_palette(tmp_path):
    rgb = Image.fromarray(ramp())
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif")
    rgb.convert("L").save(tmp_path / "grey.jpg", quality=100)
    rgb.quantize(256).save(tmp_path / "palette.png")
    for name in ("cmyk.tif", "palette.png"):
        picture = read(tmp_path / name)
        assert picture.mode == "RGB" and np.abs(np.asarray(picture, int) - ramp()).mean() < 8, name
    grey = np.asarray(read(tmp_path / "grey.jpg"), int)
    assert np.abs(grey - np.asarray(rgb.convert("L"), int)[..., None]).max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_on_white(tmp_path, mode):
    picture = Image.new("RGBA", (8, 8), (10, 10, 10, 255))
    picture.paste((200, 0, 0, 0), (0, 0, 4, 8))  # the hidden colour must not be seen
    if mode == "P":
        picture = picture.quantize(4)
    picture = picture.convert(mode)
    picture.save(tmp_path / "x.png")
    values = np.asarray(read(tmp_path / "x.png"), int)
    assert (values[:, :4] > 250).all() and (abs(values[:, 4:] - 10) < 5).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(read(tmp_path / f"x.{suffix}"), int) - (250, 0, 0)).max() < 8


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("huge", [False, True])
def test_every_exif_orientation(tmp_path, suffix, huge, monkeypatch):
    if huge:
        monkeypatch.setattr(photos, "MAX_SIDE", 16)
    upright = Image.fromarray(ramp())
    undo = Image.Transpose  # how the camera stored it, by orientation
    stored = {1: None, 3: undo.ROTATE_180, 6: undo.ROTATE_90, 8: undo.ROTATE_270, 5: undo.TRANSPOSE}
    stored |= {2: undo.FLIP_LEFT_RIGHT, 4: undo.FLIP_TOP_BOTTOM, 7: undo.TRANSVERSE}
    for orientation, turn in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = upright if turn is None else upright.transpose(turn)
        picture.save(tmp_path / f"x.{suffix}", exif=exif, **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}))
        found = read(tmp_path / f"x.{suffix}")
        expected = upright.resize((16, 12), Image.Resampling.BOX) if huge else upright
        assert found.size == expected.size, orientation
        assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 6, orientation


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_thirty_thousand_pixels_wide(tmp_path, suffix):
    columns = np.repeat((np.arange(30000) * 255 // 29999).astype(np.uint8)[None, :, None], 60, 0).repeat(3, 2)
    Image.fromarray(columns).save(tmp_path / f"wide.{suffix}")
    picture = read(tmp_path / f"wide.{suffix}")
    assert picture.width <= photos.MAX_SIDE and picture.width > 3000 and picture.height == round(60 * picture.width / 30000)
    values = np.asarray(picture, int)[..., 0]
    np.testing.assert_allclose(values[4], np.linspace(0, 255, picture.width), atol=4)


def test_a_bomb_is_a_reason_and_not_a_crash(tmp_path, monkeypatch):
    """More pixels than Pillow reads without a warning are read; more than MAX_PIXELS are not decoded at all."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(ramp()).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png").size == (32, 24)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 700)
    with pytest.raises(OSError, match=r"32 x 24 pixels are more than can be decoded"):
        read(tmp_path / "x.png")


def test_a_folder_of_bad_photos(tmp_path):
    """None is fatal: each is read rightly or stands in the report with its reason."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (60, 80, 3), dtype=np.uint8))
    for suffix in ("jpg", "png", "webp", "gif", "tif", "bmp"):
        noise.save(folder / f"good_{suffix}.{suffix}")
        whole = (folder / f"good_{suffix}.{suffix}").read_bytes()
        (folder / f"half_{suffix}.{suffix}").write_bytes(whole[: len(whole) // 2])
        (folder / f"stub_{suffix}.{suffix}").write_bytes(whole[:20])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "html.jpg").write_text("<html>404 not found</html>")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tif")
    (folder / "folder.jpg").mkdir()
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    noise.resize((1, 1)).save(folder / "one_pixel.png")
    noise.resize((3000, 2)).save(folder / "thin.png")
    main(Options(str(folder), str(tmp_path / "db"), feature_dim=64, num_labels=0, workers=0))
    report = json.loads((tmp_path / "db" / "report.json").read_text())
    bad = {Path(name).stem: reason for name, reason in report["bad_photos"].items()}
    good = {Path(key).stem for key in RegionDB(tmp_path / "db").keys}
    formats = ("jpg", "png", "webp", "gif", "tif", "bmp")
    assert {f"good_{name}" for name in formats} | {"one_pixel", "thin"} <= good
    assert {f"{kind}_{name}" for kind in ("half", "stub") for name in formats} <= bad.keys()
    assert bad.keys() - {f"{kind}_{name}" for kind in ("half", "stub") for name in formats} == {"empty", "html", "float", "nowhere"}
    assert bad["empty"] == "ValueError: the file is empty" and "floating-point" in bad["float"]
    assert all(bad.values()) and report["skipped"] == len(bad)


# ---- finding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("b.jpg", "more/a.PNG", "c.webp"):
        Image.fromarray(ramp()).save(folder / name)
    (folder / "notes.txt").write_text("no photograph")
    return folder


def pack(folder: Path, path: Path, mode="w") -> Path:
    with tarfile.open(path, mode) as archive:
        for file in sorted(folder.rglob("*")):
            archive.add(file, f"./{file.relative_to(folder)}", recursive=False)
    return path


def test_a_folder_and_a_tar_list_the_same(folder, tmp_path):
    tar = pack(folder, tmp_path / "x.tar")
    for source in (folder, tar):
        found = find_photos(str(source))
        assert [photo.key for photo in found] == ["b.npz", "c.npz", "a.npz"]
    assert [photo.name for photo in found] == [f"{tar}:b.jpg", f"{tar}:c.webp", f"{tar}:more/a.PNG"]
    for packed, plain in zip(found, find_photos(str(folder))):
        np.testing.assert_array_equal(np.asarray(read_photo(packed)), np.asarray(read_photo(plain)))


def test_keys_by_pattern(folder):
    assert [p.key for p in find_photos(str(folder), None, "coco_{stem:0>4}.npz")] == [
        "coco_000b.npz", "coco_000c.npz", "coco_000a.npz",
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"image_key '\{name\}' cannot be filled in"):
        find_photos(str(folder), None, "{name}")


def test_a_list_names_members_of_a_tar(folder, tmp_path):
    tar = pack(folder, tmp_path / "x.tar")
    (tmp_path / "list.txt").write_text("more/a.PNG\nabsent.jpg\n")
    there, absent = find_photos(str(tar), str(tmp_path / "list.txt"))
    assert read_photo(there).size == (32, 24)
    with pytest.raises(FileNotFoundError, match="No such file in the tar"):
        read_photo(absent)


def test_a_tar_that_lost_its_end(folder, tmp_path):
    tar = pack(folder, tmp_path / "x.tar")
    photo = find_photos(str(tar))[2]
    with open(tar, "r+b") as file:
        file.truncate(photo.offset + 5)
    with pytest.raises(ValueError, match="the tar ends after 5 of its"):
        read_photo(photo)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_header_is_no_end_of_a_tar(tmp_path, kind):
    """Each bit of every header alone: the photos are all found, or the tar is refused."""
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
        for n in range(12):
            member = tarfile.TarInfo(f"{n:02}.jpg")
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes([n + 1]) * 700))
    whole = tar_members(tmp_path / "x.tar")
    headers = [place.offset - tarfile.BLOCKSIZE for place in whole.values()]
    assert len(whole) == 12
    for n, start in enumerate(headers):
        read = lambda: tar_members(tmp_path / "x.tar")  # noqa: E731
        assert assert_noticed_or_harmless(tmp_path / "x.tar", read, 30, seed=n, start=start, stop=start + 154) == 30


def test_a_tar_of_which_a_block_is_lost_is_refused(folder, tmp_path):
    tar = pack(folder, tmp_path / "x.tar")
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        start = archive.getmember("./more/a.PNG").offset
    for damaged in (
        whole[:start] + bytes(tarfile.BLOCKSIZE) + whole[start + tarfile.BLOCKSIZE :],  # zeros, as at an end
        whole[:start],  # truncated between two files
        whole[: start + 100],
    ):
        tar.write_bytes(damaged)
        with pytest.raises(BadInput, match=f"^--photos {tar}: damaged or truncated: what stands at byte {start:,}, behind"):
            find_photos(str(tar))


def test_two_photos_of_one_key_are_refused_by_name(folder, tmp_path):
    """In a folder, in a tar, in a list; {parent} and {parents} tell them apart."""
    Image.fromarray(ramp()[::-1]).save(folder / "more" / "b.png")
    tar = pack(folder, tmp_path / "x.tar")
    (tmp_path / "list.txt").write_text("more/b.png\nb.jpg\n")
    for source, listing in ((folder, None), (tar, None), (tar, str(tmp_path / "list.txt"))):
        both = r"(b\.jpg and more/b\.png|more/b\.png and b\.jpg) both get the key b\.npz; .*'\{parent\}_\{stem\}\.npz'"
        with pytest.raises(BadInput, match=both):
            find_photos(str(source), listing)
        keys = [photo.key for photo in find_photos(str(source), listing, "{parent}_{stem}.npz")]
        assert {"more_b.npz", "_b.npz"} <= set(keys) and len(keys) == len(set(keys))
        assert "more/b" in [photo.key for photo in find_photos(str(source), listing, "{parents}/{stem}")]
    Image.fromarray(ramp()).save(folder / "b.png")
    with pytest.raises(BadInput, match=r"b\.jpg and b\.png both get the key b\.npz; rename one of them"):
        find_photos(str(folder))


def test_linked_folders_are_followed_and_loops_are_noticed(folder, tmp_path, capsys):
    far = tmp_path / "far"
    (far / "deep").mkdir(parents=True)
    Image.fromarray(ramp()).save(far / "deep" / "far.jpg")
    (folder / "a_link").symlink_to(far)
    (far / "deep" / "back").symlink_to(far)
    (folder / "more" / "up").symlink_to(folder)
    (folder / "b_again").symlink_to(folder / "more")
    (folder / "c_outside").symlink_to(tmp_path)
    (folder / "more" / "b.jpg").symlink_to(folder / "b.jpg")  # one file under two names
    found = find_photos(str(folder))
    assert [photo.inside for photo in found] == ["a_link/deep/far.jpg", "b.jpg", "c.webp", "more/a.PNG"]
    told = capsys.readouterr().err
    assert all(f"{folder / name}: is a link to" in told for name in ("a_link/deep/back", "more/up", "b_again", "c_outside"))
    assert all(read_photo(photo).size == (32, 24) for photo in found)


def test_links_in_a_tar(folder, tmp_path):
    (folder / "hard.jpg").hardlink_to(folder / "b.jpg")
    (folder / "more" / "soft.jpg").symlink_to("../c.webp")
    (folder / "more" / "twice.jpg").symlink_to("soft.jpg")
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "more" / "c.webp").symlink_to("../c.webp")  # one file under two names
    found = {photo.inside: photo for photo in find_photos(str(pack(folder, tmp_path / "x.tar")))}
    for name, target in (("hard.jpg", "b.jpg"), ("more/soft.jpg", "c.webp"), ("more/twice.jpg", "c.webp")):
        np.testing.assert_array_equal(np.asarray(read_photo(found[name])), np.asarray(read_photo(found[target])))
    for name in ("lost.jpg", "loop.jpg"):
        with pytest.raises(FileNotFoundError, match="which is not a file of the tar"):
            read_photo(found[name])
    assert "more/c.webp" not in found and "c.webp" in found


def test_names_of_both_unicode_forms(tmp_path):
    """macOS writes é as e and an accent: the key is the same, and a list of either form finds the file."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    for form, name in (("composed", composed), ("apart", apart)):
        folder = tmp_path / form
        (folder / name).mkdir(parents=True)
        Image.fromarray(ramp()).save(folder / name / f"{name}.jpg")
        sources = [(folder, None)]
        for listed in (composed, apart):
            (tmp_path / f"{form} {listed}.txt").write_text(f"{listed}/{listed}.jpg\n")
            sources += [(folder, f"{tmp_path / form} {listed}.txt"), (pack(folder, tmp_path / "x.tar"), f"{tmp_path / form} {listed}.txt")]
        for source, listing in sources:
            (photo,) = find_photos(str(source), listing, "{parent}_{stem}")
            assert photo.key == f"{composed}_{composed}" and read_photo(photo).size == (32, 24)


def test_other_endings_of_pictures(tmp_path):
    for suffix, form in (("jfif", "JPEG"), ("jpe", "JPEG"), ("JFIF", "JPEG"), *([("avif", "AVIF")] * features.check("avif"))):
        Image.fromarray(ramp()).save(tmp_path / f"{form}_{suffix}.{suffix}", form)
        assert read(tmp_path / f"{form}_{suffix}.{suffix}").size == (32, 24)
    (tmp_path / "telephone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60))
    with pytest.raises(Exception, match=r"HEIC|heif|HEIF"):
        read(tmp_path / "telephone.HEIC")


def test_a_list_with_a_byte_order_mark(folder, tmp_path):
    (tmp_path / "list.txt").write_text("b.jpg\n", encoding="utf-8-sig")
    (photo,) = find_photos(str(folder), str(tmp_path / "list.txt"))
    assert photo.key == "b.npz" and read_photo(photo).size == (32, 24)


def test_what_cannot_be_listed(folder, tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        find_photos(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="found no photographs"):
        find_photos(str(tmp_path / "empty"))
    with pytest.raises(BadInput, match=r"absent\.txt: cannot be read"):
        find_photos(str(folder), str(tmp_path / "absent.txt"))
    for content in (b"no tar at all" * 100, io.BytesIO(pack(tmp_path / "empty", tmp_path / "x.tgz", "w:gz").read_bytes()).read()):
        (tmp_path / "x.bin").write_bytes(content)
        with pytest.raises(BadInput, match="cannot be read as an uncompressed tar"):
            find_photos(str(tmp_path / "x.bin"))
