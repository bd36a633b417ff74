"""The key of a picture in an image DB, made from its file name; and when two names may be those of one picture."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

from data.errors import BadInput


def normal_name(name: str) -> str:
    """A name in Unicode's composed form: macOS writes ``é`` as two characters, which look the same and are other bytes."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def key_of_image(image: str, template: str) -> str:
    """The key in the image DB of a picture's file name, in Unicode's composed form.

    Args:
        image: file name, with or without folders
        template: a format string of ``stem``, the name without folders and extension, ``lower``, the same in lower
            case, ``parent``, the name of the picture's folder, and ``parents``, all its folders as they are given, with ``/`` between
            them: ``{stem}.npz``, ``{parent}_{stem}.npz``; UNITER's databases: ``flickr30k_{stem:0>12}.npz``, COCO ``{lower}.npz``

    Raises:
        BadInput: the template has other fields.
    """
    path = PurePosixPath(normal_name(image))
    try:
        return template.format(
            stem=path.stem, lower=path.stem.lower(), parent=path.parent.name, parents="/".join(folders_of(image))
        )
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise BadInput(
            f"image_key {template!r} cannot be filled in ({error!r}); use {{stem}}, {{lower}}, {{parent}} or {{parents}}"
        ) from None


def folders_of(name: str) -> list[str]:
    """The folders that a file name carries."""
    return [part for part in PurePosixPath(normal_name(name)).parts[:-1] if part not in ("/", "..")]


def folders_agree(one: str, other: str) -> bool:
    """Whether two file names may be those of one picture, by their folders: as far as both name them, from the last one on."""
    pairs = zip(reversed(folders_of(one)), reversed(folders_of(other)))
    return all(first == second for first, second in pairs)


def clash_of_keys(one: str, other: str, key: str) -> str:
    """What is said of two pictures that get one key: names both, and what to do."""
    advice = "rename one of them"
    for template in ("{parent}_{stem}.npz", "{parents}/{stem}.npz"):
        if key_of_image(one, template) != key_of_image(other, template):
            advice = f"tell them apart with --image-key '{template}', of scripts/extract_regions.py and of the captions, or {advice}"
            break
    return f"pictures {one} and {other} both get the key {key}; {advice}"
