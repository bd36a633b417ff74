"""The demo world: pictures are reproducible, captions are true.

The captions are read back here by small parsers with word tables of their own, and compared with the scene.
"""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.scenes import world as scenes

ROOT = Path(__file__).resolve().parents[3]
WORLD = [scenes.make_scene(seed, index) for seed in (0, 7) for index in range(300)]
CAPTIONS = [(scene, scenes.captions(scene)) for scene in WORLD]


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_a_scene_depends_on_seed_and_index_only():
    again = scenes.make_scene(0, 5)
    assert again == WORLD[5] and scenes.captions(again) == CAPTIONS[5][1]
    assert np.array_equal(scenes.render(again, 96), scenes.render(WORLD[5], 96))
    assert len({scene.objects for scene in WORLD}) == len(WORLD)
    assert scenes.render(again, 96).size == (96, 96) and scenes.render(again, 96).mode == "RGB"


def test_the_whole_range_of_the_world_is_used():
    items = [item for scene in WORLD for item in scene.objects]
    assert {item.shape for item in items} == set(scenes.SHAPES)
    assert {item.colour for item in items} == set(scenes.COLOURS)
    assert {item.size for item in items} == set(scenes.SIZES)
    assert {item.texture for item in items} == set(scenes.TEXTURES)
    assert {len(scene.objects) for scene in WORLD} == {3, 4, 5}
    kinds = {(scene.background, scene.background_kind) for scene in WORLD}
    assert kinds == set(itertools.product(scenes.BACKGROUNDS, scenes.BACKGROUND_KINDS))
    assert 0.3 < np.mean([bool(scene.covered) for scene in WORLD]) < 0.7


def test_every_object_is_inside_and_mostly_visible_and_overlaps_are_the_listed_ones():
    for scene in WORLD[:200]:
        masks = [scenes.silhouette(item, 128) for item in scene.objects]
        assert len({(item.shape, item.colour) for item in scene.objects}) == len(scene.objects)
        for back, mask in enumerate(masks):
            border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
            assert not border
            in_front = np.logical_or.reduce([*masks[back + 1 :], np.zeros_like(mask)])
            assert (mask & ~in_front).sum() > 0.6 * mask.sum()
            for front in range(back + 1, len(masks)):
                assert (masks[front] & mask).any() == ((front, back) in scene.covered)


def test_pixels_show_the_objects_in_their_colours_on_a_muted_background():
    for scene in WORLD[:60]:
        pixels = np.asarray(scenes.render(scene, 128)).astype(float)
        masks = [scenes.silhouette(item, 128) for item in scene.objects]
        outside = ~np.logical_or.reduce(masks)
        background = np.median(pixels[outside], axis=0)
        assert np.ptp(background) < 60  # muted: channels close together
        for k, (item, mask) in enumerate(zip(scene.objects, masks)):
            seen = pixels[mask & ~np.logical_or.reduce([*masks[k + 1 :], ~mask])]
            own = np.abs(seen - scenes.COLOURS[item.colour]).max(axis=1) < 40
            assert own.mean() > (0.75 if item.texture == "plain" else 0.3), (item, own.mean())
            assert item.texture == "plain" or own.mean() < 0.9, (item, own.mean())
            assert np.abs(np.array(scenes.COLOURS[item.colour]) - background).max() > 60


# ---- reading captions back ------------------------------------------------------------------------------------------

EN_ARTICLES, FR_E, DE_E, CS_E = r"(?:an?|the)", "e?", "(?:e[rsnm]?)?", "(?:ý|á|é|ou|ého|ým)"
# attribute value -> pattern, in any inflected form
SHAPES = {
    "en": {"circle": "circle|disc", "square": "square", "triangle": "triangle", "star": "star", "cross": "cross",
           "ring": "ring|hoop", "heart": "heart", "crescent": "crescent(?: moon)?"},
    "de": {"circle": "Kreis(?:es)?|Scheibe", "square": "Quadrats?", "triangle": "Dreiecks?", "star": "Sterns?",
           "cross": "Kreuz(?:es)?", "ring": "Rings?", "heart": "Herz(?:ens?)?", "crescent": "Mondsichel"},
    "fr": {"circle": "cercle|disque", "square": "carré", "triangle": "triangle", "star": "étoile", "cross": "croix",
           "ring": "anneau", "heart": "cœur", "crescent": "croissant(?: de lune)?"},
    "cs": {"circle": "kruh(?:u|em)?", "square": "čtver(?:ec|ce|cem)", "triangle": "trojúhelník(?:u|em)?",
           "star": "hvězd(?:a|y|u|ou)", "cross": "kříž(?:e|em)?", "ring": "prsten(?:ec|ce|cem)", "heart": "srdcem?",
           "crescent": "půlměsíc(?:e|em)?"},
}  # fmt: skip
COLOURS = {
    "en": {c: c for c in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")},
    "de": {"red": "rot" + DE_E, "orange": "orangefarben" + DE_E, "yellow": "gelb" + DE_E, "green": "grün" + DE_E,
           "blue": "blau" + DE_E, "purple": "violett" + DE_E, "pink": "rosa", "black": "schwarz" + DE_E},
    "fr": {"red": "rouge", "orange": "orange", "yellow": "jaune", "green": "vert" + FR_E, "blue": "bleu" + FR_E,
           "purple": "violet(?:te)?", "pink": "rose", "black": "noir" + FR_E},
    "cs": {"red": "červen" + CS_E, "orange": "oranžov" + CS_E, "yellow": "žlut" + CS_E, "green": "zelen" + CS_E,
           "blue": "modr" + CS_E, "purple": "fialov" + CS_E, "pink": "růžov" + CS_E, "black": "čern" + CS_E},
}  # fmt: skip
SIZES = {
    "en": {"small": "small|little", "medium": "medium-sized", "large": "large|big"},
    "de": {"small": "klein" + DE_E, "medium": "mittelgroß" + DE_E, "large": "groß" + DE_E},
    "fr": {"small": "petit" + FR_E, "medium": "de taille moyenne", "large": "grand" + FR_E},
    "cs": {"medium": "středně velk" + CS_E, "small": "mal" + CS_E, "large": "velk" + CS_E},
}
TEXTURES = {
    "en": {"plain": "plain|solid", "striped": "striped|stripy|with stripes", "dotted": "dotted|spotted|with (?:do|spo)ts",
           "checkered": "checkered|checked|with checks"},
    "de": {"plain": "einfarbig", "striped": f"gestreift{DE_E}|mit Streifen", "dotted": f"gepunktet{DE_E}|mit Punkten",
           "checkered": f"kariert{DE_E}|mit Karomuster"},
    "fr": {"plain": "unie?", "striped": "rayée?|à rayures", "dotted": "à pois", "checkered": "quadrillée?|à carreaux"},
    "cs": {"plain": "jednobarevn" + CS_E, "striped": f"pruhovan{CS_E}|s pruhy", "dotted": f"puntíkovan{CS_E}|s puntíky",
           "checkered": f"kostkovan{CS_E}(?! vzor)|s kostkovaným vzorem"},
}  # fmt: skip
# each is followed by the object that the other is placed by
RELATIONS = {
    "en": {"left": "left of", "right": "right of", "above": "above|over", "below": "below|under",
           "beside": "next to|beside|Beside", "front": "in front of|overlaps|partly covers",
           "behind": "behind|partly hidden by|partly covered by"},
    "de": {"left": "links vo[nm]", "right": "rechts vo[nm]", "above": "über|oberhalb",
           "below": r"unter(?! den \w+ Formen)|unterhalb", "beside": "neben",
           "front": "vor|überdeckt|verdeckt einen Teil", "behind": "hinter|wird teilweise"},
    "fr": {"left": "à gauche d[eu']", "right": "à droite d[eu']", "above": "au-dessus",
           "below": "au-dessous|sous", "beside": "à côté|près", "front": "devant|recouvre|cache une partie",
           "behind": "derrière|(?:cach|masqu)ée? par"},
    "cs": {"left": "(?:na|v)levo od", "right": "(?:na|v)pravo od", "above": "nad", "below": "pod",
           "beside": "vedle|poblíž", "front": "před|zakrývá", "behind": r"za|zakryt\w"},
}  # fmt: skip
# each follows the object that is there
PLACES = {
    "en": {"top_left": "in the (?:top|upper) left corner", "top_right": "in the (?:top|upper) right corner",
           "bottom_left": "in the (?:bottom|lower) left corner", "bottom_right": "in the (?:bottom|lower) right corner",
           "centre": "in the middle|in the centre"},
    "de": {"top_left": "oben links|in der linken oberen Ecke", "top_right": "oben rechts|in der rechten oberen Ecke",
           "bottom_left": "unten links|in der linken unteren Ecke",
           "bottom_right": "unten rechts|in der rechten unteren Ecke", "centre": "in der Mitte"},
    "fr": {"top_left": "en haut à gauche|dans le coin supérieur gauche",
           "top_right": "en haut à droite|dans le coin supérieur droit",
           "bottom_left": "en bas à gauche|dans le coin inférieur gauche",
           "bottom_right": "en bas à droite|dans le coin inférieur droit", "centre": "au centre|au milieu de l'image"},
    "cs": {"top_left": "vlevo nahoře|v levém horním rohu", "top_right": "vpravo nahoře|v pravém horním rohu",
           "bottom_left": "vlevo dole|v levém dolním rohu", "bottom_right": "vpravo dole|v pravém dolním rohu",
           "centre": "uprostřed"},
}  # fmt: skip
NUMBERS = {
    "en": (r"(three|four|five) (?:shapes|objects)", ["three", "four", "five"]),
    "de": (r"(drei|vier|fünf) (?:Formen|Figuren)", ["drei", "vier", "fünf"]),
    "fr": (r"(trois|quatre|cinq) formes", ["trois", "quatre", "cinq"]),
    "cs": (r"(tři tvary|čtyři tvary|pět tvarů)", ["tři tvary", "čtyři tvary", "pět tvarů"]),
}
BACKGROUND = {"en": r"(?:on|against) a ([\w ]*?) ?(?:background|gradient)",
              "de": r"auf ([\w ]*?) ?Hintergrund(?: mit Farbverlauf)?",
              "fr": r"sur un fond ([\w ]+)", "cs": r"na (?!obrázku)([\w ]*?) ?pozadí(?: s plynulým přechodem)?"}  # fmt: skip
BACKGROUND_COLOURS = {
    "en": {"grey": "grey", "beige": "beige", "blue": "pale blue", "green": "pale green"},
    "de": {"grey": "grauem", "beige": "beigefarbenem", "blue": "hellblauem", "green": "hellgrünem"},
    "fr": {"grey": "gris", "beige": "beige", "blue": "bleu clair", "green": "vert clair"},
    "cs": {"grey": "šedém", "beige": "béžovém", "blue": "světle modrém", "green": "světle zeleném"},
}
BACKGROUND_KINDS = {
    "en": {"gradient": "shaded|gradient", "noise": "grainy", "stripes": "striped"},
    "de": {"gradient": "Farbverlauf", "noise": "körnigem", "stripes": "gestreiftem"},
    "fr": {"gradient": "dégradé", "noise": "granuleux", "stripes": "rayé"},
    "cs": {"gradient": "přechodem", "noise": "zrnitém", "stripes": "pruhovaném"},
}


def _any(*tables: dict[str, str]) -> str:
    return "|".join(pattern for table in tables for pattern in table.values())


def _value(table: dict[str, str], text: str) -> str | None:
    """The one value of the table that the text names, or None."""
    found = {value for value, pattern in table.items() if re.search(rf"(?<!\w)(?:{pattern})(?!\w)", text)}
    if found >= {"medium", "large"}:  # "středně velký" holds "velký"
        found.remove("large")
    assert len(found) <= 1, (text, found)
    return found.pop() if found else None


def read_objects(language: str, text: str, scene) -> list[tuple[int, int, int]]:
    """Find the noun phrases of a caption: (index of the object it must mean, start, end)."""
    attribute = _any(COLOURS[language], SIZES[language], TEXTURES[language])
    phrase = rf"(?<!\w)(?:(?:{attribute}) )*(?:{_any(SHAPES[language])})(?!\w)(?: (?:{attribute})(?!\w))*"
    result = []
    for match in re.finditer(phrase, text, flags=re.IGNORECASE if language != "de" else 0):
        found = match.group()
        if language != "de":
            found = found.lower()
        else:
            first, _, others = found.partition(" ")
            found = f"{first.lower()} {others}" if others else found
        colour, shape = _value(COLOURS[language], found), _value(SHAPES[language], found)
        hits = [k for k, item in enumerate(scene.objects) if (item.colour, item.shape) == (colour, shape)]
        assert len(hits) == 1, (text, found, colour, shape)
        item = scene.objects[hits[0]]
        size, texture = _value(SIZES[language], found), _value(TEXTURES[language], found)
        assert size in (None, item.size) and texture in (None, item.texture), (text, found, item)
        assert size or texture, (text, found)
        result.append((hits[0], match.start(), match.end()))
    return result


def holds(scene, relation: str, a: int, b: int) -> bool:
    """Whether object a is in `relation` to object b; measured here on coordinates and silhouettes."""
    first, second = scene.objects[a], scene.objects[b]
    dx, dy = second.x - first.x, second.y - first.y
    overlap = (scenes.silhouette(first, 128) & scenes.silhouette(second, 128)).any()
    return {
        "left": dx > 0.12 and dx > abs(dy),
        "right": -dx > 0.12 and -dx > abs(dy),
        "above": dy > 0.12 and dy > abs(dx),
        "below": -dy > 0.12 and -dy > abs(dx),
        "beside": math.hypot(dx, dy) < first.radius + second.radius + 0.11 and not overlap,
        "front": overlap and a > b,
        "behind": overlap and a < b,
    }[relation]


@pytest.mark.parametrize("language", ["en", "de", "fr", "cs"])
def test_captions_are_true(language):
    checked = {"relation": set(), "place": set(), "background": set(), "count": set()}
    relations_read = captions_read = 0
    for scene, by_language in CAPTIONS:
        for text in by_language[language]:
            captions_read += 1
            plain = text[0].lower() + text[1:]
            objects = read_objects(language, text, scene)
            assert len(objects) in (2, 3) and len({k for k, *_ in objects}) == len(objects), text

            for relation, pattern in RELATIONS[language].items():
                for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?!\w)|(?<![\w-])(?:{pattern})(?<=')", plain):
                    b = next(k for k, start, _ in objects if start >= match.end() - 1)
                    a = next(k for k, *_ in objects[:2] if k != b)
                    assert b in [k for k, *_ in objects[:2]] and holds(scene, relation, a, b), (text, relation)
                    checked["relation"].add(relation)
                    relations_read += 1
            for place, pattern in PLACES[language].items():
                for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", plain):
                    item = scene.objects[[k for k, _, end in objects if end < match.start()][-1]]
                    x, y = (0 if "left" in place else 1), (0 if "top" in place else 1)
                    if place == "centre":
                        assert math.hypot(item.x - 0.5, item.y - 0.5) < 0.16, text
                    else:
                        assert abs(item.x - x) < 0.31 and abs(item.y - y) < 0.31, text
                    checked["place"].add(place)
            for match in re.finditer(BACKGROUND[language], plain):
                assert _value(BACKGROUND_COLOURS[language], match.group()) == scene.background, text
                kind = _value(BACKGROUND_KINDS[language], match.group())
                assert (kind or "plain") == scene.background_kind, text
                checked["background"].add((scene.background, scene.background_kind))
            number, words = NUMBERS[language]
            for match in re.finditer(number, plain):
                assert words.index(match.group(1)) + 3 == len(scene.objects), text
                checked["count"].add(len(scene.objects))
    # nothing above passed by never being met
    assert relations_read > 0.35 * captions_read
    assert {kind: len(seen) for kind, seen in checked.items()} == {
        "relation": 7, "place": 5, "background": 16, "count": 3,
    }  # fmt: skip


def test_captions_are_many_short_clean_and_different():
    for _, by_language in CAPTIONS:
        assert {language: len(texts) for language, texts in by_language.items()} == {"en": 5, "de": 2, "fr": 2, "cs": 2}
        for language, texts in by_language.items():
            assert len(set(texts)) == len(texts)
            for text in texts:
                assert re.fullmatch(r"[^\W\d_][\w ,'’:-]*\.", text) and "  " not in text and "None" not in text, text
                assert text[0].isupper() and not re.search(r" ,|,[^ ]|' ", text), text
                assert 8 <= len(text.split()) <= (26 if language == "fr" else 22), text
    english = [text for _, texts in CAPTIONS for text in texts["en"]]
    assert len(set(english)) > 0.999 * len(english)


# ---- the command ----------------------------------------------------------------------------------------------------


def make(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "make_scenes.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_writes_the_same_world_with_any_number_of_workers(tmp_path):
    sizes = ["--train", "20", "--val", "4", "--test", "6", "--seed", "3", "--size", "64"]
    for workers in ("1", "2"):
        done = make("--out", str(tmp_path / workers), "--workers", workers, *sizes)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "1", tmp_path / "2"
    names = sorted(path.name for path in (one / "photos").iterdir())
    assert names == [f"scene_{index:06d}.jpg" for index in range(30)]
    assert all((one / "photos" / n).read_bytes() == (two / "photos" / n).read_bytes() for n in names)
    assert (one / "captions.jsonl").read_bytes() == (two / "captions.jsonl").read_bytes()

    lines = [json.loads(line) for line in (one / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["split"] for line in lines] == ["train"] * 20 + ["val"] * 4 + ["test"] * 6
    assert lines[21] == {
        "image": "scene_000021.jpg", "captions": scenes.captions(scenes.make_scene(3, 21)), "split": "val",
    }  # fmt: skip
    # a smaller world into the same folder leaves nothing of the larger one
    assert make("--out", str(two), "--train", "2", "--val", "1", "--test", "1", "--size", "64").returncode == 0
    assert len(list((two / "photos").iterdir())) == len((two / "captions.jsonl").read_text().splitlines()) == 4
    assert sorted(path.name for path in two.iterdir()) == ["captions.jsonl", "photos"]


def test_the_command_refuses_impossible_sizes(tmp_path):
    done = make("--out", str(tmp_path / "w"), "--val", "-1")
    assert done.returncode == 2 and done.stderr.startswith("error: --val: found -1") and done.stderr.count("\n") == 1
