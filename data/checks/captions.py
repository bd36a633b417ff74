"""Text databases: their tables, which must agree with each other and with the records, and each caption's record."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.captions.db import SPECIAL, decoded_caption, read_caption, read_table, stored_caption
from data.checks.records import (
    OTHER_SUM,
    Checked,
    InspectionOptions,
    check_records,
    duplicates,
    expected_sums,
    file_size,
    own_transaction,
    walked_keys,
)
from data.checks.report import Findings, Report
from data.downloads.hub import DATASET, local_folder
from data.errors import BadInput
from data.regions.db import layout_of, read_keys, stored_keys
from data.storage.record_sums import is_as_written
from data.storage.regular_files import is_there

SHAPES = {  # as far as the rest is not looked at record by record
    "id2len": dict,
    "txt2img": {str: str},
    "img2txts": {str: [str]},
    "meta": {f"{name}?": int for name in ("CLS", "SEP", "MASK", "UNK", "PAD")},
    "txt2lang": {str: str},
}
TABLES = ("id2len", "txt2img", "img2txts", "meta")


def inspect_captions(folder: Path, options: InspectionOptions) -> Report:
    """A text DB, with its tables."""
    report = Report(str(folder), "text DB")
    there = [*TABLES, *(["txt2lang"] if is_there(folder / "txt2lang.json") else [])]
    tables = {"txt2lang": {}} | {name: read_table(folder, f"{name}.json", SHAPES[name]) for name in there}
    stored = walked_keys(folder, list(tables["id2len"]), report.problems)
    lengths, languages, meta = tables["id2len"], tables["txt2lang"], tables["meta"]
    if not stored:
        raise BadInput(f"{folder}: the database is empty; build it from a split that has captions")
    have = set(stored)
    report.problems.merge(table_problems(tables, have))
    per_language = Counter(languages.values())
    report.facts |= {
        "records": len(stored),
        "pictures": len(tables["img2txts"]),
        "size": file_size(folder),
        "languages": ", ".join(f"{name} {n:,}" for name, n in per_language.items()) or "not stored (no txt2lang.json)",
        "made of": ", ".join(map(str, made_of)) if isinstance(made_of := meta.get("annotations", []), list) else str(made_of),
        "vocabulary": f"{meta.get('bert', 'not named')}, v_range {meta.get('v_range')}",
        "special ids": ", ".join(f"{n} {meta[n]}" for n in ("PAD", "UNK", "CLS", "SEP", "MASK") if n in meta),
        "tokenizer": "stored" if (folder / "tokenizer").is_dir() else "not stored",
    }
    ids = sorted(stored)
    sums = expected_sums(folder, ids, report)
    jobs = [(i, (lengths.get(i), tables["txt2img"].get(i), languages.get(i)), checksum) for i, checksum in zip(ids, sums)]
    done = check_records(report, functools.partial(check_captions, folder=folder, meta=meta), jobs, "caption", options)
    report.facts["unknown pieces"] = f"{done.unknown:,} of {sum(n * c for n, c in done.sizes.items()):,} read"
    report.histograms["captions of a picture"] = Counter(len(captions) for captions in tables["img2txts"].values())
    report.histograms["word pieces of a caption"] = Counter(n for n in lengths.values() if isinstance(n, int))
    report.notes.add_all("captions of one picture with equal words", duplicates(done.digests))
    if options.regions:
        _check_pictures(folder, tables, options.regions, report)
    for caption_id in itertools.islice((i for i in lengths if i in have), options.first):
        report.first.append(_caption_line(folder, caption_id, languages.get(caption_id)))
    return report


def _check_pictures(folder: Path, tables: dict[str, dict], regions: str, report: Report) -> None:
    path = local_folder(regions, DATASET)
    keys = set(read_keys(path)) if layout_of(path.name) and (path / "data.mdb").exists() else stored_keys(path)
    missing = (
        f"{folder.name}: caption {i!r} is about {key!r}" for i, key in tables["txt2img"].items() if key not in keys
    )
    report.problems.add_all(f"captions whose picture is not in {regions}", missing)
    without = sorted(keys - tables["img2txts"].keys())
    report.notes.add_all(f"pictures of {regions} without captions here", without)
    report.facts["pictures found"] = (
        f"{len(keys & tables['img2txts'].keys()):,} of {len(tables['img2txts']):,} in {regions}"
    )


def _caption_line(folder: Path, caption_id: str, language: str | None) -> str:
    try:
        record = read_caption(own_transaction(folder), folder, caption_id)
    except BadInput:
        return f"{caption_id}: damaged"
    words = record.get("raw") or " ".join(record.get("toked_caption") or map(str, record["input_ids"]))
    return f"{caption_id}{f' [{language}]' if language else ''} {record['img_fname']}: {words}"


def table_problems(tables: dict[str, dict], stored: set[str]) -> Findings:
    """What is wrong among the JSON tables of a text DB (``id2len, txt2img, img2txts, txt2lang, meta``) and its keys."""
    found = Findings()
    lengths, txt2img, img2txts = tables["id2len"], tables["txt2img"], tables["img2txts"]
    found.add_all("captions of id2len.json that are not stored", (i for i in lengths if i not in stored))
    found.add_all("stored captions that id2len.json lacks", sorted(stored - lengths.keys()))
    found.add_all("captions that txt2img.json lacks", (i for i in lengths if i not in txt2img))
    found.add_all("captions of txt2img.json that id2len.json lacks", (i for i in txt2img if i not in lengths))
    if tables["txt2lang"]:
        found.add_all("captions that txt2lang.json lacks", (i for i in lengths if i not in tables["txt2lang"]))
    back = Counter()
    for image, captions in img2txts.items():
        if not captions:
            found.add("pictures of img2txts.json without captions", image)
        for i in captions:
            back[i] += 1
            if txt2img.get(i) != image:
                found.add(
                    "captions of img2txts.json that txt2img.json gives to another picture",
                    f"caption {i!r} of {image!r}, txt2img.json says {txt2img.get(i)!r}",
                )
    found.add_all("captions that img2txts.json lacks", (i for i in txt2img if i not in back))
    found.add_all("captions that img2txts.json lists twice", (i for i, n in back.items() if n > 1))
    meta = tables["meta"]
    found.add_all(
        "settings that meta.json lacks", (name for name in ("CLS", "SEP", "MASK", "v_range") if name not in meta)
    )
    span = meta.get("v_range", [0, 1])
    if not (
        isinstance(span, list) and len(span) == 2 and all(isinstance(i, int) for i in span) and 0 <= span[0] < span[1]
    ):
        found.add("a bad v_range in meta.json", f"{span!r}, expected [first id, end]")
    else:
        ids = {name: meta.get(name) for name in SPECIAL}  # foreign ones may lack some
        drawn = [name for name, number in ids.items() if isinstance(number, int) and span[0] <= number < span[1]]
        found.add_all("special tokens inside v_range, drawn as random words", drawn)
    return found


# ---- record by record ------------------------------------------------------------------------------------------------


def check_captions(chunk: list[tuple[str, tuple, int]], folder: Path, meta: dict) -> Checked:
    """Read captions and say what is wrong with them.

    Args:
        chunk: (caption id, (length, picture key, language) as the tables say, None where they say nothing, checksum, or 0)
        folder: the text DB
        meta: its ``meta.json``
    """
    done = Checked()
    txn = own_transaction(folder)
    special = {meta[name]: name for name in ("CLS", "SEP", "MASK", "PAD") if name in meta}
    for caption_id, expected, checksum in chunk:
        try:
            value = stored_caption(txn, folder, caption_id)
            if not is_as_written(value, checksum):
                done.problems.add(OTHER_SUM, f"{folder.name}: caption {caption_id!r}")
            record = decoded_caption(value, folder, caption_id)
            ids = np.array(record["input_ids"], np.int64).reshape(len(record["input_ids"]))
        except BadInput as error:
            done.problems.add("records that cannot be read", str(error))
            txn.abort()  # a damaged page ends the transaction that met it
            txn = own_transaction(folder)
            continue
        except (TypeError, ValueError, OverflowError):
            ids = f"input_ids is {str(record['input_ids'])[:60]}, expected a list of numbers"
            done.problems.add("records that cannot be read", f"{folder.name}: caption {caption_id!r}: {ids}")
            continue
        done.sizes[len(ids)] += 1
        done.unknown += int((ids == meta.get("UNK", -1)).sum())
        for kind, detail in caption_problems(record, ids, expected, special):
            done.problems.add(kind, f"{folder.name}: caption {caption_id!r}: {detail}")
        content = str(record["img_fname"]).encode() + b"\0" + ids.tobytes()
        done.digests.append((caption_id, blake2b(content, digest_size=8).digest()))
    return done


def caption_problems(
    record: dict, ids: np.ndarray, expected: tuple, special: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """(Kind, detail) of everything wrong with one caption's record; `expected` as for `check_captions`."""
    length, image, language = expected
    if len(ids) == 0:
        yield "captions without words", "input_ids is empty"
    if length is not None and length != len(ids):
        yield "lengths that disagree with id2len.json", f"{len(ids)} word pieces, id2len.json says {length}"
    if image is not None and image != record["img_fname"]:
        yield "pictures that disagree with txt2img.json", f"img_fname {record['img_fname']!r}, txt2img.json {image!r}"
    if None not in (language, record.get("lang")) and language != record["lang"]:
        yield "languages that disagree with txt2lang.json", f"lang {record['lang']!r}, txt2lang.json {language!r}"
    inside = [special[i] for i in ids.tolist() if i in special]
    if inside:
        yield "special tokens inside captions", f"[{inside[0]}] among its input_ids"
    if len(ids) and ids.min() < 0:
        yield "negative word-piece ids", f"{ids.min()}"
