"""The languages of the demo world: English, German, French and Czech, a file each.

Every language is tables: the forms of its nouns and adjectives, and sentences with slots. A slot `{a[dat]}` takes one
form of a noun phrase; `noun_phrase` lists the forms of each language.
"""

import random

from data.scenes.czech import CZECH, czech_noun_phrase
from data.scenes.english import ENGLISH, english_noun_phrase
from data.scenes.french import FRENCH, french_noun_phrase
from data.scenes.german import GERMAN, german_noun_phrase
from data.scenes.mention import Mention

GRAMMARS = {"en": ENGLISH, "de": GERMAN, "fr": FRENCH, "cs": CZECH}
_NOUN_PHRASES = {"en": english_noun_phrase, "de": german_noun_phrase, "fr": french_noun_phrase, "cs": czech_noun_phrase}


def noun_phrase(language: str, mention: Mention, definite: bool, rng: random.Random) -> dict[str, str]:
    """Name an object: form → text. `rng` picks among synonyms and word orders.

    Forms: English np; German nom, acc, dat, gen, von (with the preposition: "vom", "von einem"); French np, de ("du",
    "d'une"), e (ending of a participle); Czech nom, gen, acc, ins, ending (of a nominative adjective; Czech has no
    articles, so `definite` changes nothing).
    """
    return _NOUN_PHRASES[language](mention, definite, rng)
