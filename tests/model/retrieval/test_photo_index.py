"""Photographs made searchable with a checkpoint, and found: from a folder to hits with files, as a database's regions would."""

import json
import shutil

import numpy as np
import pytest

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import RegionDB
from data.regions.writer import RegionWriter
from data.storage.json_digest import with_digest
from model.extractors import pool
from model.made_from import boxes_for
from model.retrieval.photo_index import PhotoOptions, index_photos
from model.retrieval.retriever import Retriever

QUIET = PhotoOptions(progress=False)


@pytest.fixture
def photos(small_world, tmp_path, monkeypatch):
    """Eight pictures of the small world, two of them in a folder below."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for n, photo in enumerate(sorted((small_world / "photos").iterdir())[:8]):
        shutil.copyfile(photo, folder / ("more" if n > 5 else "") / photo.name)
    return folder


@pytest.fixture
def extracted(monkeypatch):
    """Names of the photographs whose regions are extracted."""
    names = []
    own = pool.regions_of_photo
    monkeypatch.setattr(pool, "regions_of_photo", lambda photo: names.append(photo.inside) or own(photo))
    return names


def test_without_a_home_directory_it_says_what_to_set(finetuned, photos, homeless):
    with pytest.raises(BadInput, match=r"photos: nowhere to keep .* set XDG_CACHE_HOME"):
        index_photos(photos, finetuned / "best", options=QUIET)


def test_a_folder_is_searched_as_its_database_is(small_world, finetuned, photos, tmp_path, capsys):
    checkpoint, texts = finetuned / "best", ["a red circle", "two blue squares", "a green star"]
    retriever = Retriever.from_photos(photos, checkpoint, captions=texts, out=tmp_path / "out", options=QUIET)
    assert "8 photos" in capsys.readouterr().err
    boxes = boxes_for(checkpoint)
    made, stored = RegionDB(tmp_path / "out/regions", boxes), RegionDB(small_world / "regions", boxes)
    for key in made.keys:
        np.testing.assert_array_equal(made[key].features, stored[key].features)
        np.testing.assert_array_equal(made[key].soft_labels, stored[key].soft_labels)
    assert made.made_by.is_same(stored.made_by)

    hits = retriever.search_images("a red circle", k=8)
    assert {hit.path for hit in hits} == {path for path in photos.rglob("*") if path.is_file()}
    assert all(hit.path.stem == hit.id.removesuffix(".npz") and hit.text is None for hit in hits)
    vectors = np.stack([retriever.encode_image(hit.id)[0] for hit in hits])
    np.testing.assert_allclose([hit.score for hit in hits], vectors @ retriever.encode_texts(["a red circle"])[0], rtol=1e-4, atol=1e-5)
    new = sorted((small_world / "photos").iterdir())[-1]
    found = retriever.search_captions(new, k=3)
    assert sorted(hit.text for hit in found) == sorted(texts) and found[0].score >= found[2].score and found[0].path is None
    together = retriever.search_captions([new, hits[0].path, hits[0].id], k=3)
    assert [hit.id for hit in together[0]] == [hit.id for hit in found] and together[1] == together[2]
    np.testing.assert_allclose([hit.score for hit in together[0]], [hit.score for hit in found], rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="is an index of images, this query needs one of captions"):
        Retriever.from_photos(photos, checkpoint, out=tmp_path / "out", options=QUIET).search_captions(new)


def test_what_is_there_is_used_and_only_what_changed_is_extracted(finetuned, photos, extracted, capsys):
    checkpoint = finetuned / "best"
    first = index_photos(photos, checkpoint, options=QUIET)
    assert len(extracted) == 8 and "lightningdot" in str(first.index)
    capsys.readouterr()
    assert index_photos(photos, checkpoint, options=QUIET) == first and len(extracted) == 8
    assert "regions: up to date, 8 photographs" in capsys.readouterr().err
    other = index_photos(photos, finetuned / "last", options=QUIET)
    assert other.regions == first.regions and len(extracted) == 8  # the extractor is the same

    names = sorted(path.name for path in photos.glob("*.*"))
    gone, changed = photos / names[1], photos / names[2]
    before = dict(RegionDB(first.regions, boxes_for(checkpoint)).num_regions.items())
    gone.unlink()
    shutil.copyfile(photos / names[3], changed)
    shutil.copyfile(photos / names[4], photos / "new.jpg")
    (photos / "broken.jpg").write_bytes(b"no picture")
    extracted.clear()
    assert index_photos(photos, checkpoint, options=QUIET) == first
    assert sorted(extracted) == sorted(["broken.jpg", changed.name, "new.jpg"])
    assert "1 photos could not be read and were skipped" in capsys.readouterr().err
    regions = RegionDB(first.regions, boxes_for(checkpoint))
    key = {name: f"{name.rpartition('.')[0]}.npz" for name in names}
    assert set(regions.keys) == {*before, "new.npz"} - {key[gone.name]} == set(EmbeddingIndex(first.index).ids())
    np.testing.assert_array_equal(regions[key[changed.name]].features, regions[key[names[3]]].features)
    np.testing.assert_array_equal(regions["new.npz"].features, regions[key[names[4]]].features)


@pytest.mark.parametrize("stopped", ["at a photograph", "before its end"])
def test_what_was_killed_goes_on_with_photographs_that_changed_since(small_world, finetuned, photos, extracted, stopped, monkeypatch, capsys):
    names, pictures = [f"{n:02d}.jpg" for n in range(40)], sorted(photos.rglob("*.jpg"))
    folder = photos.parent / "many"
    folder.mkdir()
    for n, name in enumerate(names):
        shutil.copyfile(pictures[n % 8], folder / name)
    with monkeypatch.context() as patched:
        own = pool.regions_of_photo
        if stopped == "at a photograph":  # 32 are committed together
            patched.setattr(pool, "regions_of_photo", lambda photo: 1 / 0 if photo.inside == names[36] else own(photo))
        else:
            patched.setattr(RegionWriter, "conclude", lambda writer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index_photos(folder, finetuned / "best", options=QUIET)
    extracted.clear()
    shutil.copyfile(pictures[7], folder / names[0])
    (folder / names[1]).unlink()
    shutil.copyfile(pictures[3], folder / "new.jpg")
    made = index_photos(folder, finetuned / "best", options=QUIET)
    assert extracted == [names[0], *(names[32:] if stopped == "at a photograph" else []), "new.jpg"]
    regions, stored = (RegionDB(each, boxes_for(finetuned / "best")) for each in (made.regions, small_world / "regions"))
    assert list(regions.keys) == [f"{name.removesuffix('.jpg')}.npz" for name in [names[0], *names[2:], "new.jpg"]]
    for key, picture in {"00.npz": pictures[7], "05.npz": pictures[5], "35.npz": pictures[3], "new.npz": pictures[3]}.items():
        np.testing.assert_array_equal(regions[key].features, stored[f"{picture.stem}.npz"].features)
    assert index_photos(folder, finetuned / "best", options=QUIET) == made and "regions: up to date, 40 photographs" in capsys.readouterr().err


def test_regions_of_another_command_are_used_as_they_are(small_world, finetuned, photos, tmp_path, extracted, capsys):
    shutil.copytree(small_world / "regions", tmp_path / "out/regions")
    made = index_photos(photos, finetuned / "best", tmp_path / "out", QUIET)
    assert extracted == [] and EmbeddingIndex(made.index).count == 40
    assert "regions: is there already and used as it is; delete it to extract" in capsys.readouterr().err


def test_refusals(small_world, finetuned, photos, tmp_path):
    with pytest.raises(BadInput, match=r"--photos .*/no: no such folder"):
        index_photos(tmp_path / "no", finetuned / "best", tmp_path / "out", QUIET)
    copy = shutil.copytree(finetuned / "best", tmp_path / "copy")
    kept = json.loads((copy / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps(with_digest(kept | {"extractors": [None]})))
    with pytest.raises(BadInput, match="copy: does not say who made the regions of its training"):
        index_photos(photos, copy, options=QUIET)
    index_photos(photos, finetuned / "best", tmp_path / "out", QUIET)
    (copy / "data.json").write_text(json.dumps(with_digest(kept | {"boxes": kept["boxes"] | {"max_bb": 7}})))
    with pytest.raises(BadInput, match=r"out/regions: holds feat_th0.2_max100_min10 of random-conv .*trained on feat_th0.2_max7_min10 of random-conv"):
        index_photos(photos, copy, tmp_path / "out", QUIET)
    shutil.copyfile(next(photos.glob("*.*")), photos / "more" / next(photos.glob("*.*")).name)
    with pytest.raises(BadInput, match="both get the key"):
        index_photos(photos, finetuned / "best", tmp_path / "out", QUIET)


def test_captions_of_a_database_are_shown(small_world, finetuned, photos, tmp_path):
    captions = CaptionDB(small_world / "db/test")
    retriever = Retriever.from_photos(photos, finetuned / "best", small_world / "db/test", tmp_path / "out", QUIET)
    hits = retriever.search_captions(next(photos.glob("*.*")), k=4)
    assert [hit.text for hit in hits] == [captions[hit.id]["raw"] for hit in hits]
    with pytest.raises(BadInput, match=r"does not hold what .*captions was built from"):
        Retriever.from_pretrained(
            finetuned / "best", tmp_path / "out/index", captions=small_world / "db/val", captions_index=tmp_path / "out/captions"
        )
