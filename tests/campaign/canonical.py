"""What a command has written, without times and without the names of this machine: two runs that did the same are equal."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.campaign.children import Child

# Keys whose values are times, speeds, places or versions, or say how often a command was started.
PASSING = re.compile(
    r"(^|[/_.])(time|times|created|command|host|git|git_revision|versions?|python|gpu|threads|seconds|milliseconds|speed|mtime_ns|inode"
    r"|duration|started|finished|pairs_per_s|per_second|waiting_for_data|cpu|machine|fetched|tries|from_an_earlier_run)([/_.]|$)"
)
COUNTING = {"transaction", "digest"}  # arrays of checksums.npz: the transaction of LMDB that it is about, which counts commits
OF_THE_WAY_THERE = {"commits", "data"}  # of an index's header: an interrupted update commits more; digest of a database with what is not read of it
ADDRESS = re.compile(rb"127\.0\.0\.1:\d+")
UNREAD = (".lock", ".partial", ".html", ".png", "digest.json")
EXPORTED = "exported"  # name of a collection of milvus-lite
UNREAD_FOLDERS = {"tensorboard", "cache", "tmp"}


def canonical_outputs(folder: Path, outputs: Iterable[str]) -> dict[str, str]:
    """Name of each file below the ``outputs`` of a folder → digest of what matters in it; links by where they point."""
    found = {}
    for output in outputs:
        top = folder / output
        if top.suffix == ".db" and top.is_dir():
            found[output] = Child(lambda path=top: exported(path)).result()
            continue
        paths = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in paths:
            name = str(path.relative_to(folder))
            if UNREAD_FOLDERS & set(path.relative_to(folder).parts) or path.name.endswith(UNREAD):
                continue
            if path.is_symlink() and path.is_dir():
                found[name] = f"-> {path.readlink()}"
            elif path.is_file():
                found[name] = digest(path)
    return found


def digest(path: Path) -> str:
    try:
        return hashlib.blake2b(content(path), digest_size=8).hexdigest()
    except Exception as error:
        return f"unreadable: {type(error).__name__}: {error}"


def content(path: Path) -> bytes:
    """The bytes of a file that two runs have in common."""
    if path.name == "data.mdb":
        return lmdb_content(path.parent)
    if path.suffix in (".json", ".jsonl"):
        if path.suffix == ".json" and isinstance(report := json.loads(path.read_bytes()), dict) and isinstance(report.get("databases"), list):
            return json.dumps(lasting(without_sizes(report)), sort_keys=True).encode()
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
        return "\n".join(json.dumps(lasting(json.loads(line)), sort_keys=True) for line in lines).encode()
    if path.suffix == ".yaml":
        return json.dumps(lasting(yaml.safe_load(path.read_text(encoding="utf-8"))), sort_keys=True, default=str).encode()
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            names = sorted(set(arrays) - (COUNTING if path.name == "checksums.npz" else set()))
            return b"".join(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes() for name in names)
    if path.suffix == ".pt":
        import torch

        return described(torch.load(path, map_location="cpu", weights_only=True)).encode()
    data = ADDRESS.sub(b"", path.read_bytes())
    return b"\n".join(sorted(data.splitlines())) if path.name in ("files.tsv", "gone.tsv") else data  # as they came


def without_sizes(report: dict) -> dict:
    """What an inspection wrote, without the sizes of the files: what stands behind the end of one is no part of the database."""
    databases = [{**found, "facts": {name: fact for name, fact in found["facts"].items() if name != "size"}} for found in report["databases"]]
    return report | {"databases": databases}


def lmdb_content(folder: Path) -> bytes:
    import lmdb

    whole = io.BytesIO()
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        for key, value in txn.cursor():
            if key == b"crc/header":  # of a header with its time
                continue
            if value[:1] == b"{" and key in (b"header", b"meta", b"__meta__"):
                kept = {name: each for name, each in lasting(json.loads(value)).items() if name not in OF_THE_WAY_THERE}
                value = json.dumps(kept, sort_keys=True).encode()
            whole.write(hashlib.blake2b(key, digest_size=8).digest() + hashlib.blake2b(value, digest_size=8).digest())
    return whole.getvalue()


def exported(path: Path) -> str:
    """Digest of what a search finds in an export to milvus-lite; why there is none, where it cannot be read."""
    import logging

    from data.search import SearchOptions, open_backend

    logging.disable(logging.CRITICAL)
    try:
        index = open_backend(EXPORTED, SearchOptions("milvus", uri=str(path)))
        scores, rows = index.search(np.eye(index.dim, dtype=np.float32)[:8], index.count)
        return hashlib.blake2b(repr(index.ids(rows)).encode() + scores.tobytes(), digest_size=8).hexdigest()
    except Exception as error:
        return f"unreadable: {type(error).__name__}: {error}"


def lasting(value: Any) -> Any:
    """Without the keys that are `PASSING`, at any depth; NaN as a word, since it equals nothing."""
    if isinstance(value, dict):
        return {lasting(str(key)): lasting(each) for key, each in value.items() if not PASSING.search(str(key))}
    if isinstance(value, list):
        return [lasting(each) for each in value]
    if isinstance(value, str):
        return ADDRESS.sub(b"", value.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def described(tree: Any) -> str:
    """A tree of tensors and plain values as a text."""
    import torch

    if isinstance(tree, torch.Tensor):
        flat = tree.contiguous().flatten()
        return f"{tree.dtype} {tuple(tree.shape)} {hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b'').hexdigest()}"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {described(value)}" for key, value in sorted(tree.items(), key=lambda item: str(item[0]))) + "}"
    if isinstance(tree, list | tuple):
        return "[" + ", ".join(map(described, tree)) + "]"
    return repr(tree)


def lasting_lines(errors: str) -> list[str]:
    """The lines of stderr without progress bars, and without numbers, which may be times."""
    lines = re.split(r"[\r\n]+", errors)
    return [re.sub(r"\d[\d.,]*", "0", line).strip() for line in lines if line.strip() and not re.search(r"\d+%\|| \[\d\d:\d\d|it/s|/s\]|\?it", line)]
