"""The words of the demo world in French: forms of nouns and adjectives, and sentences with slots (``data/scenes/languages.py``)."""

import random

from data.scenes.mention import Mention

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


def french_noun_phrase(mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
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
