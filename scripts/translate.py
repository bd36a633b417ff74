#!/usr/bin/env python
"""Translate a caption DB into English with Marian models, so that an English model can be tested on it (translate-test).

python scripts/translate.py --captions db/multi30k/test_2016 --tokenizer bert-base-cased --out db/multi30k_en/test_2016
python scripts/translate.py --captions db/val --model 'models/opus-mt-{language}-en' --languages de fr cs \\
    --tokenizer bert-base-cased --out db/val_en
python eval_itm.py --checkpoint runs/english/best --captions db/val_en --regions db/regions --languages en de fr cs

The same command again goes on after a stop.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations.records import Caption, has_word
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.regular_files import real_path
from model.precision import choose_device
from model.translation import TranslationSettings, translate_captions


@dataclass
class Options:
    """Translate the captions of a text DB into English.

    A caption keeps its id, its picture and its language, so that evaluation has a row for each language it was translated
    from. Its record has the translation as ``raw`` and ``input_ids``, and the source as ``source_text``; ``meta.json`` names
    the models under ``translated``. English captions stay as they are. Translations are kept line by line in
    OUT.translations.jsonl, from which a stopped run goes on.

    Args:
        captions: text DB
        tokenizer: of the English model: Hugging Face BERT-family folder or name, or a vocab.txt
        out: text DB to write
        model: Marian model, a folder or a name on the Hugging Face hub; {language} is the caption's
        languages: keep only these; default is all
        lowercase: lower-case the captions first; default is as the tokenizer says
        tokens_per_batch: most source tokens translated at a time, padding included
        num_beams: of the search; default is the model's own
        max_length: most tokens of a translation
        device: auto, cpu, cuda or cuda:N
    """

    captions: str
    tokenizer: str
    out: str
    model: str = "Helsinki-NLP/opus-mt-{language}-en"
    languages: list[str] | None = None
    lowercase: bool | None = None
    tokens_per_batch: int = 2048
    num_beams: int | None = None
    max_length: int = 128
    device: str = "auto"

    def __post_init__(self):
        for name in ("tokens_per_batch", "max_length", "num_beams"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadInput(f"{name} must be at least 1, found {value}")


def main(options: Options) -> None:
    claim_output(options.out)
    captions = CaptionDB(options.captions)
    if real_path(options.out) == real_path(captions.folder):
        raise BadInput(f"{options.out}: is the database that is translated; choose another folder for the translation")
    sources = read_sources(captions, options.languages)
    tokenizer = CaptionTokenizer.from_pretrained(options.tokenizer, options.lowercase)
    settings = TranslationSettings(
        options.model, options.num_beams, options.max_length, options.tokens_per_batch, options.languages
    )
    journal = Path(f"{options.out}.translations.jsonl")
    english = translate_captions(captions, sources, settings, journal, choose_device(options.device))

    records, more, empty = [], {}, []
    for caption_id, source in sources.items():
        text = english.get(caption_id, source["raw"])
        if not has_word(text):
            empty.append(caption_id)
            text = source["raw"]
        records.append(Caption(source["img_fname"], text, caption_id, "", captions.languages[caption_id]))
        more[caption_id] = {"image_id": source.get("image_id")}
        if caption_id in english:
            more[caption_id]["source_text"] = source["raw"]
    languages = dict.fromkeys(captions.languages[caption_id] for caption_id in captions.ids)
    wanted = [name for name in languages if name != "en" and name in (options.languages or languages)]
    models = {name: settings.model_of(name) for name in wanted}
    translated = {"from": options.captions, "models": models, "num_beams": options.num_beams, "kept": empty}
    annotations = captions.meta.get("annotations", [])
    annotations = list(map(str, annotations)) if isinstance(annotations, list) else [str(annotations)]
    counts = write_caption_db(
        options.out, records, tokenizer, annotations, extra_fields=more,
        extra_meta={"translated": translated}, keys={record.image: record.image for record in records},
    )  # fmt: skip
    if empty:
        print(
            f"warning: {len(empty):,} translations are empty, the source is kept, the first: {empty[0]}",
            file=sys.stderr,
        )
    print(
        f"{options.out}: {counts['captions']:,} captions of {counts['images']:,} pictures, {len(english):,} translated, "
        f"{counts['unknown'] / counts['pieces']:.2%} of word pieces unknown"
    )


def read_sources(captions: CaptionDB, languages: list[str] | None) -> dict[str, dict]:
    """The captions in some languages, all where that is None: caption id → record.

    Raises:
        BadInput: the database does not say its captions' languages or lacks one, or a caption has no text.
    """
    found = Counter(captions.languages.get(caption_id, "") for caption_id in captions.ids)
    if not captions.languages or "" in found:
        raise BadInput(
            f"{captions.folder}: does not say its captions' languages; build it with scripts/build_captions.py"
        )
    for language in languages or []:
        if language not in found:
            raise BadInput(f"{captions.folder}: no caption of language {language}, found {dict(found)}")
    sources = {i: captions[i] for i in captions.ids if captions.languages[i] in (languages or found)}
    for caption_id, record in sources.items():
        if not isinstance(record.get("raw"), str):
            raise BadInput(f"{captions.folder}: caption {caption_id} has no raw text; build the database again")
    return sources


if __name__ == "__main__":
    cli.run(main, Options)
