"""Unpack an archive that was fetched."""

import re
import shutil
import zipfile
from pathlib import Path

from data.errors import BadInput, reason_of
from data.progress import ProgressBar
from data.storage.atomic import atomic_folder, cannot_write_is_bad_input
from data.storage.inflating import check_inflated
from data.storage.regular_files import check_regular
from data.storage.tar_files import ends_as_a_tar, open_tar


def unpack_archive(path: Path, folder: Path) -> int:
    """Unpack a zip or tar archive → number of its members, 0 where it was unpacked before; a mark of that stays in ``folder``.

    Raises:
        BadInput: a damaged archive, one that would write outside of ``folder`` or has a file where a folder stands there, or one that
            becomes far more than it has bytes.
    """
    done = folder / f".{path.name}.unpacked"
    if done.exists() and done.stat().st_mtime >= path.stat().st_mtime:
        return 0
    content = folder / f".{path.name}.content"
    shutil.rmtree(content, ignore_errors=True)  # of a run that was killed
    check_regular(path)
    packed = path.stat().st_size
    try:
        with atomic_folder(content) as partial:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
                    if leading_out := [name for name in names if ".." in re.split(r"[/\\]", name) or re.match(r"[/\\]|\w:", name)]:
                        raise ValueError(f"{leading_out[0]!r} leads out of the folder")  # extract() would write it under another name
                    check_inflated(sum(member.file_size for member in archive.infolist()), packed, "its files")
                    for name in ProgressBar(names, f"unpacking {path.name}", unit="file"):
                        archive.extract(name, partial)
            else:
                with open_tar(path) as archive:
                    names = archive.getnames()
                    check_inflated(sum(member.size for member in archive), packed, "its files")
                    for member in ProgressBar(archive, f"unpacking {path.name}", len(names), unit="file"):
                        if member.sparse:
                            raise ValueError(f"{member.name} is a sparse file, which is not unpacked")
                        archive.extract(member, partial, filter="data")
                    if not ends_as_a_tar(archive):
                        raise ValueError(f"what stands at byte {archive.offset:,} is neither a file's header nor the end of a tar")
    except BadInput:  # of the disk that is written to
        raise
    except Exception as error:  # whatever zip, tar and what they are packed with raise on damaged bytes
        raise BadInput(f"{path}: cannot be unpacked ({reason_of(error)}); delete it and fetch it again") from None
    _move_into(folder, content)
    shutil.rmtree(content)
    done.touch()
    return len(names)


def _move_into(folder: Path, content: Path) -> None:
    """Move what ``content`` holds to ``folder``, links as links; files that are there are replaced, folders get what is new."""
    for path in sorted(content.iterdir()):
        target = folder / path.name
        if path.is_dir() and not path.is_symlink() and target.is_dir():
            _move_into(target, path)
        else:
            with cannot_write_is_bad_input(target):
                path.replace(target)
