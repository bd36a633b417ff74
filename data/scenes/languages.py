"""The words of the demo world in English, German, French and Czech.

Every language is tables: the forms of its nouns and adjectives, and sentences with slots. A slot `{a[dat]}` takes one
form of a noun phrase; `noun_phrase` lists the forms of each language.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Mention:
    """One object as a caption names it; None: not said."""

    shape: str
    colour: str
    size: str | None
    texture: str | None


# ---- English --------------------------------------------------------------------------------------------------------

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


def _english(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
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

# ---- German ---------------------------------------------------------------------------------------------------------

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


def _german(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
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

# ---- French ---------------------------------------------------------------------------------------------------------

# gender, noun; "de" and "le" elide before the vowels below (no noun here has an h)
FR_NOUNS = {
    "circle": [("m", "cercle"), ("m", "disque")],
    "square": [("m", "carré")],
    "triangle": [("m", "triangle")],
    "star": [("f", "étoile")],
    "cross": [("f", "croix")],
    "ring": [("m", "anneau")],
    "heart": [("m", "cœur")],
    "crescent": [("m", "croissant"), ("m", "croissant de lune")],
}
FR_VOWELS = "aeiouéœ"
# masculine, feminine; sizes stand before the noun, colours and textures after it
FR_SIZES = {"small": ("petit", "petite"), "large": ("grand", "grande")}
FR_MEDIUM = "de taille moyenne"
FR_COLOURS = {
    "red": ("rouge", "rouge"), "orange": ("orange", "orange"), "yellow": ("jaune", "jaune"), "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"), "purple": ("violet", "violette"), "pink": ("rose", "rose"), "black": ("noir", "noire"),
}  # fmt: skip
FR_TEXTURES = {
    "plain": [("uni", "unie")],
    "striped": [("rayé", "rayée"), ("à rayures", "à rayures")],
    "dotted": [("à pois", "à pois")],
    "checkered": [("à carreaux", "à carreaux"), ("quadrillé", "quadrillée")],
}


def _french(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
    gender, noun = rng.choice(FR_NOUNS[mention.shape])
    form = "mf".index(gender)
    words = [noun, FR_COLOURS[mention.colour][form]]
    if mention.texture:
        words.append(rng.choice(FR_TEXTURES[mention.texture])[form])
    if mention.size == "medium":
        words.append(FR_MEDIUM)
    elif mention.size:
        words.insert(0, FR_SIZES[mention.size][form])
    words = " ".join(words)

    if not definite:
        article = ("un", "une")[form]
        forms = {"np": f"{article} {words}", "de": f"d'{article} {words}"}
    elif words[0] in FR_VOWELS:
        forms = {"np": f"l'{words}", "de": f"de l'{words}"}
    else:
        forms = {"np": f"{('le', 'la')[form]} {words}", "de": f"{('du', 'de la')[form]} {words}"}
    return {**forms, "e": ("", "e")[form]}


FRENCH = {
    "and": "et",
    "relations": {
        "left": ["à gauche {b[de]}"],
        "right": ["à droite {b[de]}"],
        "above": ["au-dessus {b[de]}"],
        "below": ["au-dessous {b[de]}", "sous {b[np]}"],
        "beside": ["à côté {b[de]}", "près {b[de]}"],
        "front": ["devant {b[np]}"],
        "behind": ["derrière {b[np]}"],
    },
    "whole": {
        "front": ["{a[np]} recouvre en partie {b[np]}", "{a[np]} cache une partie {b[de]}"],
        "behind": ["{a[np]} est partiellement caché{a[e]} par {b[np]}", "{a[np]} est en partie masqué{a[e]} par {b[np]}"],
    },
    "pair": [
        "{a[np]} se trouve {rel}", "{a[np]} est situé{a[e]} {rel}", "il y a {a[np]} {rel}", "on voit {a[np]} {rel}",
        "{rel} se trouve {a[np]}", "{rel}, il y a {a[np]}",
    ],
    "fragment": ["{a[np]} {rel}", "une image avec {a[np]} {rel}"],
    "background": [
        "{a[np]} {rel} sur {bg}", "sur {bg}, {a[np]} se trouve {rel}", "sur {bg}, on voit {a[np]} {rel}",
        "{a[np]} est placé{a[e]} {rel}, sur {bg}",
    ],
    "place": [" et {c[np]} se trouve {place}", ", tandis qu'{c[np]} est {place}"],
    "also": [", et il y a aussi {c[np]}", " et on voit aussi {c[np]}", ", avec en plus {c[np]}"],
    "list": ["{items[np]}", "l'image montre {items[np]}", "on voit {items[np]}", "il y a {items[np]}"],
    "list_background": ["{items[np]} sur {bg}", "sur {bg}, on voit {items[np]}", "il y a {items[np]} sur {bg}"],
    "count": [
        "{n} formes, dont {items[np]}", "parmi les {n} formes, on voit {items[np]}",
        "l'image montre {n} formes, dont {items[np]}",
    ],
    "places": ["{a[np]} est {pa} et {b[np]} est {pb}", "il y a {a[np]} {pa} et {b[np]} {pb}", "{a[np]} {pa}, {b[np]} {pb}"],
    "place_names": {
        "top_left": ["en haut à gauche", "dans le coin supérieur gauche"],
        "top_right": ["en haut à droite", "dans le coin supérieur droit"],
        "bottom_left": ["en bas à gauche", "dans le coin inférieur gauche"],
        "bottom_right": ["en bas à droite", "dans le coin inférieur droit"],
        "centre": ["au centre", "au milieu de l'image"],
    },
    "numbers": {3: "trois", 4: "quatre", 5: "cinq"},
    "background_kinds": {
        "plain": ["un fond {colour}", "un fond uni {colour}"],
        "gradient": ["un fond dégradé {colour}"],
        "noise": ["un fond granuleux {colour}"],
        "stripes": ["un fond rayé {colour}"],
    },
    "background_colours": {"grey": "gris", "beige": "beige", "blue": "bleu clair", "green": "vert clair"},
}  # fmt: skip

# ---- Czech ----------------------------------------------------------------------------------------------------------

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


def _czech(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
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

GRAMMARS = {"en": ENGLISH, "de": GERMAN, "fr": FRENCH, "cs": CZECH}
_NOUN_PHRASES = {"en": _english, "de": _german, "fr": _french, "cs": _czech}


def noun_phrase(language: str, mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
    """Name an object: form → text. `rng` picks among synonyms and word orders.

    Forms: English np; German nom, acc, dat, gen, von (with the preposition: "vom", "von einem"); French np, de ("du",
    "d'une"), e (ending of a participle); Czech nom, gen, acc, ins, ending (of a nominative adjective; Czech has no
    articles, so `definite` changes nothing).
    """
    return _NOUN_PHRASES[language](mention, definite, rng)
