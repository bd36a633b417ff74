#!/usr/bin/env python
"""Translate a caption DB into English with Marian models, so that an English model can be tested on it (translate-test).

python scripts/translate.py --captions db/multi30k/test_2016 --tokenizer bert-base-cased --out db/multi30k_en/test_2016
python scripts/translate.py --captions db/val --model 'models/opus-mt-{language}-en' --languages de fr cs \\
    --tokenizer bert-base-cased --out db/val_en
python eval_itm.py --checkpoint runs/english/best --captions db/val_en --regions db/regions --languages en de fr cs

The same command again goes on after a stop.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

import torch
from tqdm import tqdm

from configs import cli
from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from model.precision import choose_device


@dataclass
class Options:
    """Translate the captions of a text DB into English.

    A caption keeps its id, its picture and its language, so that evaluation has a row for each language it was translated
    from. Its record has the translation as ``raw`` and ``input_ids``, and the source as ``source_text``; ``meta.json`` names
    the models under ``translated``. English captions stay as they are. Translations are kept line by line in
    OUT.translations.jsonl, from which a stopped run goes on.

    Args:
        captions: text DB
        tokenizer: of the English model: Hugging Face BERT-family folder, or a vocab.txt
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
        for name in ("tokens_per_batch", "max_length"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, found {getattr(self, name)}")


class Translator:
    """A Marian model and its tokenizer.

    Raises:
        BadInput: it cannot be loaded, or `sentencepiece` is not installed.
    """

    def __init__(self, name: str, options: Options, device: torch.device):
        from transformers import MarianMTModel, MarianTokenizer

        try:
            self.tokenizer = MarianTokenizer.from_pretrained(name)
            self.model = MarianMTModel.from_pretrained(name).to(device).eval()
        except Exception as error:  # transformers raises nearly anything here
            raise BadInput(
                f"--model {name}: cannot be loaded as a Marian model ({' '.join(str(error).split())[:200]}); give a folder, "
                f"as of `hf download {name} --local-dir FOLDER`, and have sentencepiece installed"
            ) from None
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        self.cut = {"truncation": True, "max_length": longest}  # tokens of a source
        self.search = {"max_length": options.max_length}
        if options.num_beams:
            self.search["num_beams"] = options.num_beams

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[str]:
        """The translations of a few texts of about one length."""
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, **self.cut).to(self.model.device)
        return self.tokenizer.batch_decode(self.model.generate(**batch, **self.search), skip_special_tokens=True)

    def batches(self, texts: list[str], tokens: int) -> Iterator[list[int]]:
        """Positions of texts of like length, longest first."""
        lengths = [len(ids) for ids in self.tokenizer(texts, **self.cut)["input_ids"]]
        batch: list[int] = []
        for position in sorted(range(len(texts)), key=lambda i: (-lengths[i], i)):
            if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
                yield batch
                batch = []
            batch.append(position)
        yield batch


# ---- what was translated before --------------------------------------------------------------------------------------


def read_journal(path: Path, header: dict) -> dict[str, str]:
    """Caption id -> translation, of a run that stopped; a line that is cut or damaged is dropped from the file
    with those behind it.

    Raises:
        BadInput: another run's, with other settings.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    whole = path.read_bytes()
    lines, end = [], 0
    for line in whole.split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        end += len(line) + 1
    if not lines or lines[0] != header:
        raise BadInput(
            f"{path}: begun with other settings ({lines[0] if lines else 'none'}, now {header}); delete it to begin again"
        )
    if end < len(whole):
        with open(path, "r+b") as file:
            file.truncate(end)
    return {caption_id: text for line in lines[1:] for caption_id, text in line.items()}


def translate_all(options: Options, captions: CaptionDB, sources: dict[str, dict], journal: Path) -> dict[str, str]:
    """Caption id -> English, for the captions that are not English: read from the journal, or translated into it."""
    settings = ("model", "num_beams", "max_length", "tokens_per_batch", "languages")
    header = {name: getattr(options, name) for name in settings} | {"captions": captions.fingerprint()}
    done = read_journal(journal, header)
    device = choose_device(options.device)
    by_language: dict[str, list[str]] = {}
    for caption_id in sources:
        if captions.languages[caption_id] != "en":
            by_language.setdefault(captions.languages[caption_id], []).append(caption_id)
    total = sum(map(len, by_language.values()))
    with tqdm(total=total, initial=len(done), unit="caption", desc="translating") as bar, open(journal, "ab") as file:
        for language, ids in by_language.items():
            if all(i in done for i in ids):
                continue
            translator = Translator(options.model.replace("{language}", language), options, device)
            texts = [sources[i]["raw"] for i in ids]
            for positions in translator.batches(texts, options.tokens_per_batch):  # the same batches in every run
                batch = [ids[n] for n in positions]
                if batch[0] in done:
                    continue
                line = dict(zip(batch, translator([texts[n] for n in positions]), strict=True))
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
                file.flush()
                done |= line
                bar.update(len(batch))
    return done


def main(options: Options) -> None:
    captions = CaptionDB(options.captions)
    spoken = Counter(captions.languages.get(i, "") for i in captions.ids)
    if not captions.languages or "" in spoken:
        raise BadInput(
            f"{options.captions}: does not say its captions' languages; build it with scripts/build_captions.py"
        )
    for language in options.languages or []:
        if language not in spoken:
            raise BadInput(f"{options.captions}: no caption of language {language}, found {dict(spoken)}")
    tokenizer = CaptionTokenizer.from_pretrained(options.tokenizer, options.lowercase)
    sources = {i: captions[i] for i in captions.ids if captions.languages[i] in (options.languages or spoken)}
    for caption_id, record in sources.items():
        if not isinstance(record.get("raw"), str):
            raise BadInput(f"{options.captions}: caption {caption_id} has no raw text; build the database again")
    journal = Path(f"{options.out}.translations.jsonl")
    english = translate_all(options, captions, sources, journal)

    records, more, empty = [], {}, []
    for caption_id, source in sources.items():
        text = english.get(caption_id, source["raw"])
        if not text.strip():  # a caption must have words
            empty.append(caption_id)
            text = source["raw"]
        language = captions.languages[caption_id]
        records.append(Caption(source["img_fname"], text, caption_id, "", language))
        more[caption_id] = {"image_id": source.get("image_id")}
        if caption_id in english:
            more[caption_id]["source_text"] = source["raw"]
    models = {name: options.model.replace("{language}", name) for name in spoken if name != "en"}
    models = {name: model for name, model in models.items() if options.languages is None or name in options.languages}
    translated = {"from": options.captions, "models": models, "num_beams": options.num_beams, "kept": empty}
    counts = write_caption_db(
        options.out,
        records,
        tokenizer,
        captions.meta.get("annotations", []),
        extra_fields=more,
        extra_meta={"translated": translated},
    )
    if empty:
        print(
            f"warning: {len(empty):,} translations are empty, the source is kept, the first: {empty[0]}",
            file=sys.stderr,
        )
    print(
        f"{options.out}: {counts['captions']:,} captions of {counts['images']:,} pictures, {len(english):,} translated, "
        f"{counts['unknown'] / counts['pieces']:.2%} of word pieces unknown"
    )


if __name__ == "__main__":
    cli.run(main, Options)
