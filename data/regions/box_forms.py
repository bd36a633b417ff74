"""Boxes as other people's files hold them: in pixels or fractions, by two corners or by a corner and a size.

No file says in which form its boxes are, so the form is recognised: the one in which every box of every image lies inside its image
and ends after it begins. What fits several forms that mean different boxes is refused: the reader's user says which it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from data.errors import BadInput

SLACK = 1 / 100  # of fractions: detectors round up to a pixel or two beyond the edge, half precision rounds sums
PIXEL_SLACK = 2  # of widths and heights: some count the last pixel in
LOOK_AT, LOOK_AT_MOST = 50, 1000  # images by which a form is recognised, and those where fewer do not tell

BoxUnits = Literal["auto", "pixels", "fractions"]
BoxFormat = Literal["auto", "xyxy", "xywh", "yxyx"]
SizeOrder = Literal["auto", "wh", "hw"]
OPTIONS = {"units": "--box-units", "format": "--box-format", "size_order": "--size-order"}  # of scripts/extract_regions.py


@dataclass(frozen=True)
class BoxForm:
    """How boxes are written; ``auto`` is to be recognised.

    Args:
        units: pixels, or fractions of the image's width and height
        format: xyxy two corners, xywh a corner and width and height, yxyx two corners with the vertical first (never recognised:
            it fits wherever xyxy does, and where that fits no image it looks like sizes that are swapped)
        size_order: wh takes an image's width and height as they are given, hw swaps them
    """

    units: BoxUnits = "auto"
    format: BoxFormat = "auto"
    size_order: SizeOrder = "auto"

    def __post_init__(self) -> None:
        for name, values in (("units", BoxUnits), ("format", BoxFormat), ("size_order", SizeOrder)):
            if getattr(self, name) not in get_args(values):
                expected = ", ".join(get_args(values))
                raise BadInput(f"{OPTIONS[name]}: found {getattr(self, name)}, expected one of {expected}")

    def __str__(self) -> str:
        return f"{self.units} {self.format}" + " with width and height swapped" * (self.size_order == "hw")


class StoredBoxes(NamedTuple):
    """The boxes of one image as they are stored.

    Args:
        values: float [n, 4 to 7]
        size: width and height of the image, as far as they are known
        order: which of the size's numbers is the width: known (never swapped), named (swapped where asked; where no image of the
            source fits otherwise, the boxes may as well have the vertical first, so that the user is asked), unknown (both are tried)
        normalised: the name of the array says that these are fractions
    """

    values: np.ndarray
    size: tuple[float, float] | None
    order: Literal["known", "named", "unknown"]
    normalised: bool


def corners_of(boxes: StoredBoxes, form: BoxForm) -> np.ndarray:
    """float [n, 4]: x1 y1 x2 y2 as fractions of the image, in a form without ``auto``.

    Raises:
        ValueError: boxes that cannot be of this form; it says which and why.
    """
    values = boxes.values
    corners = values[:, [1, 0, 3, 2]] if form.format == "yxyx" else values[:, :4].copy()
    if form.format == "xywh":
        if (negative := (corners[:, 2:] < 0).any(1)).any():
            raise ValueError(f"box {negative.argmax()} has a width or height below 0: {values[negative.argmax()].tolist()}")
        corners[:, 2:] += corners[:, :2]
    extent = corners[:, 2:] - corners[:, :2]
    slack = SLACK if form.units == "fractions" else PIXEL_SLACK
    if values.shape[1] > 5 and not np.allclose(values[:, 4:6], extent, atol=slack):
        raise ValueError("columns 5 and 6 of the boxes are not their widths and heights")
    if values.shape[1] == 5 and not _is_share(values[:, 4]) and not np.allclose(values[:, 4], extent.prod(1), rtol=0.05):
        raise ValueError("column 5 of the boxes is no confidence and no area; expected x1 y1 x2 y2 in the first four")
    if form.units == "pixels":
        if boxes.size is None:
            raise ValueError("boxes are in pixels and the image's size is not known; give --sizes")
        if values.size and values[:, :4].max() <= 1 + SLACK:
            raise ValueError("all boxes lie within one pixel: these are fractions (--box-units)")
        size = boxes.size[::-1] if form.size_order == "hw" and boxes.order != "known" else boxes.size
        if min(size) <= 0:
            raise ValueError(f"the image's width and height are {size[0]:g} and {size[1]:g}")
        corners = corners / [*size, *size]
    if corners.size and not _is_share(corners):
        raise ValueError(
            f"a box ends at {corners[:, 2].max():.3f} of the width and {corners[:, 3].max():.3f} of the height and begins at "
            f"{corners[:, 0].min():.3f} and {corners[:, 1].min():.3f}; are width and height swapped (--size-order), or is it another form "
            "(--box-format, --box-units)?"
        )
    if (inverted := (corners[:, 2:] < corners[:, :2]).any(1)).any():
        raise ValueError(f"box {inverted.argmax()} ends before it begins: {corners[inverted.argmax()].round(3).tolist()}")
    return corners.clip(0, 1)


def _is_share(values: np.ndarray) -> bool:
    return bool(((values >= -SLACK) & (values <= 1 + SLACK)).all())


def plausible_forms(boxes: StoredBoxes, asked: BoxForm) -> dict[BoxForm, np.ndarray]:
    """The forms of what is asked for that fit, and the corners that each means."""
    fitting = {}
    for form in _candidates(boxes, asked):
        try:
            fitting[form] = corners_of(boxes, form)
        except ValueError:
            continue
    return fitting


def _candidates(boxes: StoredBoxes, asked: BoxForm) -> list[BoxForm]:
    units = ["fractions"] if boxes.normalised else ["pixels", "fractions"]
    units = units if asked.units == "auto" else [asked.units]
    formats = ["xyxy", "xywh"] if asked.format == "auto" else [asked.format]
    forms = [BoxForm(*pair, "wh" if asked.size_order == "auto" else asked.size_order) for pair in itertools.product(units, formats)]
    if asked.size_order == "auto" and boxes.size and boxes.order == "unknown":
        forms += [replace(form, size_order="hw") for form in forms if form.units == "pixels"]
    return forms


def recognise_form(images: Callable[[], Iterable[tuple[str, StoredBoxes]]], asked: BoxForm, source: str) -> BoxForm:
    """The form of all of a source's boxes: it is one, so an image that tells nothing is read as the others are.

    Args:
        images: goes through name and boxes of its images; the first ``LOOK_AT`` are looked at, more where these leave it open
        asked: what the user says
        source: for messages

    Returns: a form without ``auto``; where no image fits any, the first, with which each image gets its own message

    Raises:
        BadInput: several forms fit and mean different boxes, or images are of different forms.
    """
    found = _only_form(images(), asked, source)
    if found is None and asked.size_order == "auto":
        swapped = ((name, boxes._replace(order="unknown")) for name, boxes in images() if boxes.order == "named")
        found = _only_form(swapped, asked, source)
        if found is not None and found.format == "xyxy" and asked.format == "auto":
            rows_first = replace(found, format="yxyx", size_order="wh")
            raise BadInput(f"{source}: boxes fit several forms: {_listed([found, rows_first])}; {_advice([found, rows_first])}")
    if found is None:
        _, boxes = next(iter(images()), ("", StoredBoxes(np.zeros((0, 4)), None, "known", True)))
        forms = _candidates(boxes, asked)
        found = forms[-1] if boxes.values.max(initial=0) <= 1 + SLACK else forms[0]
    return found


def _only_form(images: Iterable[tuple[str, StoredBoxes]], asked: BoxForm, source: str) -> BoxForm | None:
    seen: list[dict[BoxForm, np.ndarray]] = []
    left: dict[BoxForm, str] = {}  # form → the last image that fits it
    for number, (name, boxes) in enumerate(itertools.islice(images, LOOK_AT_MOST)):
        fitting = plausible_forms(boxes, asked)
        if not fitting:
            continue  # a bad image: it is reported when it is read
        if left and not left.keys() & fitting.keys():
            raise BadInput(
                f"{source}: boxes are of different forms: {next(iter(left.values()))} fits {_listed(left)}, {name} fits "
                f"{_listed(fitting)}; {_advice([*left, *fitting])}"
            )
        left = {form: name for form in fitting if form in left or not seen}
        seen.append(fitting)
        if number + 1 >= LOOK_AT and not _several(left, seen):
            break
    if _several(left, seen):
        raise BadInput(f"{source}: boxes fit several forms: {_listed(left)}; {_advice(list(left))}")
    return next(iter(left), None)


def _several(left: dict[BoxForm, str], seen: list[dict[BoxForm, np.ndarray]]) -> bool:
    """Whether the forms that are left mean different boxes."""
    first = next(iter(left), None)
    return any(not np.allclose(fitting[form], fitting[first], atol=1e-6) for fitting in seen for form in left)


def _listed(forms: Iterable[BoxForm]) -> str:
    return " and ".join(map(str, forms))


def _advice(forms: list[BoxForm]) -> str:
    """The options that decide between forms."""
    words = []
    for name, option in OPTIONS.items():
        values = list(dict.fromkeys(getattr(form, name) for form in forms))
        if len(values) > 1:
            words.append(f"{option} {' or '.join(values)}")
    return f"say which: {', '.join(words)}"
