"""The words of the demo world in English: forms of nouns and adjectives, and sentences with slots (``data/scenes/languages.py``)."""

import random

from data.scenes.mention import Mention

EN_NOUNS = {
    "circle": ["circle", "disc"], "square": ["square"], "triangle": ["triangle"], "star": ["star"],
    "cross": ["cross"], "ring": ["ring", "hoop"], "heart": ["heart"], "crescent": ["crescent", "crescent moon"],
}  # fmt: skip
EN_SIZES = {"small": ["small", "little"], "medium": ["medium-sized"], "large": ["large", "big"]}
EN_TEXTURES = {
    "plain": ["plain", "solid"], "striped": ["striped", "stripy"],
    "dotted": ["dotted", "spotted"], "checkered": ["checkered", "checked"],
}  # fmt: skip
EN_AFTER = {"striped": ["with stripes"], "dotted": ["with dots", "with spots"], "checkered": ["with checks"]}
EN_BACKGROUND_COLOURS = {"grey": "grey", "beige": "beige", "blue": "pale blue", "green": "pale green"}


def english_noun_phrase(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
    before, after = [], []
    if mention.size:
        before.append(rng.choice(EN_SIZES[mention.size]))
    colour = [mention.colour]
    if mention.texture in EN_AFTER and rng.random() < 0.25:
        after.append(rng.choice(EN_AFTER[mention.texture]))
    elif mention.texture:  # "striped red" and, less often, "red striped"; "plain" always comes first
        first = mention.texture == "plain" or rng.random() < 0.7
        colour.insert(0 if first else 1, rng.choice(EN_TEXTURES[mention.texture]))
    words = " ".join([*before, *colour, rng.choice(EN_NOUNS[mention.shape]), *after])
    article = "the" if definite else "an" if words[0] in "aeiou" else "a"
    return {"np": f"{article} {words}"}


ENGLISH = {
    "and": "and",
    "relations": {
        "left": ["to the left of {b[np]}", "left of {b[np]}"],
        "right": ["to the right of {b[np]}", "right of {b[np]}"],
        "above": ["above {b[np]}", "over {b[np]}"],
        "below": ["below {b[np]}", "under {b[np]}"],
        "beside": ["next to {b[np]}", "beside {b[np]}"],
        "front": ["in front of {b[np]}"],
        "behind": ["behind {b[np]}"],
    },
    "whole": {
        "front": ["{a[np]} overlaps {b[np]}", "{a[np]} partly covers {b[np]}"],
        "behind": ["{a[np]} is partly hidden by {b[np]}", "{a[np]} is partly covered by {b[np]}"],
    },
    "pair": [
        "{a[np]} is {rel}", "there is {a[np]} {rel}", "{rel} there is {a[np]}", "{a[np]} sits {rel}",
        "you can see {a[np]} {rel}", "{a[np]} can be seen {rel}",
    ],
    "fragment": ["{a[np]} {rel}", "a picture of {a[np]} {rel}"],
    "background": [
        "{a[np]} {rel} on {bg}", "{a[np]} is {rel}, on {bg}", "on {bg}, {a[np]} is {rel}",
        "on {bg} there is {a[np]} {rel}", "{a[np]} {rel}, against {bg}",
    ],
    "place": [" and {c[np]} is {place}", ", with {c[np]} {place}", ", while {c[np]} is {place}"],
    "also": [", and there is also {c[np]}", ", together with {c[np]}", " and there is {c[np]} too"],
    "list": [
        "{items[np]}", "the picture shows {items[np]}", "a picture of {items[np]}", "we can see {items[np]}",
        "{items[np]} are shown",
    ],
    "list_background": ["{items[np]} on {bg}", "on {bg} we see {items[np]}", "{items[np]} are drawn on {bg}"],
    "count": [
        "{n} shapes, including {items[np]}", "there are {n} shapes, among them {items[np]}",
        "the picture shows {n} objects, including {items[np]}", "among the {n} shapes are {items[np]}",
    ],
    "places": [
        "{a[np]} is {pa} and {b[np]} is {pb}", "there is {a[np]} {pa} and {b[np]} {pb}", "{a[np]} {pa}, {b[np]} {pb}",
    ],
    "place_names": {
        "top_left": ["in the top left corner", "in the upper left corner"],
        "top_right": ["in the top right corner", "in the upper right corner"],
        "bottom_left": ["in the bottom left corner", "in the lower left corner"],
        "bottom_right": ["in the bottom right corner", "in the lower right corner"],
        "centre": ["in the middle", "in the centre"],
    },
    "numbers": {3: "three", 4: "four", 5: "five"},
    "background_kinds": {
        "plain": ["a {colour} background", "a plain {colour} background"],
        "gradient": ["a shaded {colour} background", "a {colour} gradient"],
        "noise": ["a grainy {colour} background"],
        "stripes": ["a striped {colour} background"],
    },
    "background_colours": EN_BACKGROUND_COLOURS,
}  # fmt: skip
