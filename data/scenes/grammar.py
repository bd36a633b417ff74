"""What a caption of the demo world says (`Plan`), and how it becomes a sentence (words: `data/scenes/languages.py`)."""

import random
from dataclasses import dataclass

from data.scenes.languages import GRAMMARS, noun_phrase
from data.scenes.mention import Mention


@dataclass(frozen=True)
class Plan:
    """What to say.

    `kind` is one of pair (a is somewhere to b), background (that, and the background), place (that, and a third
    object is in a corner), also (that, and there is a third), list, list_background, count (how many there are, among
    them a and b) and places (a and b are each in a corner). `relation` is what the first mention is to the second.
    """

    kind: str
    mentions: list[Mention]
    relation: str | None
    places: list[str | None]
    count: int
    background: str
    background_kind: str


def _join(phrases: list[dict[str, str]], conjunction: str) -> dict[str, str]:
    """a, b and c, in every form."""
    return {
        form: f"{', '.join(phrase[form] for phrase in phrases[:-1])} {conjunction} {phrases[-1][form]}"
        for form in phrases[0]
    }


def sentence(language: str, plan: Plan, rng: random.Random) -> str:
    """Say `plan` in a language ("en", "de", "fr", "cs"): one sentence with a capital letter and a full stop."""
    grammar = GRAMMARS[language]
    # The object that another is placed by may take "the": that it exists can be taken as known.
    definite = plan.relation is not None and rng.random() < 0.25
    phrases = [noun_phrase(language, m, definite and i == 1, rng) for i, m in enumerate(plan.mentions)]
    slots = dict(zip("abc", phrases))
    slots["items"] = _join(phrases, grammar["and"])
    slots["n"] = grammar["numbers"][plan.count]
    slots["be"] = "je" if plan.count == 5 else "jsou"  # Czech: numbers from five up take the singular
    colour = grammar["background_colours"][plan.background]
    slots["bg"] = rng.choice(grammar["background_kinds"][plan.background_kind]).format(colour=colour)
    places = [rng.choice(grammar["place_names"][p]) if p else None for p in plan.places]
    slots["pa"], slots["pb"], slots["place"] = (places + [None])[:3]

    kind = "pair" if plan.kind in ("pair", "place", "also") else plan.kind
    templates = grammar[kind]
    if plan.kind == "pair":  # nothing follows: it need not be a whole sentence
        templates = templates + grammar["fragment"]
    if plan.relation:
        slots["rel"] = rng.choice(grammar["relations"][plan.relation]).format(**slots)
        if kind == "pair" and plan.relation in grammar["whole"] and rng.random() < 0.6:
            templates = grammar["whole"][plan.relation]
    text = rng.choice(templates)
    if plan.kind in ("place", "also"):
        text += rng.choice(grammar[plan.kind])
    text = text.format(**slots)
    return text[0].upper() + text[1:] + "."
