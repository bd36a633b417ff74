"""Damage inside of what holds several things: records of LMDB, arrays of numpy, tensors, members of archives. The container is whole, and
its own checksums are right: `REWRITTEN` stands in front of what was done by writing it anew."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.campaign.values import as_json, changed_tree, short

PAGE = 4096
REWRITTEN = "written anew: "


def damage_lmdb_pages(path: Path, chance: random.Random) -> str:
    """What a page says of itself: its number, kind, bounds, the pointers of its nodes; of a meta page its root and last page."""
    data = bytearray(path.read_bytes())
    number = chance.choice([0, 1, chance.randrange(max(len(data) // PAGE, 1)), chance.randrange(max(len(data) // PAGE, 1))])
    at = number * PAGE + chance.choice([0, 8, 10, 12, 14, 16, 18, 20, 24, 32, 40, 48, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 152, chance.randrange(PAGE)])
    size = chance.choice([1, 2, 4, 8])
    value = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size), (7).to_bytes(size, "little"), b"\xf0" + bytes(size - 1)])
    data[at : at + size] = value[: max(len(data) - at, 0)]
    path.write_bytes(data)
    return f"page {number}: {size} bytes at {at % PAGE} are {value.hex()}"


def damage_record(path: Path, chance: random.Random) -> str:
    """One record of a database that is whole otherwise: a bit of its value where it stands, or what a program does with LMDB."""
    import lmdb

    with lmdb.open(str(path.parent), lock=False, map_size=1 << 28) as env, env.begin(write=True) as txn:
        keys = [bytes(key) for key, _ in txn.cursor()]
        if not keys:
            return "empty: nothing done"
        key = chance.choice(keys)
        old = bytes(txn.get(key))
        value, said = changed_record(old, [bytes(txn.get(other)) for other in chance.sample(keys, min(3, len(keys)))], chance)
        in_place = value is not None and len(value) == len(old) and chance.random() < 0.8
        if in_place:
            pass
        elif value is None:
            txn.delete(key)
        elif said == "under another key":
            txn.delete(key)
            txn.put(key[:-1] + bytes([key[-1] ^ 1]), value)
        else:
            txn.put(key, value)
    if in_place:
        data = path.read_bytes()
        at = data.find(old)
        path.write_bytes(data[:at] + value + data[at + len(old) :])
        return f"record {key[:60]!r} where it stands: {said}"
    return f"{REWRITTEN}record {key[:60]!r} {said}"


def changed_record(value: bytes, others: list[bytes], chance: random.Random) -> tuple[bytes | None, str]:
    how = chance.randrange(14)
    if how == 0:
        return None, "deleted"
    if how == 1:
        return value, "under another key"
    if how == 2:
        return value[: chance.randrange(len(value) + 1)], "cut"
    if how == 3:
        return chance.choice(others), "has another's value"
    if how == 4:
        return chance.choice([b"", b"\0", b"{}", b"null", b"\xff" * 40, b"[" * 100_000, b"x" * 100_000]), "is something else"
    if how <= 6 and value[:1] in (b"{", b"["):
        try:
            tree, said = changed_tree(json.loads(value), chance)
            return as_json(tree), said
        except ValueError:
            pass
    data = bytearray(value or b"\0")
    at, bit = chance.randrange(len(data)), chance.randrange(8)
    data[at] ^= 1 << bit
    return bytes(data), f"bit {bit} of byte {at} flipped"


def damage_arrays(path: Path, chance: random.Random) -> str:
    """One array of a ``.npz``, or that of a ``.npy``."""
    if path.suffix == ".npy":
        array, said = changed_array(np.load(path, allow_pickle=False), chance)
        np.save(path, array, allow_pickle=False)
        return said
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    name = chance.choice(sorted(arrays))
    how = chance.randrange(8)
    if how == 0:
        del arrays[name]
        said = "left out"
    elif how == 1:
        arrays[name] = arrays[chance.choice(sorted(arrays))]
        said = "is another's"
    elif how == 2:
        arrays[name + "x"] = arrays.pop(name)
        said = "under another name"
    else:
        arrays[name], said = changed_array(arrays[name], chance)
    np.savez(path, **arrays)
    return f"{REWRITTEN}{name} {said}"


def changed_array(array: np.ndarray, chance: random.Random) -> tuple[np.ndarray, str]:
    """Another shape, another type, or odd values."""
    how = chance.randrange(8)
    if how == 0 and array.ndim:
        return array[:-1], "lacks its last row"
    if how == 1:
        return array[None], "has an axis more"
    if how == 2:
        return array.ravel(), "is flat"
    if how == 3:
        return array[:0] if array.ndim else np.zeros(0), "is empty"
    if how == 4:
        kind = chance.choice(["i1", "f8", "U3", "S3", "c16", "?", "M8[s]", "i8"])
        try:
            return array.astype(kind), f"is {kind}"
        except (ValueError, TypeError):
            return np.zeros(array.shape, kind), f"is {kind}, zeros"
    changed = array.copy()
    if changed.size == 0:
        return np.zeros(3), "is three zeros"
    at = tuple(chance.randrange(n) for n in changed.shape)
    if changed.dtype.kind == "f":
        value = chance.choice([float("nan"), float("inf"), -float("inf"), 3e38, -1.0, 0.0])
    elif changed.dtype.kind in "iu":
        bounds = np.iinfo(changed.dtype)
        value = chance.choice([bounds.max, bounds.min, 0, bounds.max // 2])
    else:
        value = chance.choice(["", "x", "\ud800"]) if changed.dtype.kind == "U" else changed.dtype.type()
    if changed.dtype.kind in "fiu" and chance.random() < 0.3:
        changed[...] = value
        return changed, f"is {value} everywhere"
    with np.errstate(over="ignore"):
        changed[at] = value
    return changed, f"is {short(value)} at {at}"


def damage_safetensors(path: Path, chance: random.Random) -> str:
    """Its header, or the numbers of one tensor."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    if chance.random() < 0.5:
        header, said = changed_tree(header, chance)
        text = as_json(header)
        path.write_bytes(struct.pack("<Q", chance.choice([len(text)] * 8 + [len(text) + 1, 1 << 40])) + text + data[8 + size :])
        return f"header: {said}"
    name = chance.choice([name for name in header if name != "__metadata__"])
    start, end = (8 + size + each for each in header[name]["data_offsets"])
    piece = chance.choice([bytes(end - start), b"\xff" * (end - start), chance.randbytes(end - start), b"\0\0\xc0\x7f" * ((end - start) // 4)])
    path.write_bytes(data[:start] + piece + data[end:])
    return f"{name} is {piece[:4].hex()}..."


def damage_zip_member(path: Path, chance: random.Random) -> str:
    """A byte of a member, with checksums that fit again: only what reads it can notice. A file that is no zip gets another byte."""
    if not zipfile.is_zipfile(path):
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data))
        data[at] = chance.randrange(256)
        path.write_bytes(data)
        return f"byte {at} is {data[at]}"
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = chance.choice([name for name in members if members[name]])
    how = chance.randrange(3)
    if how == 0:
        del members[name]
        said = "left out"
    elif how == 1:
        members[name] = members[name][: chance.randrange(len(members[name]))]
        said = "cut"
    else:
        data = bytearray(members[name])
        at = chance.randrange(len(data))
        data[at] = chance.randrange(256)
        members[name], said = bytes(data), f"byte {at} is {data[at]}"
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return f"{REWRITTEN}{name} {said}"


def damage_tar_header(path: Path, chance: random.Random) -> str:
    """A byte of one of the headers of a tar file."""
    data = bytearray(path.read_bytes())
    starts = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    if not starts:
        at = chance.randrange(len(data))
    else:
        at = chance.choice(starts) + chance.choice([0, 124, 130, 148, 156, 157, 257, chance.randrange(512)])
    value = chance.choice([0, data[at] ^ 1, 0xFF, ord("7"), ord("x")])
    data[at] = value
    path.write_bytes(data)
    return f"byte {at % 512} of the header at {at // 512 * 512} is {value}"
