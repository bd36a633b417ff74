"""The key of a picture in an image DB, made from its file name."""

from __future__ import annotations

from pathlib import PurePosixPath

from data.errors import BadInput


def key_of_image(image: str, template: str) -> str:
    """The key in the image DB of a picture's file name.

    Args:
        image: file name, with or without folders
        template: a format string of ``stem``, the name without folders and extension, and ``lower``, the same in lower
            case: ``{stem}.npz``; UNITER's databases: ``flickr30k_{stem:0>12}.npz``, COCO ``{lower}.npz``

    Raises:
        BadInput: the template has other fields.
    """
    stem = PurePosixPath(image).stem
    try:
        return template.format(stem=stem, lower=stem.lower())
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise BadInput(f"image_key {template!r} cannot be filled in ({error!r}); use {{stem}} or {{lower}}") from None
