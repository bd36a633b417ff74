"""An image as the query, whatever it is given as."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import BadInput
from data.regions.db import RegionDB, Regions
from data.regions.keys import normal_name
from model.retrieval.own_pictures import OwnPictures, is_picture_file
from model.retrieval.queries import described

ImageQuery = str | Path | Regions | np.ndarray
"""An id of the region database, a picture file, regions, or an embedding [D]."""


def is_several(image: Any) -> bool:
    """Whether a query of images is a list of them; a list of numbers is one embedding."""
    return isinstance(image, list | tuple) and (not image or not all(isinstance(each, numbers.Number) for each in image))


def read_image(image: ImageQuery, pictures: OwnPictures | None, regions: RegionDB | None, place: str) -> Regions | np.ndarray:
    """The regions of an image, or its embedding [D].

    Args:
        pictures: extracts the regions of picture files
        regions: what ids are looked up in
        place: where the index is, for messages

    Raises:
        BadInput: an id that is unknown, or no database to look it up in; a picture that cannot be read; anything else.
    """
    if isinstance(image, str | Path) and pictures is not None and not (regions and str(image) in regions):
        if Path(image).is_file() if isinstance(image, Path) else is_picture_file(image):
            image = pictures.regions(image)
    if isinstance(image, str | Path):
        if regions is None:
            raise BadInput(f"{place}: image {str(image)!r} is no picture file that is there, and a key is looked up in a region database: give --regions IMG_DB")
        key = str(image)
        image = regions.get(key if key in regions else normal_name(key), soft_labels=False)
    if isinstance(image, Regions):
        return image
    expected = "give an image id, Regions(features, norm_bb, conf, None) or an embedding [D]"
    try:
        vector = None if image is None or isinstance(image, bytes | bytearray) else np.asarray(image, np.float32)
    except (TypeError, ValueError):
        vector = None
    if vector is None:
        raise BadInput(f"{place}: an image cannot be {described(image)}: {expected}")
    if vector.ndim != 1:
        raise BadInput(f"{place}: an array of shape {vector.shape}: {expected}")
    return vector
