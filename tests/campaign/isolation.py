"""Children that can harm nothing but their own folder, where this process may see to that: they are nobody, with little memory and few
processes, and see file systems of their own."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
MEMORY = 1536 << 20  # bytes of its own that a command may ask for, beyond what this process has
FILE_SIZE = 512 << 20
PROCESSES = 300
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
CLONE_NEWNS, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 32, 4096, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | Path, target: str | Path, kind: str, flags: int = 0, options: str = "") -> bool:
    return _libc.mount(str(source).encode(), str(target).encode(), kind.encode(), flags, options.encode()) == 0


def own_mounts() -> bool:
    """From here on this process and its children mount for themselves alone; False where that is not allowed."""
    return os.getuid() == 0 and _libc.unshare(CLONE_NEWNS) == 0 and mount("none", "/", "", MS_REC | MS_PRIVATE)


def mount_small(folder: Path, size: int) -> bool:
    """A file system of so many bytes in the place of a folder, nobody's; False where that is not allowed."""
    return own_mounts() and mount("tmpfs", folder, "tmpfs", 0, f"size={size},mode=755,uid={NOBODY},gid={NOBODY}")


def resize(folder: Path, size: int) -> None:
    mount("tmpfs", folder, "tmpfs", MS_REMOUNT, f"size={size}")


def is_nobody_possible() -> bool:
    """Whether children can be nobody: this process is root, and nobody can read Python, its packages and this repository.

    Where these stand below a folder that is root's alone, such as /root, another folder takes its place, for this process and its
    children, in which they are found under the same names.
    """
    needed = sorted({os.path.realpath(place) for place in (sys.base_prefix, sys.prefix, ROOT, *filter(os.path.isdir, sys.path))})
    if os.getuid() != 0:
        return False
    closed = {parent for place in needed for parent in Path(place, "x").parents if not parent.stat().st_mode & 0o001}
    if not closed:
        return True
    top = min(closed, key=lambda folder: len(folder.parts))
    inside = [place for place in needed if Path(place).is_relative_to(top)]
    inside = [place for place in inside if not any(place != other and Path(place).is_relative_to(other) for other in inside)]
    if top in map(Path, inside) or not own_mounts():
        return False
    opened = {place: os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in inside}
    if not mount("tmpfs", top, "tmpfs", 0, "mode=755"):
        return False
    for place, descriptor in opened.items():
        Path(place).mkdir(parents=True)
        if not mount(f"/proc/self/fd/{descriptor}", place, "", MS_BIND | MS_REC):
            raise RuntimeError(f"{place}: cannot be seen any more")
        os.close(descriptor)
    return True


_drops = False


def isolate() -> bool:
    """Let children be nobody where that is possible → whether it is."""
    global _drops
    _drops = is_nobody_possible()
    return _drops


def become_nobody() -> None:
    """From here on, where `isolate` said so."""
    if _drops and os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own /proc is closed to it


def end_with_parent() -> None:
    """From now on, be killed when the process that forked this one dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def give_to_nobody(*folders: Path) -> None:
    """Folders with what is in them."""
    if _drops and os.getuid() == 0:
        for folder in folders:
            for path in (folder, *folder.rglob("*")):
                os.lchown(path, NOBODY, NOBODY)


def set_limits(file_size: int) -> None:
    """Memory, size of files and number of processes of this process and what it starts."""
    data = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, data + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if os.getuid() == NOBODY:
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
