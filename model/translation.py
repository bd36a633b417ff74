"""Translating captions into English with Marian models, with a journal from which a stopped run goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from data.captions.db import CaptionDB
from data.downloads.hub import TENSORS, Needed, local_folder
from data.errors import BadInput, reason_of
from data.notices import lowered
from data.progress import ProgressBar
from data.storage.atomic import atomic_file, cannot_write_is_bad_input
from data.storage.regular_files import check_folder, open_regular
from data.storage.shapes import check_shape
from data.storage.text_files import parse_json
from model.transformers_folder import check_all_were_loaded, check_folder_settings

MARIAN = Needed("translation model", ("*.json", "*.spm", *TENSORS), weights=True)


@dataclass(frozen=True)
class TranslationSettings:
    """What a translation depends on; a journal that was begun with others is refused.

    Attributes:
        model: Marian model, a folder or a name on the Hugging Face hub; {language} is the caption's
        num_beams: of the search; None: the model's own
        max_length: most tokens of a translation
        tokens_per_batch: most source tokens translated at a time, padding included
        languages: of the captions that are kept; None: all
    """

    model: str
    num_beams: int | None
    max_length: int
    tokens_per_batch: int
    languages: list[str] | None

    def model_of(self, language: str) -> str:
        """The model that translates from a language."""
        return self.model.replace("{language}", language)


class Translator:
    """A Marian model and its tokenizer.

    Raises:
        BadInput: it cannot be loaded, or `sentencepiece` is not installed.
    """

    def __init__(self, name: str, settings: TranslationSettings, device: torch.device):
        from transformers import MarianMTModel, MarianTokenizer  # slow to import

        folder = local_folder(name, MARIAN)
        check_folder(folder)
        check_folder_settings(folder)
        try:
            self.tokenizer = MarianTokenizer.from_pretrained(folder, local_files_only=True)
            model, report = MarianMTModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except Exception as error:  # transformers raises nearly anything here
            raise BadInput(
                f"--model {name}: cannot be loaded as a Marian model ({reason_of(error)}); give a folder, "
                f"as of `hf download {name} --local-dir FOLDER`, and have sentencepiece installed"
            ) from None
        check_all_were_loaded(model, report, f"--model {name}")
        self.name, self.model = name, model.to(device).eval()
        limits = self.tokenizer.model_max_length, self.model.config.max_position_embeddings
        if not all(isinstance(most, int | float) and most >= 1 for most in limits):
            raise BadInput(f"--model {name}: model_max_length {limits[0]!r}, max_position_embeddings {limits[1]!r}: expected 1 or more; copy it again")
        self.cut = {"truncation": True, "max_length": min(limits)}  # tokens of a source
        self.search = {"max_length": lowered(settings.max_length, int(limits[1]), f"--model {name}: max_length", "positions in the model")}
        if settings.num_beams:
            self.search["num_beams"] = settings.num_beams

    @torch.inference_mode()
    def translate(self, texts: list[str]) -> list[str]:
        """The translations of a few texts of about one length."""
        with self._its_errors_are_bad_input():
            batch = self.tokenizer(texts, return_tensors="pt", padding=True, **self.cut).to(self.model.device)
            return self.tokenizer.batch_decode(self.model.generate(**batch, **self.search), skip_special_tokens=True)

    @contextmanager
    def _its_errors_are_bad_input(self) -> Iterator[None]:
        """A vocabulary or generation settings that do not belong to the weights: transformers raises nearly anything then."""
        try:
            yield
        except (BadInput, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise BadInput(f"--model {self.name}: cannot translate ({reason_of(error)}); its files do not fit one another: copy it again") from None

    def batches(self, texts: list[str], tokens: int) -> Iterator[list[int]]:
        """Positions of texts of like length, longest first."""
        with self._its_errors_are_bad_input():
            lengths = [len(ids) for ids in self.tokenizer(texts, **self.cut)["input_ids"]]
        batch: list[int] = []
        for position in sorted(range(len(texts)), key=lambda i: (-lengths[i], i)):
            if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
                yield batch
                batch = []
            batch.append(position)
        yield batch


def read_journal(path: Path, header: dict) -> dict[str, str]:
    """Caption id → translation, of a run that stopped; a line that is cut or damaged is dropped from the file
    with those behind it.

    Raises:
        BadInput: another run's, with other settings.
    """
    if not path.exists():
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    with open_regular(path) as file:
        whole = file.read()
    lines, end = [], 0
    for line in whole.split(b"\n")[:-1]:
        try:
            values = parse_json(line.decode(), f"{path}: a line")
            check_shape(values, {str: str} if lines else {str: object}, f"{path}: a line")  # the first one says the settings
        except (BadInput, UnicodeDecodeError):
            break
        lines.append(values)
        end += len(line) + 1
    if lines and lines[0] != header and {**lines[0], "captions": header["captions"]} == header:
        raise BadInput(
            f"{path}: begun with other captions, some of those have changed since; delete it to translate what there is now"
        )
    if not lines or lines[0] != header:
        raise BadInput(
            f"{path}: begun with other settings ({lines[0] if lines else 'none'}, now {header}); delete it to begin again"
        )
    if end < len(whole):
        with cannot_write_is_bad_input(path), open(path, "r+b") as file:
            file.truncate(end)
    return {caption_id: text for line in lines[1:] for caption_id, text in line.items()}


def translate_captions(
    captions: CaptionDB, sources: dict[str, dict], settings: TranslationSettings, journal: Path, device: torch.device
) -> dict[str, str]:
    """Translate the captions that are not English: caption id → English, read from the journal, or translated into it.

    Args:
        sources: caption id → record, of the captions that are wanted
        journal: file of the translations, a batch on one line, from which a stopped run goes on
    """
    done = read_journal(journal, dataclasses.asdict(settings) | {"captions": captions.fingerprint()})
    by_language: dict[str, list[str]] = {}
    for caption_id in sources:
        if captions.languages[caption_id] != "en":
            by_language.setdefault(captions.languages[caption_id], []).append(caption_id)
    total = sum(map(len, by_language.values()))
    with (
        ProgressBar(what="translating", total=total, initial=len(done), unit="caption") as bar,
        cannot_write_is_bad_input(journal),
        open(journal, "ab") as file,
    ):
        for language, ids in by_language.items():
            if all(i in done for i in ids):
                continue
            translator = Translator(settings.model_of(language), settings, device)
            texts = [sources[i]["raw"] for i in ids]
            for positions in translator.batches(texts, settings.tokens_per_batch):  # the same batches in every run
                batch = [ids[n] for n in positions]
                if batch[0] in done:
                    continue
                line = dict(zip(batch, translator.translate([texts[n] for n in positions]), strict=True))
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
                file.flush()
                done |= line
                bar.update(len(batch))
    return done
