"""Annotations, regions and archives as others write them, of the pictures of the campaign's world."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np


def write_annotations(folder: Path, captions: Path) -> None:
    """One file, or folder, of each format."""
    folder.mkdir()
    pictures = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]
    rows = [(Path(p["image"]).name, p["split"], p["captions"]["en"][0], p["captions"]["de"][0]) for p in pictures]
    dump = lambda name, value: (folder / name).write_text(json.dumps(value))  # noqa: E731

    images = [
        {"filename": name, "split": split, "imgid": n, "sentids": [n], "sentences": [{"raw": en, "tokens": en.split(), "imgid": n, "sentid": n}]}
        for n, (name, split, en, _) in enumerate(rows)
    ]
    dump("dataset_own.json", {"dataset": "own", "images": images})
    listed = [{"file_name": name, "id": n, "height": 64, "width": 64, "coco_url": f"http://x/{name}"} for n, (name, *_) in enumerate(rows)]
    noted = [{"image_id": n, "id": 10 * n, "caption": en} for n, (_, _, en, _) in enumerate(rows)]
    dump("captions_own.json", {"info": {}, "licenses": [], "images": listed, "annotations": noted})
    (folder / "results.token").write_text("".join(f"{1000 + n}.jpg#0\t{en}\n" for n, (_, _, en, _) in enumerate(rows)))
    (folder / "pairs.tsv").write_text("".join(f"{en}\thttp://x/{name}\n" for name, _, en, _ in rows))
    (folder / "files.tsv").write_text("".join(f"http://x/{name}\t{name}\n" for name, *_ in rows))
    dump("pairs.json", [{"image": name, "caption": en} for name, _, en, _ in rows])
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"url": name, "caption": en}) + "\n" for name, _, en, _ in rows))
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f'{name},"{en}"\n' for name, _, en, _ in rows))
    dump("region_descriptions.json", [
        {"id": n, "regions": [{"region_id": 7 * n, "image_id": n, "phrase": en, "x": 1, "y": 1, "width": 8, "height": 8}]}
        for n, (_, _, en, _) in enumerate(rows, 1)
    ])  # fmt: skip
    dump("own_meta.json", {f"{Path(name).stem}.npz": {"caption_multiple": [en, en + " x"], "annotation": [en]} for name, _, en, _ in rows})
    coco = [(f"COCO_val2014_{n:012d}.jpg", n, en) for n, (_, _, en, _) in enumerate(rows, 1)]
    dump("stair_captions_v1.2_val.json", {
        "images": [{"file_name": name, "id": n, "license": 1} for name, n, _ in coco],
        "annotations": [{"image_id": n, "id": n, "caption": f"犬 {en}"} for _, n, en in coco],
    })  # fmt: skip
    _write_coco_cn(folder / "coco_cn", coco)
    _write_multi30k(folder / "multi30k", rows)
    (folder / "own.jsonl").write_bytes(captions.read_bytes())
    with gzip.open(folder / "packed.jsonl.gz", "wb") as file:
        file.write(captions.read_bytes())


def _write_coco_cn(folder: Path, coco: list[tuple[str, int, str]]) -> None:
    folder.mkdir()
    (folder / "imageid.human-written-caption.txt").write_text("".join(f"{name[:-4]}#0\t狗 {en}\n" for name, _, en in coco))
    for split, part in (("train", coco[:8]), ("val", coco[8:12]), ("test", coco[12:])):
        (folder / f"coco-cn_{split}.txt").write_text("".join(f"{name[:-4]}\n" for name, _, _ in part))


def _write_multi30k(folder: Path, rows: list[tuple[str, str, str, str]]) -> None:
    raw, splits = folder / "data/task1/raw", folder / "data/task1/image_splits"
    raw.mkdir(parents=True), splits.mkdir()
    for split in ("train", "val"):
        part = [(n, en, de) for n, (_, own, en, de) in enumerate(rows) if own == split]
        (splits / f"{split}.txt").write_text("".join(f"{1000 + n}.jpg\n" for n, _, _ in part))
        (raw / f"{split}.en").write_text("".join(f"{en}\n" for _, en, _ in part))
        (raw / f"{split}.de.gz").write_bytes(gzip.compress("".join(f"{de}\n" for _, _, de in part).encode()))


def write_regions(folder: Path, regions) -> None:
    """TSV, HDF5, folders of .npz, .npy and .h5: features [n,32] and boxes in pixels of a picture of 640 x 427."""
    import h5py

    (folder / "npz").mkdir(parents=True), (folder / "npy").mkdir()
    lines = []
    with h5py.File(folder / "all.h5", "w") as file:
        for key in sorted(regions.keys)[:6]:
            record, stem = regions[key], key.removesuffix(".npz")
            features = np.array(record.features, np.float32)
            boxes = np.array(record.norm_bb, np.float32)[:, :4] * np.array([640, 427, 640, 427], np.float32)
            np.savez(folder / "npz" / key, features=features, bbox=boxes, image_w=640, image_h=427)
            np.save(folder / "npy" / f"{stem}.npy", features)
            np.save(folder / "npy" / f"{stem}_boxes.npy", boxes)
            group = file.create_group(stem)
            group["features"], group["boxes"] = features, boxes
            group["image_w"], group["image_h"] = 640, 427
            packed = (base64.b64encode(a.tobytes()).decode() for a in (boxes, features))
            lines.append("\t".join([stem, "640", "427", str(len(features)), *packed]) + "\n")
    (folder / "features.tsv").write_text("".join(lines))
    (folder / "sizes.json").write_text(json.dumps({key.removesuffix(".npz"): [640, 427] for key in sorted(regions.keys)}))


def write_uniter_db(folder: Path, regions) -> None:
    """An image DB as UNITER's tools write it, plain and compressed: msgpack with arrays, and .npz, without checksums."""
    import lmdb
    import msgpack
    import msgpack_numpy

    keys = sorted(regions.keys)[:8]
    for name in ("feat_th0.2_max100_min10", "feat_th0.2_max100_min10_compressed"):
        (folder / name).mkdir(parents=True)
        with lmdb.open(str(folder / name), map_size=1 << 24, lock=False) as env, env.begin(write=True) as txn:
            for key in keys:
                record = regions[key]
                arrays = {part: np.array(getattr(record, part)) for part in ("features", "norm_bb", "conf", "soft_labels")}
                packed = io.BytesIO()
                np.savez_compressed(packed, **arrays)
                plain = msgpack.packb(arrays, default=msgpack_numpy.encode, use_bin_type=True)
                txn.put(key.encode(), packed.getvalue() if name.endswith("_compressed") else plain)
            txn.put(b"__keys__", json.dumps(keys).encode())
    (folder / "nbb_th0.2_max100_min10.json").write_text(json.dumps({key: len(regions[key]) for key in keys}))


def write_archives(folder: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    with tarfile.open(folder / "photos.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for path in paths[:10]:
            archive.add(path, f"some/{path.name}")
    with tarfile.open(folder / "captions.tar", "w") as archive, zipfile.ZipFile(folder / "captions.zip", "w") as zipped:
        for name in ("captions.jsonl", "queries.txt"):
            archive.add(folder / name, name)
            zipped.write(folder / name, name)


def write_models(folder: Path, vocab: Path) -> None:
    """Models as transformers saves them: of pictures, and two of texts in our vocabulary, one of them in torch's own format."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    words = len(vocab.read_text(encoding="utf-8").splitlines())
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder / "vit")
    (folder / "vit/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    text = {"vocab_size": words, "max_position_embeddings": 80}
    transformers.DistilBertModel(transformers.DistilBertConfig(**text, dim=32, n_layers=1, n_heads=2, hidden_dim=48)).save_pretrained(folder / "text")
    bert = transformers.BertModel(transformers.BertConfig(**text, **sizes))
    bert.config.save_pretrained(folder / "bert")
    torch.save(bert.state_dict(), folder / "bert/pytorch_model.bin")
