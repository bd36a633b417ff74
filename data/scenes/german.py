"""The words of the demo world in German: forms of nouns and adjectives, and sentences with slots (``data/scenes/languages.py``)."""

import random

from data.scenes.mention import Mention

# gender, then nominative, accusative, dative, genitive singular
DE_NOUNS = {
    "circle": [("m", "Kreis", "Kreis", "Kreis", "Kreises"), ("f", "Scheibe", "Scheibe", "Scheibe", "Scheibe")],
    "square": [("n", "Quadrat", "Quadrat", "Quadrat", "Quadrats")],
    "triangle": [("n", "Dreieck", "Dreieck", "Dreieck", "Dreiecks")],
    "star": [("m", "Stern", "Stern", "Stern", "Sterns")],
    "cross": [("n", "Kreuz", "Kreuz", "Kreuz", "Kreuzes")],
    "ring": [("m", "Ring", "Ring", "Ring", "Rings")],
    "heart": [("n", "Herz", "Herz", "Herzen", "Herzens")],
    "crescent": [("f", "Mondsichel", "Mondsichel", "Mondsichel", "Mondsichel")],
}
DE_CASES = ("nom", "acc", "dat", "gen")
DE_INDEFINITE = {
    "m": {"nom": "ein", "acc": "einen", "dat": "einem", "gen": "eines"},
    "f": {"nom": "eine", "acc": "eine", "dat": "einer", "gen": "einer"},
    "n": {"nom": "ein", "acc": "ein", "dat": "einem", "gen": "eines"},
}
DE_DEFINITE = {
    "m": {"nom": "der", "acc": "den", "dat": "dem", "gen": "des"},
    "f": {"nom": "die", "acc": "die", "dat": "der", "gen": "der"},
    "n": {"nom": "das", "acc": "das", "dat": "dem", "gen": "des"},
}
DE_VON_DEFINITE = {"m": "vom", "f": "von der", "n": "vom"}
# adjective endings after "ein" and after "der"
DE_MIXED = {
    "m": {"nom": "er", "acc": "en", "dat": "en", "gen": "en"},
    "f": {"nom": "e", "acc": "e", "dat": "en", "gen": "en"},
    "n": {"nom": "es", "acc": "es", "dat": "en", "gen": "en"},
}
DE_WEAK = {
    "m": {"nom": "e", "acc": "en", "dat": "en", "gen": "en"},
    "f": {"nom": "e", "acc": "e", "dat": "en", "gen": "en"},
    "n": {"nom": "e", "acc": "e", "dat": "en", "gen": "en"},
}
DE_COLOURS = {
    "red": "rot", "orange": "orangefarben", "yellow": "gelb", "green": "grün",
    "blue": "blau", "purple": "violett", "pink": "rosa", "black": "schwarz",
}  # fmt: skip
DE_INVARIABLE = {"rosa", "einfarbig"}  # "einfarbig rot": an adverb here
DE_SIZES = {"small": "klein", "medium": "mittelgroß", "large": "groß"}
DE_TEXTURES = {"plain": "einfarbig", "striped": "gestreift", "dotted": "gepunktet", "checkered": "kariert"}
DE_AFTER = {"striped": "mit Streifen", "dotted": "mit Punkten", "checkered": "mit Karomuster"}


def german_noun_phrase(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
    gender, *noun_forms = rng.choice(DE_NOUNS[mention.shape])
    texture_after = mention.texture in DE_AFTER and rng.random() < 0.3
    stems = [DE_SIZES[mention.size]] if mention.size else []
    if mention.texture and not texture_after:
        stems.append(DE_TEXTURES[mention.texture])
    stems.append(DE_COLOURS[mention.colour])
    after = f" {DE_AFTER[mention.texture]}" if texture_after else ""

    article, ending = (DE_DEFINITE, DE_WEAK) if definite else (DE_INDEFINITE, DE_MIXED)
    forms = {}
    for case, noun in zip(DE_CASES, noun_forms):
        adjectives = [stem if stem in DE_INVARIABLE else stem + ending[gender][case] for stem in stems]
        forms[f"bare_{case}"] = " ".join([*adjectives, noun]) + after
        forms[case] = f"{article[gender][case]} {forms[f'bare_{case}']}"
    von = DE_VON_DEFINITE[gender] if definite else f"von {DE_INDEFINITE[gender]['dat']}"
    return {**forms, "von": f"{von} {forms['bare_dat']}"}


GERMAN = {
    "and": "und",
    "relations": {
        "left": ["links {b[von]}"],
        "right": ["rechts {b[von]}"],
        "above": ["über {b[dat]}", "oberhalb {b[gen]}"],
        "below": ["unter {b[dat]}", "unterhalb {b[gen]}"],
        "beside": ["neben {b[dat]}"],
        "front": ["vor {b[dat]}"],
        "behind": ["hinter {b[dat]}"],
    },
    "whole": {
        "front": ["{a[nom]} überdeckt teilweise {b[acc]}", "{a[nom]} verdeckt einen Teil {b[gen]}"],
        "behind": ["{a[nom]} wird teilweise {b[von]} verdeckt"],
    },
    "pair": [
        "{a[nom]} befindet sich {rel}", "{a[nom]} ist {rel} zu sehen", "{rel} befindet sich {a[nom]}",
        "man sieht {a[acc]} {rel}", "es gibt {a[acc]} {rel}", "{rel} liegt {a[nom]}",
    ],
    "fragment": ["{a[nom]} {rel}", "ein Bild mit {a[dat]} {rel}"],
    "background": [
        "{a[nom]} {rel} auf {bg}", "auf {bg} befindet sich {a[nom]} {rel}", "auf {bg} sieht man {a[acc]} {rel}",
    ],
    "place": [" und {c[nom]} befindet sich {place}", ", während {c[nom]} {place} zu sehen ist"],
    "also": [", dazu kommt {c[nom]}", " und außerdem gibt es {c[acc]}"],
    "list": ["{items[nom]}", "das Bild zeigt {items[acc]}", "man sieht {items[acc]}", "zu sehen sind {items[nom]}"],
    "list_background": ["{items[nom]} auf {bg}", "auf {bg} sieht man {items[acc]}", "auf {bg} sind {items[nom]} zu sehen"],
    "count": [
        "{n} Formen, darunter {items[nom]}", "unter den {n} Formen sind {items[nom]}",
        "das Bild zeigt {n} Figuren, darunter {items[acc]}",
    ],
    "places": ["{a[nom]} befindet sich {pa} und {b[nom]} {pb}", "{a[nom]} {pa}, {b[nom]} {pb}"],
    "place_names": {
        "top_left": ["oben links", "in der linken oberen Ecke"],
        "top_right": ["oben rechts", "in der rechten oberen Ecke"],
        "bottom_left": ["unten links", "in der linken unteren Ecke"],
        "bottom_right": ["unten rechts", "in der rechten unteren Ecke"],
        "centre": ["in der Mitte"],
    },
    "numbers": {3: "drei", 4: "vier", 5: "fünf"},
    "background_kinds": {  # dative
        "plain": ["{colour} Hintergrund", "einfarbig {colour} Hintergrund"],
        "gradient": ["{colour} Hintergrund mit Farbverlauf"],
        "noise": ["körnigem {colour} Hintergrund"],
        "stripes": ["gestreiftem {colour} Hintergrund"],
    },
    "background_colours": {
        "grey": "grauem", "beige": "beigefarbenem", "blue": "hellblauem", "green": "hellgrünem",
    },
}  # fmt: skip
