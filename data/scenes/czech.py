"""The words of the demo world in Czech: forms of nouns and adjectives, and sentences with slots (``data/scenes/languages.py``)."""

import random

from data.scenes.mention import Mention

# gender (all masculines are inanimate), then nominative, genitive, accusative, instrumental singular
CS_NOUNS = {
    "circle": [("m", "kruh", "kruhu", "kruh", "kruhem")],
    "square": [("m", "čtverec", "čtverce", "čtverec", "čtvercem")],
    "triangle": [("m", "trojúhelník", "trojúhelníku", "trojúhelník", "trojúhelníkem")],
    "star": [("f", "hvězda", "hvězdy", "hvězdu", "hvězdou")],
    "cross": [("m", "kříž", "kříže", "kříž", "křížem")],
    "ring": [("m", "prstenec", "prstence", "prstenec", "prstencem")],
    "heart": [("n", "srdce", "srdce", "srdce", "srdcem")],
    "crescent": [("m", "půlměsíc", "půlměsíce", "půlměsíc", "půlměsícem")],
}
CS_CASES = ("nom", "gen", "acc", "ins")
CS_ENDINGS = {  # hard adjectives: mladý
    "m": {"nom": "ý", "gen": "ého", "acc": "ý", "ins": "ým"},
    "f": {"nom": "á", "gen": "é", "acc": "ou", "ins": "ou"},
    "n": {"nom": "é", "gen": "ého", "acc": "é", "ins": "ým"},
}
CS_COLOURS = {
    "red": "červen", "orange": "oranžov", "yellow": "žlut", "green": "zelen",
    "blue": "modr", "purple": "fialov", "pink": "růžov", "black": "čern",
}  # fmt: skip
CS_SIZES = {"small": "mal", "medium": "středně velk", "large": "velk"}
CS_TEXTURES = {"plain": "jednobarevn", "striped": "pruhovan", "dotted": "puntíkovan", "checkered": "kostkovan"}
CS_AFTER = {"striped": "s pruhy", "dotted": "s puntíky", "checkered": "s kostkovaným vzorem"}


def czech_noun_phrase(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
    gender, *noun_forms = rng.choice(CS_NOUNS[mention.shape])
    texture_after = mention.texture in CS_AFTER and rng.random() < 0.25
    stems = [CS_COLOURS[mention.colour]]
    if mention.texture and not texture_after:
        stems.insert(0 if mention.texture == "plain" else rng.choice((0, 1)), CS_TEXTURES[mention.texture])
    if mention.size:
        stems.insert(0, CS_SIZES[mention.size])
    after = f" {CS_AFTER[mention.texture]}" if texture_after else ""
    forms = {
        case: " ".join([*(stem + CS_ENDINGS[gender][case] for stem in stems), noun]) + after
        for case, noun in zip(CS_CASES, noun_forms)
    }
    return {**forms, "ending": CS_ENDINGS[gender]["nom"]}


CZECH = {
    "and": "a",
    "relations": {
        "left": ["vlevo od {b[gen]}", "nalevo od {b[gen]}"],
        "right": ["vpravo od {b[gen]}", "napravo od {b[gen]}"],
        "above": ["nad {b[ins]}"],
        "below": ["pod {b[ins]}"],
        "beside": ["vedle {b[gen]}", "poblíž {b[gen]}"],
        "front": ["před {b[ins]}"],
        "behind": ["za {b[ins]}"],
    },
    "whole": {
        "front": ["{a[nom]} částečně zakrývá {b[acc]}", "{a[nom]} zakrývá část {b[gen]}"],
        "behind": ["{a[nom]} je částečně zakryt{a[ending]} {b[ins]}"],
    },
    "pair": [
        "{a[nom]} je {rel}", "{a[nom]} se nachází {rel}", "vidíme {a[acc]} {rel}", "{rel} je {a[nom]}",
        "na obrázku je {a[nom]} {rel}", "{rel} vidíme {a[acc]}",
    ],
    "fragment": ["{a[nom]} {rel}"],  # "obrázek s ..." would need "se" before some words
    "background": [
        "{a[nom]} {rel} na {bg}", "na {bg} je {a[nom]} {rel}", "na {bg} vidíme {a[acc]} {rel}",
        "na {bg} se nachází {a[nom]} {rel}",
    ],
    "place": [" a {c[nom]} je {place}", ", zatímco {c[nom]} je {place}"],
    "also": [", navíc je tu {c[nom]}", " a je tu také {c[nom]}", " a kromě toho vidíme {c[acc]}"],
    "list": ["{items[nom]}", "vidíme {items[acc]}", "na obrázku vidíme {items[acc]}", "na obrázku jsou {items[nom]}"],
    "list_background": ["{items[nom]} na {bg}", "na {bg} vidíme {items[acc]}", "na {bg} jsou {items[nom]}"],
    "count": ["{n}, mezi nimi {items[nom]}", "na obrázku {be} {n}, mezi nimi {items[nom]}"],
    "places": ["{a[nom]} je {pa} a {b[nom]} {pb}", "{a[nom]} {pa}, {b[nom]} {pb}"],
    "place_names": {
        "top_left": ["vlevo nahoře", "v levém horním rohu"],
        "top_right": ["vpravo nahoře", "v pravém horním rohu"],
        "bottom_left": ["vlevo dole", "v levém dolním rohu"],
        "bottom_right": ["vpravo dole", "v pravém dolním rohu"],
        "centre": ["uprostřed", "uprostřed obrázku"],
    },
    "numbers": {3: "tři tvary", 4: "čtyři tvary", 5: "pět tvarů"},
    "background_kinds": {  # locative
        "plain": ["{colour} pozadí", "jednobarevném {colour} pozadí"],
        "gradient": ["{colour} pozadí s plynulým přechodem"],
        "noise": ["zrnitém {colour} pozadí"],
        "stripes": ["pruhovaném {colour} pozadí"],
    },
    "background_colours": {
        "grey": "šedém", "beige": "béžovém", "blue": "světle modrém", "green": "světle zeleném",
    },
}  # fmt: skip
