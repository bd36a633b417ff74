"""What stands in the place of a file to harm who reads it: a pipe, an endless device, a program, a bomb, a way out of a folder."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

ESCAPED = "ESCAPED"  # a file of this name must never appear
HUGE = "a sparse file of 256 GB"
BOMB = 1 << 31  # bytes that a few million stand for


def replace_file(path: Path, chance: random.Random) -> str:
    """Put something else where a file was → what."""
    path.unlink()
    ways = [pipe, endless, folder, dangling, loop, unreadable, huge, nothing, program]
    suffix = path.suffix
    if suffix == ".npz":
        ways += [npz_bomb, npz_bomb, object_array, zip_program]
    elif suffix == ".npy":
        ways += [object_array, npy_bomb]
    elif suffix == ".gz":
        ways += [gzip_bomb] * 3
    elif suffix in (".pt", ".bin", ".pkl"):
        ways += [zip_program, program, program, old_program]
    elif suffix in (".tar", ".zip"):
        ways += [escaping_archive] * 6
    elif suffix in (".jpg", ".png"):
        ways += [picture_bomb, picture_text_bomb]
    return chance.choice(ways)(path)


class Program:
    """Unpickled it runs a command."""

    def __reduce__(self):
        return os.system, (f"touch {ESCAPED}",)


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "a pipe that nobody writes to"


def endless(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero"


def folder(path: Path) -> str:
    path.mkdir()
    return "a folder"


def dangling(path: Path) -> str:
    path.symlink_to("nowhere")
    return "a link to nowhere"


def loop(path: Path) -> str:
    path.symlink_to(path.name)
    return "a link to itself"


def unreadable(path: Path) -> str:
    path.write_bytes(b"x")
    path.chmod(0)
    return "a file that may not be read"


def huge(path: Path) -> str:
    with open(path, "wb") as file:
        file.truncate(1 << 38)
    return HUGE


def nothing(path: Path) -> str:
    return "no file"


def program(path: Path) -> str:
    path.write_bytes(pickle.dumps(Program(), protocol=2))
    return "a pickle that calls os.system"


def old_program(path: Path) -> str:
    path.write_bytes(pickle.dumps(Program(), protocol=0) + pickle.dumps([Program()], protocol=4))
    return "two pickles that call os.system"


def zip_program(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("archive/data.pkl", "scores.npy", "features.npy"):
            archive.writestr(name, pickle.dumps({"weight": Program()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return "a zip file with pickles that call os.system"


def object_array(path: Path) -> str:
    array = np.array([Program()], dtype=object)
    if path.suffix == ".npy":
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, features=array, scores=array, bbox=array, txt_ids=array, txt_ranks=array)
    return "arrays of objects that call os.system"


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npy_bomb(path: Path) -> str:
    path.write_bytes(npy_header((1 << 40, 1 << 10)) + bytes(100))
    return "an array of 2^50 numbers in 228 bytes"


def npz_bomb(path: Path) -> str:
    header = npy_header((BOMB >> 5,))
    pieces, packer = [], zlib.compressobj(1, wbits=-15)
    size, check = len(header) + (BOMB >> 3), zlib.crc32(header)
    pieces.append(packer.compress(header))
    block = bytes(1 << 20)
    for _ in range(BOMB >> 23):
        pieces.append(packer.compress(block))
        check = zlib.crc32(block, check)
    packed = b"".join([*pieces, packer.flush()])
    names = [b"scores.npy", b"features.npy", b"bbox.npy", b"candidates.npy", b"txt_ranks.npy"]
    with open(path, "wb") as file:
        listing = []
        for name in names:
            fixed = struct.pack("<HHHIIIIHH", 20, 0, 8, 0x21 << 16, check, len(packed), size, len(name), 0)
            listing.append(b"PK\1\2\x14\0" + fixed + struct.pack("<HHHII", 0, 0, 0, 0, file.tell()) + name)
            file.write(b"PK\3\4" + fixed + name + packed)
        start, listed = file.tell(), b"".join(listing)
        file.write(listed + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(names), len(names), len(listed), start, 0))
    return f"five arrays of {BOMB >> 5} numbers, {BOMB >> 23} MB each unpacked, in {path.stat().st_size >> 10} KB"


def gzip_bomb(path: Path) -> str:
    with gzip.open(path, "wb", 1) as file:
        for _ in range(600):
            file.write(b"x" * (1 << 20))
    return "600 MB of one line, packed"


def escaping_archive(path: Path) -> str:
    """Members with names that lead out, links that lead out, and files behind them."""
    names = [f"../{ESCAPED}", f"a/../../{ESCAPED}", f"..\\{ESCAPED}", f"./../{ESCAPED}.jpg"]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "x")
        return "a zip file whose names lead out of the folder"
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        for kind, target in ((tarfile.SYMTYPE, ".."), (tarfile.LNKTYPE, "../captions.jsonl"), (tarfile.FIFOTYPE, ""), (tarfile.CHRTYPE, "")):
            member = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            member.type, member.linkname = kind, target
            archive.addfile(member)
        member = tarfile.TarInfo(f"link{tarfile.SYMTYPE.decode()}.jpg/{ESCAPED}")
        archive.addfile(member)
    return "a tar file whose names and links lead out of the folder"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture_bomb(path: Path) -> str:
    side = 30_000
    packed = zlib.compress(bytes(1 << 24), 9)
    data = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)) + png_chunk(b"IDAT", packed)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + png_chunk(b"IEND", b""))
    return f"a picture of {side} x {side} pixels in {path.stat().st_size} bytes"


def picture_text_bomb(path: Path) -> str:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 28), 9))
    data = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + text * 4 + png_chunk(b"IDAT", zlib.compress(bytes(13 * 4)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + png_chunk(b"IEND", b""))
    return "a small picture with a comment of 1 GB, packed"


def remove(path: Path) -> None:
    """Whatever stands there."""
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
