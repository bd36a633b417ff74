"""The demo world's captions are correctly inflected: exact forms of every gender and case, and agreement over many."""

import itertools
import random
import re

import pytest

from data.scenes import world as scenes
from data.scenes.grammar import Plan, sentence
from data.scenes.languages import noun_phrase
from data.scenes.mention import Mention

CAPTIONS = [scenes.captions(scenes.make_scene(seed, index)) for seed in (0, 7) for index in range(300)]


# ---- exact forms ----------------------------------------------------------------------------------------------------


def variants(language: str, mention: Mention, form: str, definite: bool = False) -> set[str]:
    """Everything a noun phrase can be in one form."""
    return {noun_phrase(language, mention, definite, random.Random(k))[form] for k in range(80)}


CIRCLE = Mention("circle", "red", "small", None)
SQUARE = Mention("square", "blue", "large", None)
STAR = Mention("star", "green", "large", None)
HEART = Mention("heart", "yellow", "medium", None)
MOON = Mention("crescent", "pink", "small", None)


def test_english_noun_phrases():
    assert variants("en", Mention("star", "orange", None, "plain"), "np") == {
        "a plain orange star", "a solid orange star",
    }  # fmt: skip
    assert variants("en", Mention("square", "orange", None, "striped"), "np") == {
        "a striped orange square", "a stripy orange square", "an orange striped square", "an orange stripy square",
        "an orange square with stripes",
    }  # fmt: skip
    assert variants("en", CIRCLE, "np", definite=True) == {
        "the small red circle", "the little red circle", "the small red disc", "the little red disc",
    }  # fmt: skip


@pytest.mark.parametrize(
    "form, definite, circle, square, moon",
    [
        ("nom", False, "ein kleiner roter Kreis", "ein großes blaues Quadrat", "eine kleine rosa Mondsichel"),
        ("acc", False, "einen kleinen roten Kreis", "ein großes blaues Quadrat", "eine kleine rosa Mondsichel"),
        ("dat", False, "einem kleinen roten Kreis", "einem großen blauen Quadrat", "einer kleinen rosa Mondsichel"),
        ("gen", False, "eines kleinen roten Kreises", "eines großen blauen Quadrats", "einer kleinen rosa Mondsichel"),
        ("von", False, "von einem kleinen roten Kreis", "von einem großen blauen Quadrat",
         "von einer kleinen rosa Mondsichel"),
        ("nom", True, "der kleine rote Kreis", "das große blaue Quadrat", "die kleine rosa Mondsichel"),
        ("acc", True, "den kleinen roten Kreis", "das große blaue Quadrat", "die kleine rosa Mondsichel"),
        ("dat", True, "dem kleinen roten Kreis", "dem großen blauen Quadrat", "der kleinen rosa Mondsichel"),
        ("gen", True, "des kleinen roten Kreises", "des großen blauen Quadrats", "der kleinen rosa Mondsichel"),
        ("von", True, "vom kleinen roten Kreis", "vom großen blauen Quadrat", "von der kleinen rosa Mondsichel"),
    ],
)  # fmt: skip
def test_german_noun_phrases(form, definite, circle, square, moon):
    disc = {  # the synonym is feminine
        "nom": ("eine kleine rote", "die kleine rote"), "acc": ("eine kleine rote", "die kleine rote"),
        "dat": ("einer kleinen roten", "der kleinen roten"), "gen": ("einer kleinen roten", "der kleinen roten"),
        "von": ("von einer kleinen roten", "von der kleinen roten"),
    }[form][definite]  # fmt: skip
    assert variants("de", CIRCLE, form, definite) == {circle, f"{disc} Scheibe"}
    assert variants("de", SQUARE, form, definite) == {square}
    assert variants("de", MOON, form, definite) == {moon}


def test_german_special_cases():
    assert variants("de", HEART, "dat") == {"einem mittelgroßen gelben Herzen"}
    assert variants("de", HEART, "gen") == {"eines mittelgroßen gelben Herzens"}
    assert variants("de", Mention("star", "orange", None, "plain"), "acc") == {
        "einen einfarbig orangefarbenen Stern",
    }  # fmt: skip
    assert variants("de", Mention("cross", "black", "small", "checkered"), "gen") == {
        "eines kleinen karierten schwarzen Kreuzes", "eines kleinen schwarzen Kreuzes mit Karomuster",
    }  # fmt: skip


@pytest.mark.parametrize(
    "form, definite, square, star, ring",
    [
        ("np", False, "un grand carré bleu", "une grande étoile verte", "un anneau noir"),
        ("de", False, "d'un grand carré bleu", "d'une grande étoile verte", "d'un anneau noir"),
        ("np", True, "le grand carré bleu", "la grande étoile verte", "l'anneau noir"),
        ("de", True, "du grand carré bleu", "de la grande étoile verte", "de l'anneau noir"),
        ("e", True, "", "e", ""),
    ],
)
def test_french_noun_phrases(form, definite, square, star, ring):
    assert variants("fr", SQUARE, form, definite) == {square}
    assert variants("fr", STAR, form, definite) == {star}
    assert variants("fr", Mention("ring", "black", None, None), form, definite) == {ring}


def test_french_adjectives_agree():
    assert variants("fr", Mention("cross", "purple", None, "plain"), "np") == {"une croix violette unie"}
    assert variants("fr", Mention("star", "orange", None, "dotted"), "de", definite=True) == {
        "de l'étoile orange à pois",
    }  # fmt: skip
    assert variants("fr", Mention("cross", "black", "small", "striped"), "np") == {
        "une petite croix noire rayée", "une petite croix noire à rayures",
    }  # fmt: skip
    assert variants("fr", Mention("star", "blue", "medium", "checkered"), "np") == {
        "une étoile bleue quadrillée de taille moyenne", "une étoile bleue à carreaux de taille moyenne",
    }  # fmt: skip
    assert variants("fr", HEART, "de") == {"d'un cœur jaune de taille moyenne"}


@pytest.mark.parametrize(
    "form, circle, star, heart",
    [
        ("nom", "malý červený kruh", "velká zelená hvězda", "středně velké žluté srdce"),
        ("gen", "malého červeného kruhu", "velké zelené hvězdy", "středně velkého žlutého srdce"),
        ("acc", "malý červený kruh", "velkou zelenou hvězdu", "středně velké žluté srdce"),
        ("ins", "malým červeným kruhem", "velkou zelenou hvězdou", "středně velkým žlutým srdcem"),
        ("ending", "ý", "á", "é"),
    ],
)
def test_czech_noun_phrases(form, circle, star, heart):
    assert variants("cs", CIRCLE, form) == {circle}
    assert variants("cs", STAR, form) == {star}
    assert variants("cs", HEART, form) == {heart}


def test_czech_nouns_and_textures():
    forms = {shape: noun_phrase("cs", Mention(shape, "blue", None, None), False, random.Random(0)) for shape in
             ("square", "triangle", "cross", "ring", "crescent")}  # fmt: skip
    assert [f["gen"].split()[1] for f in forms.values()] == [
        "čtverce", "trojúhelníku", "kříže", "prstence", "půlměsíce",
    ]  # fmt: skip
    assert [f["ins"].split()[1] for f in forms.values()] == [
        "čtvercem", "trojúhelníkem", "křížem", "prstencem", "půlměsícem",
    ]  # fmt: skip
    assert variants("cs", Mention("star", "pink", None, "dotted"), "acc") == {
        "puntíkovanou růžovou hvězdu", "růžovou puntíkovanou hvězdu", "růžovou hvězdu s puntíky",
    }  # fmt: skip


def said(language: str, kind: str, relation: str | None, *mentions: Mention, count: int = 4, place: str | None = None):
    """Every sentence a plan can become (with high probability)."""
    plan = Plan(kind, list(mentions), relation, [place] * len(mentions), count, "beige", "stripes")
    return {sentence(language, plan, random.Random(k)) for k in range(1500)}


@pytest.mark.parametrize(
    "language, text",
    [
        ("en", "There is a small red circle to the left of the big blue square."),
        ("de", "Ein kleiner roter Kreis befindet sich links von einem großen blauen Quadrat."),
        ("de", "Links vom großen blauen Quadrat liegt eine kleine rote Scheibe."),
        ("de", "Man sieht einen kleinen roten Kreis links von einem großen blauen Quadrat."),
        ("fr", "Il y a un petit cercle rouge à gauche du grand carré bleu."),
        ("fr", "À gauche d'un grand carré bleu se trouve un petit disque rouge."),
        ("cs", "Malý červený kruh se nachází vlevo od velkého modrého čtverce."),
        ("cs", "Nalevo od velkého modrého čtverce vidíme malý červený kruh."),
    ],
)
def test_sentences_with_left(language, text):
    assert text in said(language, "pair", "left", CIRCLE, SQUARE)


@pytest.mark.parametrize(
    "language, kind, relation, text",
    [
        ("en", "pair", "behind", "A large green star is partly hidden by a medium-sized yellow heart."),
        ("en", "background", "above", "On a striped beige background, a large green star is above a medium-sized"
         " yellow heart."),
        ("en", "count", None, "There are four shapes, among them a big green star and a medium-sized yellow heart."),
        ("de", "pair", "behind", "Ein großer grüner Stern wird teilweise von einem mittelgroßen gelben Herzen verdeckt."),
        ("de", "pair", "above", "Ein großer grüner Stern befindet sich oberhalb eines mittelgroßen gelben Herzens."),
        ("de", "pair", "front", "Ein großer grüner Stern überdeckt teilweise das mittelgroße gelbe Herz."),
        ("de", "background", "below", "Auf gestreiftem beigefarbenem Hintergrund sieht man einen großen grünen Stern"
         " unter einem mittelgroßen gelben Herzen."),
        ("de", "count", None, "Unter den vier Formen sind ein großer grüner Stern und ein mittelgroßes gelbes Herz."),
        ("fr", "pair", "behind", "Une grande étoile verte est partiellement cachée par un cœur jaune de taille moyenne."),
        ("fr", "pair", "above", "Une grande étoile verte est située au-dessus d'un cœur jaune de taille moyenne."),
        ("fr", "background", "front", "Une grande étoile verte devant le cœur jaune de taille moyenne sur un fond rayé"
         " beige."),
        ("fr", "count", None, "Quatre formes, dont une grande étoile verte et un cœur jaune de taille moyenne."),
        ("cs", "pair", "behind", "Velká zelená hvězda je částečně zakrytá středně velkým žlutým srdcem."),
        ("cs", "pair", "above", "Vidíme velkou zelenou hvězdu nad středně velkým žlutým srdcem."),
        ("cs", "background", "beside", "Na pruhovaném béžovém pozadí je velká zelená hvězda vedle středně velkého"
         " žlutého srdce."),
        ("cs", "count", None, "Na obrázku jsou čtyři tvary, mezi nimi velká zelená hvězda a středně velké žluté srdce."),
    ],
)  # fmt: skip
def test_other_sentences(language, kind, relation, text):
    assert text in said(language, kind, relation, STAR, HEART)


def test_three_objects_corners_and_numbers():
    assert "Vidíme malý červený kruh, velký modrý čtverec a velkou zelenou hvězdu." in said(
        "cs", "list", None, CIRCLE, SQUARE, STAR
    )
    assert "Das Bild zeigt einen kleinen roten Kreis, ein großes blaues Quadrat und einen großen grünen Stern." in said(
        "de", "list", None, CIRCLE, SQUARE, STAR
    )
    assert (
        "Un grand carré bleu se trouve sous la grande étoile verte, tandis qu'un petit cercle rouge"
        " est en bas à droite." in said("fr", "place", "below", SQUARE, STAR, CIRCLE, place="bottom_right")
    )
    five = said("cs", "count", None, CIRCLE, STAR, count=5)
    assert "Na obrázku je pět tvarů, mezi nimi malý červený kruh a velká zelená hvězda." in five


# ---- agreement over many captions -------------------------------------------------------------------------------------

GERMAN_AGREEMENT = {  # gender -> article and the ending of the adjectives after it
    "m": "ein er|einen en|einem en|eines en|der e|den en|dem en|des en|vom en",
    "f": "eine e|einer en|die e|der en",
    "n": "ein es|einem en|eines en|das e|dem en|des en|vom en",
}
GERMAN_GENDERS = {
    "m": "Kreis|Kreises|Stern|Sterns|Ring|Rings", "f": "Scheibe|Mondsichel",
    "n": "Quadrat|Quadrats|Dreieck|Dreiecks|Kreuz|Kreuzes|Herz|Herzen|Herzens",
}  # fmt: skip


def test_german_agreement_and_cases():
    genders = {noun: gender for gender, nouns in GERMAN_GENDERS.items() for noun in nouns.split("|")}
    articles = "ein|eine|einen|einem|einer|eines|der|die|das|den|dem|des|vom"
    dative, genitive = {"einem", "einer", "dem", "der"}, {"eines", "einer", "des", "der"}
    for by_language in CAPTIONS:
        for text in by_language["de"]:
            plain = text[0].lower() + text[1:]
            phrases = re.findall(rf"\b({articles}) ((?:[a-zäöüß]+ )*)({'|'.join(genders)})\b", plain)
            assert len(phrases) == len(re.findall("|".join(sorted(genders, key=len, reverse=True)), plain)), text
            for article, adjectives, noun in phrases:
                for adjective in adjectives.split():
                    if adjective in ("rosa", "einfarbig"):
                        continue
                    ending = re.search("(en|er|es|e)$", adjective).group()
                    assert f"{article} {ending}" in GERMAN_AGREEMENT[genders[noun]].split("|"), (text, noun)
                assert (article in ("eines", "des")) == (noun[-1] == "s" and noun != "Kreis"), (text, noun)
            for article in re.findall(r"\b(?:von|über|unter|neben|vor|hinter|mit) ([a-z]+)", plain):
                assert article in dative or plain.startswith("unter den"), text
            for article in re.findall(r"\b(?:oberhalb|unterhalb|Teil) ([a-z]+)", plain):
                assert article in genitive, text
            for article in re.findall(r"\b(?:man|zeigt|gibt es) (ein\w*)", plain):
                assert article in ("einen", "eine", "ein"), text
            assert not re.search(r"\b(?:man|zeigt|gibt es) ein \w+er\b", plain), text


def test_french_agreement_and_elision():
    feminine = "étoile|croix"
    nouns = f"{feminine}|cercle|disque|carré|triangle|anneau|cœur|croissant de lune|croissant"
    adjectives = "petite?|grande?|rouge|orange|jaune|rose|verte?|bleue?|violet(?:te)?|noire?|unie?|rayée?|quadrillée?"
    phrase = rf"(un|une|le|la|l'|du|de la|de l') ?((?:(?:{adjectives}) )*)({nouns})((?: (?:{adjectives})\b(?! clair))*)"
    varying = re.compile(r"^(?:petit|grand|vert|bleu|violet|noir|uni|rayé|quadrillé)")
    for by_language in CAPTIONS:
        for text in by_language["fr"]:
            found = re.findall(rf"(?<!\w){phrase}", text, flags=re.IGNORECASE)
            assert len(found) == len(re.findall(nouns, text)), text
            for article, before, noun, after in found:
                is_feminine = noun in feminine.split("|")
                if article.lower() in ("une", "la", "de la"):
                    assert is_feminine, text
                elif article.lower() in ("un", "le", "du"):
                    assert not is_feminine, text
                assert ("'" in article) == (article.lower() in ("l'", "de l'") and not before), text
                assert article.lower() not in ("le", "la", "du", "de la") or before or noun[0] not in "éa", text
                for adjective in (before + " " + after).split():
                    if varying.match(adjective):
                        assert adjective.endswith("e") == is_feminine, (text, adjective)
            assert not re.search(r"\b(?:de|que) (?:une?|le|[éaeiou]\w+|l )\b", text.replace("de l'", "")), text
            for participle in re.findall(r"\b(?:situ|plac|cach|masqu)ée?\b", text):
                assert participle.endswith("ée") == (found[0][2] in feminine.split("|")), text


def test_czech_cases():
    """After each preposition every adjective and the noun stand in its case."""
    stands_with = {
        "m": {"gen": ("ého", "u|e"), "ins": ("ým", "em"), "nom": ("ý", ""), "acc": ("ý", "")},
        "f": {"gen": ("é", "y"), "ins": ("ou", "ou"), "nom": ("á", "a"), "acc": ("ou", "u")},
        "n": {"gen": ("ého", "e"), "ins": ("ým", "em"), "nom": ("é", "e"), "acc": ("é", "e")},
    }
    stems = {"m": "kruh|čtverec|čtverc|trojúhelník|kříž|prstenec|prstenc|půlměsíc", "f": "hvězd", "n": "srdc"}
    opens = {"od": "gen", "vedle": "gen", "poblíž": "gen", "část": "gen", "nad": "ins", "pod": "ins", "před": "ins",
             "za": "ins", "zakrytý": "ins", "zakrytá": "ins", "zakryté": "ins", "vidíme": "acc"}  # fmt: skip
    seen = set()
    for by_language in CAPTIONS:
        for text in by_language["cs"]:
            words = re.findall(r"\w+", text.lower())
            for position, word in enumerate(words[:-1]):
                if word not in opens or words[position + 1] == "středně":
                    continue
                case, adjectives = opens[word], []
                for following in words[position + 1 :]:
                    noun = next(
                        ((g, e) for g, s in stems.items() if (e := re.fullmatch(rf"(?:{s})(\w*)", following))), None
                    )
                    if noun:
                        break
                    adjectives.append(following)
                gender, match = noun
                adjective_ending, noun_endings = stands_with[gender][case]
                assert match.group(1) in noun_endings.split("|"), text
                assert all(re.fullmatch(rf"\w+[^áéýou]{adjective_ending}|středně", a) for a in adjectives), text
                seen.add((gender, case))
    assert seen >= set(itertools.product("mfn", ("gen", "ins", "acc")))
