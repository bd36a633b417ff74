"""Databases in both directions: ours read what the original's tools wrote, record by record, and a reader that knows
only msgpack, lz4 and NumPy reads what ours write."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import lmdb
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter

GOLDEN = Path(__file__).parents[1] / "fixtures" / "uniter_db"
NBB = "nbb_th0.2_max100_min10.json"
MEMBERS = ("features", "norm_bb", "conf", "soft_labels")
COUNTS = json.loads((GOLDEN / "img" / NBB).read_text())


@pytest.fixture(scope="module")
def golden():
    """Key -> name -> array: what is stored, and what the original's reader returns."""
    with np.load(GOLDEN / "all_images.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {key: {n.split("/")[1]: a for n, a in arrays.items() if n.startswith(f"{key}/")} for key in COUNTS}


# ---- the original's databases, record by record ----------------------------------------------------------------------


def plain(arrays):
    return msgpack.packb(arrays, default=msgpack_numpy.encode, use_bin_type=True)


def compressed(arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def legacy(arrays):
    """What numpy < 2.1 stores of ``savez_compressed(out, allow_pickle=False, **arrays)``."""
    out = io.BytesIO(compressed(arrays))
    member = io.BytesIO()
    np.save(member, np.array(False))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("allow_pickle.npy", member.getvalue())
    return out.getvalue()


LAYOUTS = {
    "plain": ("feat_th0.2_max100_min10", plain),
    "compressed": ("feat_th0.2_max100_min10_compressed", compressed),
    "legacy": ("feat_th0.2_max100_min10_compressed", legacy),
    "all": ("all", plain),
    "all_compressed": ("all_compressed", compressed),
    "all_legacy": ("all_compressed", legacy),
    "fixed": ("feat_numbb9", plain),
    "fixed_legacy": ("feat_numbb9_compressed", legacy),
}


def store(folder, values):
    """An LMDB made without our writer."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key.encode(), value)
        txn.put(b"__keys__", json.dumps(list(values)).encode())


def stored(arrays):
    return {name: arrays[name] for name in MEMBERS}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("nbb", [True, False], ids=["nbb", "no_nbb"])
def test_all_pictures_read_as_the_original_reads_them(tmp_path, golden, layout, nbb):
    name, encode = LAYOUTS[layout]
    store(tmp_path / name, {key: encode(stored(arrays)) for key, arrays in golden.items()})
    if nbb:
        shutil.copy(GOLDEN / "img" / NBB, tmp_path)
    if nbb and name.startswith("all"):
        with pytest.raises(BadInput, match=r"no image DB, expected feat_th0\.2_max100_min10 or"):
            RegionDB(tmp_path)
        return
    fixed = name.startswith("feat_numbb")
    db = RegionDB(tmp_path, BoxOptions(-1, num_bb=9)) if fixed else RegionDB(tmp_path)
    counts = dict.fromkeys(COUNTS, 9) if fixed else COUNTS
    assert db.keys == list(golden) and db.num_regions == counts and len(db) == 24
    full = 0
    for key, arrays in golden.items():
        regions, rows = db[key], counts[key]
        assert len(regions) == rows
        assert regions.positions.dtype == np.float32 and np.array_equal(regions.positions, arrays["pos7"][:rows])
        for member in MEMBERS:
            assert np.array_equal(getattr(regions, member), arrays[member][:rows]), (key, member)
        if "img_feat" in arrays:
            full += 1
            assert np.array_equal(regions.features.astype(np.float32), arrays["img_feat"][:rows])
            assert np.array_equal(regions.norm_bb.astype(np.float32), arrays["img_bb6"][:rows])
    assert full == 6


def test_all_captions_read_as_the_original_reads_them():
    """A text DB without our fields: no txt2lang.json, no tokenizer, no PAD, no lang."""
    db = CaptionDB(GOLDEN / "txt")
    expected = json.loads((GOLDEN / "expected_txt.json").read_text())
    assert db.ids == expected["txt_ids"] and len(db) == 120
    assert db.languages == {} and db.tokenizer_folder is None and "PAD" not in db.meta
    for caption_id in db.ids:
        record = db[caption_id]
        assert record["input_ids"] == db.input_ids(caption_id) == expected["input_ids"][caption_id]
        assert len(record["input_ids"]) == db.lengths[caption_id] == expected["id2len"][caption_id]
        assert record["img_fname"] == db.txt2img[caption_id] and caption_id in db.img2txts[record["img_fname"]]
        assert "lang" not in record


# ---- readers with only msgpack, lz4 and NumPy ------------------------------------------------------------------------


def records_of(folder):
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


def read_plain(img_db, name):
    """Key -> member -> array, trimmed to the count of the nbb file."""
    records, counts = records_of(img_db / name), json.loads((img_db / NBB).read_text())
    pictures = {}
    for key in json.loads(records[b"__keys__"]):
        pictures[key] = {}
        for member, stored in msgpack.unpackb(records[key.encode()], raw=False, strict_map_key=False).items():
            assert stored[b"nd"] is True and stored[b"type"] == "<f2" and stored[b"kind"] == b""
            array = np.frombuffer(stored[b"data"], np.dtype("<f2")).reshape(stored[b"shape"])
            pictures[key][member] = array[: counts[key]]
    return pictures


def read_compressed(img_db, name):
    records, counts = records_of(img_db / name), json.loads((img_db / NBB).read_text())
    pictures = {}
    for key in json.loads(records[b"__keys__"]):
        with np.load(io.BytesIO(records[key.encode()]), allow_pickle=False) as archive:
            pictures[key] = {member: archive[member][: counts[key]] for member in archive.files}
    return pictures


def read_text(folder):
    """Caption id -> (input ids with [CLS] and [SEP], picture, its captions)."""
    tables = {n: json.loads((folder / f"{n}.json").read_text()) for n in ("id2len", "txt2img", "img2txts", "meta")}
    records, captions = records_of(folder), {}
    for caption_id, length in tables["id2len"].items():
        record = msgpack.unpackb(lz4.frame.decompress(records[caption_id.encode()]), raw=False)
        assert len(record["input_ids"]) == length and record["img_fname"] == tables["txt2img"][caption_id]
        ids = [tables["meta"]["CLS"], *record["input_ids"], tables["meta"]["SEP"]]
        captions[caption_id] = ids, record["img_fname"], tables["img2txts"][record["img_fname"]]
    return captions


@pytest.mark.parametrize(
    "read, is_compressed", [(read_plain, False), (read_compressed, True)], ids=["plain", "compressed"]
)
def test_what_we_write_an_independent_reader_reads(tmp_path, golden, read, is_compressed):
    with RegionWriter(tmp_path, compressed=is_compressed) as writer:
        for key, arrays in golden.items():
            writer.add(key, Regions(**stored(arrays)))
    pictures = read(tmp_path, "feat_th0.2_max100_min10" + "_compressed" * is_compressed)
    assert list(pictures) == list(golden)
    assert json.loads((tmp_path / NBB).read_text()) == COUNTS
    for key, arrays in golden.items():
        assert list(pictures[key]) == list(MEMBERS)
        for member in MEMBERS:
            assert pictures[key][member].dtype == np.float16
            assert np.array_equal(pictures[key][member], arrays[member][: COUNTS[key]])


def test_fixed_count_of_36_both_ways(tmp_path):
    rng = np.random.default_rng(0)
    regions = Regions(*(rng.random(shape).astype(np.float16) for shape in ((40, 8), (40, 6), (40,), (40, 5))))
    with RegionWriter(tmp_path, BoxOptions(-1)) as writer:
        writer.add("a.npz", regions)
    record = msgpack.unpackb(records_of(tmp_path / "feat_numbb36")[b"a.npz"], raw=False, strict_map_key=False)
    assert record["features"][b"shape"] == [40, 8] and sorted(p.name for p in tmp_path.iterdir()) == ["feat_numbb36"]
    read = RegionDB(tmp_path, BoxOptions(-1))["a.npz"]
    assert len(read) == 36 and np.array_equal(read.features, regions.features[:36])


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a the dog cat runs hund ein .".split()]


def test_captions_we_write_an_independent_reader_reads(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    captions = [
        Caption("1.jpg", "the dog runs.", "0", "train", "en"),
        Caption("1.jpg", "ein hund.", "1#de0", "train", "de"),
        Caption("2.jpg", "a cat.", "7", "train", "en"),
    ]
    folder = tmp_path / "db"
    write_caption_db(folder, captions, CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt"), ["a.jsonl"])
    ids = {name: i for i, name in enumerate(WORDS)}
    expected = {
        "0": ([2, ids["the"], ids["dog"], ids["runs"], ids["."], 3], "1.npz", ["0", "1#de0"]),
        "1#de0": ([2, ids["ein"], ids["hund"], ids["."], 3], "1.npz", ["0", "1#de0"]),
        "7": ([2, ids["a"], ids["cat"], ids["."], 3], "2.npz", ["7"]),
    }
    assert read_text(folder) == expected

    ours = CaptionDB(folder)
    assert ours.languages == {"0": "en", "1#de0": "de", "7": "en"} and ours.tokenizer_folder is not None
    (folder / "txt2lang.json").unlink()
    shutil.rmtree(folder / "tokenizer")
    (folder / "meta.json").write_text(json.dumps({n: v for n, v in ours.meta.items() if n != "PAD"}))
    bare = CaptionDB(folder)
    assert bare.languages == {} and bare.tokenizer_folder is None and "PAD" not in bare.meta
    assert {i: bare.input_ids(i) for i in bare.ids} == {i: words[1:-1] for i, (words, _, _) in expected.items()}


def test_the_independent_reader_reads_the_originals_captions(tmp_path):
    shutil.copytree(GOLDEN / "txt", tmp_path / "txt")  # LMDB opens a file once in a process, and ours may hold it
    expected = json.loads((GOLDEN / "expected_txt.json").read_text())["input_ids"]
    assert {i: ids[1:-1] for i, (ids, _, _) in read_text(tmp_path / "txt").items()} == expected
