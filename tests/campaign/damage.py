"""What becomes of a file: bits, pages, lines, values, arrays, records; or something else stands in its place."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.campaign import containers, hostile
from tests.campaign.values import as_json, as_yaml, changed_tree, hostile_json, hostile_yaml, odd_value, short

PAGE = 4096
Damage = Callable[[Path, random.Random], str]  # changes the file, and says what it did


def damage_file(path: Path, chance: random.Random) -> str:
    """Damage a file as its kind suggests → what was done. Its time stays, as when a disk forgets a bit."""
    info = path.stat()
    ways = ways_for(path)
    way = chance.choices([way for way, _ in ways], [weight for _, weight in ways])[0]
    try:
        said = way(path, chance)
    except Unfit:
        said = damage_bytes(path, chance)
    if path.is_file() and not path.is_symlink():
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    return said


def is_readable(path: Path) -> bool:
    """Whether it is a file of common size that may be read."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.stat().st_size < 1 << 28 and bool(path.stat().st_mode & 0o400)


class Unfit(Exception):
    """This file cannot be damaged in this way."""


def ways_for(path: Path) -> list[tuple[Damage, int]]:
    """The ways of damaging a file with their weights."""
    name, suffix = path.name, path.suffix
    ways: list[tuple[Damage, int]] = [(damage_bytes, 6), (hostile.replace_file, 1)]
    if suffix == ".gz":
        ways += [(damage_unpacked, 8)]
    elif suffix == ".json":
        ways += [(damage_json, 9), (replaced_by(hostile_json), 1)]
    elif suffix == ".jsonl":
        ways += [(damage_json_line, 7), (damage_lines, 3), (replaced_by(hostile_json), 1)]
    elif suffix in (".yaml", ".yml"):
        ways += [(damage_yaml, 10), (replaced_by(hostile_yaml), 3)]
    elif suffix in (".txt", ".tsv", ".csv", ".token", ".en", ".de"):
        ways += [(damage_lines, 8)]
    elif name == "data.mdb":
        ways += [(containers.damage_lmdb_pages, 6), (containers.damage_record, 7)]
    elif suffix in (".npz", ".npy"):
        ways += [(containers.damage_arrays, 8)]
    elif suffix == ".safetensors":
        ways += [(containers.damage_safetensors, 6)]
    elif suffix in (".pt", ".bin", ".pkl"):
        ways += [(containers.damage_zip_member, 3)]
    elif suffix in (".tar", ".zip"):
        ways += [(containers.damage_tar_header, 5)]
    return ways


# ---- bytes -----------------------------------------------------------------------------------------------------------


def damage_bytes(path: Path, chance: random.Random) -> str:
    """One of the things that disks, copies and programs do to bytes."""
    data = bytearray(path.read_bytes())
    if not data:
        data += chance.randbytes(20)
        said = "20 bytes in an empty file"
    else:
        data, said = chance.choice(BYTE_WAYS)(data, chance)
    path.write_bytes(data)
    return said


def flip_bit(data: bytearray, chance: random.Random):
    at, bit = chance.randrange(len(data)), chance.randrange(8)
    data[at] ^= 1 << bit
    return data, f"bit {bit} of byte {at} flipped"


def flip_bits(data: bytearray, chance: random.Random):
    count = chance.randrange(2, 40)
    for _ in range(count):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data, f"{count} bits flipped"


def truncate(data: bytearray, chance: random.Random):
    size = chance.choice([chance.randrange(len(data)), len(data) - 1, len(data) // 2, len(data) // PAGE * PAGE, max(len(data) - PAGE, 0), 0])
    return data[:size], f"cut to {size} of {len(data)} bytes"


def zero_page(data: bytearray, chance: random.Random):
    start = chance.randrange(-(-len(data) // PAGE)) * PAGE
    piece = data[start : start + PAGE]
    data[start : start + PAGE] = bytes(len(piece))
    return data, f"page {start // PAGE} zeroed"


def swap_pages(data: bytearray, chance: random.Random):
    if len(data) < 2 * PAGE:
        return flip_bits(data, chance)
    a, b = (number * PAGE for number in chance.sample(range(len(data) // PAGE), 2))
    data[a : a + PAGE], data[b : b + PAGE] = data[b : b + PAGE], data[a : a + PAGE]
    return data, f"pages {a // PAGE} and {b // PAGE} swapped"


def random_piece(data: bytearray, chance: random.Random):
    at, size = chance.randrange(len(data)), chance.choice([1, 4, 16, 64, 512])
    piece = chance.randbytes(size)[: len(data) - at]
    data[at : at + len(piece)] = piece
    return data, f"{len(piece)} random bytes at {at}"


def odd_number(data: bytearray, chance: random.Random):
    size = chance.choice([1, 2, 4, 8])
    at = chance.randrange(len(data)) // size * size
    value = chance.choice([b"\0" * size, b"\xff" * size, b"\xff" * (size - 1) + b"\x7f", b"\x01" + b"\0" * (size - 1), b"\0" * (size - 1) + b"\x80"])
    data[at : at + size] = value[: len(data) - at]
    return data, f"{size} bytes at {at} are {value.hex()}"


def insert_piece(data: bytearray, chance: random.Random):
    at = chance.randrange(len(data))
    piece = chance.choice([b"\xff\xfe", b"\0", b"\x80" * 3, b"\xed\xa0\x80", chance.randbytes(7), b"\n", b"\xef\xbb\xbf"])
    data[at:at] = piece
    return data, f"{piece.hex()} put in at {at}"


def remove_piece(data: bytearray, chance: random.Random):
    at, size = chance.randrange(len(data)), chance.choice([1, 2, 16, 500])
    del data[at : at + size]
    return data, f"{size} bytes at {at} left out"


def append_piece(data: bytearray, chance: random.Random):
    piece = chance.choice([b"\0" * PAGE, chance.randbytes(100), bytes(data[:PAGE]), b"\n\n{}", b"\xff"])
    return data + piece, f"{len(piece)} bytes more at the end"


BYTE_WAYS = [flip_bit, flip_bit, flip_bit, flip_bits, truncate, truncate, zero_page, swap_pages, random_piece, odd_number, insert_piece, remove_piece, append_piece]


# ---- text ------------------------------------------------------------------------------------------------------------


def replaced_by(make: Callable) -> Damage:
    def replace(path: Path, chance: random.Random) -> str:
        data, said = make(chance)
        path.write_bytes(data)
        return said

    return replace


def damage_json(path: Path, chance: random.Random) -> str:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise Unfit from None
    tree, said = changed_tree(tree, chance)
    path.write_bytes(as_json(tree))
    return said


def damage_json_line(path: Path, chance: random.Random) -> str:
    lines = path.read_bytes().splitlines()
    if not lines:
        raise Unfit
    number = chance.randrange(len(lines))
    tree, said = changed_tree(json.loads(lines[number]), chance)
    lines[number] = as_json(tree)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"line {number + 1}: {said}"


def damage_yaml(path: Path, chance: random.Random) -> str:
    tree, said = changed_tree(yaml.safe_load(path.read_text(encoding="utf-8")), chance)
    path.write_bytes(as_yaml(tree))
    return said


def damage_lines(path: Path, chance: random.Random) -> str:
    lines = path.read_bytes().split(b"\n")
    number = chance.randrange(len(lines))
    line, how = lines[number], chance.randrange(9)
    if how == 0:
        del lines[number]
        said = "left out"
    elif how == 1:
        lines.insert(number, line)
        said = "twice"
    elif how == 2:
        lines[number] = line + b"\xff\xfe" if chance.random() < 0.5 else b"\x80" + line
        said = "is not UTF-8"
    elif how == 3:
        lines[number] = line[: chance.randrange(len(line) + 1)]
        said = "cut"
    elif how == 4:
        lines[number] = chance.choice([b"", b"\t", b"\0" + line, line * 200, b"\r" + line, line + b"\t", b"\xc2\xa0", b"x" * 1_000_000])
        said = f"is {lines[number][:20]!r}"
    else:
        separator = next((each for each in (b"\t", b",", b" ", b"#") if each in line), b"\t")
        fields = line.split(separator)
        at = chance.randrange(len(fields))
        value = str(odd_value(chance))
        fields[at] = value.encode("utf-8", "surrogatepass")
        lines[number] = separator.join(fields)
        said = f"field {at + 1} is {short(value)}"
    path.write_bytes(b"\n".join(lines))
    return f"line {number + 1} {said}"


def damage_unpacked(path: Path, chance: random.Random) -> str:
    """The content of a ``.gz``, which is packed again."""
    content = path.with_suffix("")
    content.write_bytes(gzip.decompress(path.read_bytes()))
    said = damage_file(content, chance)
    data = content.read_bytes() if is_readable(content) else b""
    hostile.remove(content)
    path.write_bytes(gzip.compress(data[: 1 << 26]))
    return f"packed: {said}"


def exchange(path: Path, other: Path) -> str:
    """Another file of the same kind in the place of this one: other weights, another index, another run's state."""
    shutil.copyfile(other, path)
    return f"{other} in its place"
