"""Files that a command reads, one of which is damaged: the table of all formats."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaign import hostile
from tests.campaign.canonical import EXPORTED
from tests.campaign.containers import REWRITTEN
from tests.campaign.damage import damage_file, exchange
from tests.campaign.outcomes import Result
from tests.campaign.rooms import Clean, Room, judge
from tests.campaign.serving_files import FileServer
from tests.campaign.world import EVALUATED, SEARCHED, SMALL

# Why another output is no finding.
OTHERS = "a format of others without a checksum"
TEXT = "text that people write"


@dataclass(frozen=True)
class DamagedFile:
    """A command, and the files of which one is damaged before it runs.

    Attributes:
        name: of the target
        words: script, and its words
        inputs: parts of the world that are copied
        damaged: patterns of files in the box
        outputs: what is compared with the undamaged run's
        free: why another output is no finding; empty where there is a checksum
        rewritable: its checksums are those of the zip file, or of what one writer wrote: another output is no finding where it was written anew
        unchecked: patterns of files beside it that have no checksum
        weight: share of the cases
        prepare: command that is run once in the box before
        exchanged: file → another of its kind, which now and then takes its place
        served: it asks a server for the files in the box
    """

    name: str
    words: list[str]
    inputs: list[str]
    damaged: list[str]
    outputs: list[str] = field(default_factory=lambda: ["out", "out.json"])
    free: str = ""
    rewritable: bool = False
    unchecked: tuple[str, ...] = ()
    weight: float = 1.0
    prepare: list[str] | Callable[[], None] | None = None
    exchanged: dict[str, str] = field(default_factory=dict)
    served: bool = False

    def clean(self, room: Room) -> dict:
        room.fill([*self.inputs, *self.exchanged.values()])
        if self.prepare:
            self._prepare(room)
        with self.server(room):
            return room.clean_run(self.words, self.outputs)

    def server(self, room: Room) -> AbstractContextManager:
        return FileServer(room.box) if self.served else nullcontext()

    def _prepare(self, room: Room) -> None:
        if callable(self.prepare):
            self.prepare(room)
        else:
            room.clean_run(self.prepare, [])
        shutil.rmtree(room.template(self.name), ignore_errors=True)
        shutil.copytree(room.box, room.template(self.name), symlinks=True)

    def run(self, room: Room, clean: Clean, number: int, chance: random.Random) -> Result:
        if self.prepare:
            room.fill_from(room.template(self.name))
        else:
            room.fill([*self.inputs, *self.exchanged.values()])
        with self.server(room):
            return self._run_damaged(room, clean, number, chance)

    def _run_damaged(self, room: Room, clean: Clean, number: int, chance: random.Random) -> Result:
        path = self.chosen(room.box, chance)
        name = str(path.relative_to(room.box))
        if self.exchanged and chance.random() < 0.06:
            old, new = chance.choice(sorted(self.exchanged.items()))
            done = f"{old}: {exchange(room.box / old, room.box / new)}"
        else:
            done = f"{name}: {damage_file(path, chance)}"
        may_differ = bool(self.free) or (self.rewritable and REWRITTEN in done) or any(path.match(each) for each in self.unchecked)
        ended = room.run(self.words, max(30, 20 * clean.seconds))
        outcome, detail = judge(ended, clean, room, self.outputs, may_differ, False)
        if outcome == "memory" and ended.status == 2 and hostile.HUGE in done:  # its size warrants it
            outcome = "refused"
        if escaped := room.escaped():
            outcome, detail = "escaped", escaped
        return Result(self.name, number, outcome, done, detail, self.words, ended.seconds)

    def chosen(self, box: Path, chance: random.Random) -> Path:
        pattern = chance.choice(self.damaged)
        paths = [path for path in sorted(box.glob(pattern)) if path.is_file() and not path.name.endswith(".lock")]
        if not paths:
            raise RuntimeError(f"{self.name}: nothing matches {pattern}")
        return chance.choice(paths)


INDEX = ["scripts/build_index.py", "--checkpoint", "fine/best", "--device", "cpu"]
CAPTIONS = ["scripts/build_captions.py", "--tokenizer", "tokenizer", "--out", "out"]
EXTRACT = ["scripts/extract_regions.py", "--out", "out", "--workers", "0"]
PRECOMPUTED = [*EXTRACT, "--extractor", "precomputed", "--num-labels", "0", "--conf-th", "0"]
SEARCH = ["scripts/search.py", "--queries", "queries.txt", *SEARCHED, "--json", "out.json"]
INSPECT = ["scripts/inspect_db.py", "--verify", "--workers", "0", "--json", "out.json"]
EVALUATE = ["eval_itm.py", *EVALUATED, "--bootstrap", "20", "--output-dir", "out"]
TRAIN = ["train_itm.py", "--config", "finetune.yaml", "--epochs", "1", "--output-dir", "out"]
CONVERT = ["scripts/convert_checkpoint.py", "original.pt", "out", "--text-config", "bert.json", "--image-config", "bert.json", "--cls-token-id", "2"]
EXPORT = ["scripts/export_index.py", "--index", "img", "--uri", "out.db", "--collection", EXPORTED]
PUBLISH = ["scripts/push_to_hub.py", "fine/best", "user/name", "--out", "out"]
REPRODUCE = ["scripts/reproduce.py", "flickr30k", "--recipes", "recipes", "--data-root", ".", "--dry-run"]
WEIGHTS = ["out/last/model.safetensors", "out/metrics.jsonl"]
TRAINED = ["db", "regions", "pre", "finetune.yaml"]
TRANSLATE = ["scripts/translate.py", "--captions", "db/val", "--model", "marian", "--tokenizer", "tokenizer", "--languages", "de", "en", "--max-length", "8", "--num-beams", "1", "--device", "cpu", "--out", "out"]  # fmt: skip
PRETRAIN_ONE = ["pretrain.py", "--config", "pretrain.yaml", "--output-dir", "out", "--num-steps", "1", "--valid-every", "1"]
PRETRAINED = ["db", "regions", "pretrain.yaml"]
TESTED = ["fine", "db/test", "regions"]


def make_parts(room: Room) -> None:
    for shard in ("1/2", "2/2"):
        room.clean_run([*EXTRACT, *SMALL, "--photos", "photo", "--shard", shard], [])


def make_columns(room: Room) -> None:
    """Keep the tables of these small databases as large ones have them."""
    import os

    from data.captions.db import CaptionDB
    from data.regions.db import RegionDB
    from data.storage import columns

    columns.STORED_FROM = 0
    os.chdir(room.box)
    os.environ["XDG_CACHE_HOME"] = str(room.box / "cache")
    CaptionDB("db/test"), RegionDB("regions")
    made = sorted(path.parent.name for path in room.box.rglob("sources.json"))
    if not made:
        raise RuntimeError("no columns were made")


DATABASES = [
    DamagedFile("image DB, inspect_db", [*INSPECT, "regions"], ["regions"], ["regions/*/data.mdb"] * 3 + ["regions/*/*", "regions/*.json"], rewritable=True, unchecked=("*.json",), weight=3),
    DamagedFile("image DB, build_index", [*INDEX, "--regions", "regions", "--out", "out"], ["fine", "regions"], ["regions/*/data.mdb"] * 3 + ["regions/*/*"], rewritable=True, unchecked=("*.json",), weight=2),
    DamagedFile("image DB, train_itm", TRAIN, TRAINED, ["regions/*/data.mdb"] * 3 + ["regions/*/*"], WEIGHTS, rewritable=True, unchecked=("*.json",), weight=0.5),
    DamagedFile("text DB, inspect_db", [*INSPECT, "db/test", "--regions", "regions"], ["db/test", "regions"], ["db/test/data.mdb", "db/test/*"], rewritable=True, unchecked=("*.json",), weight=3),
    DamagedFile("text DB, build_index", [*INDEX, "--captions", "db/test", "--out", "out"], ["fine", "db/test"], ["db/test/data.mdb", "db/test/*"], rewritable=True, unchecked=("*.json",), weight=2),
    DamagedFile("text DB, eval_itm", EVALUATE, TESTED, ["db/test/data.mdb", "db/test/*"], rewritable=True, unchecked=("*.json",), weight=0.5),
    DamagedFile("columns of databases, eval_itm", EVALUATE, TESTED, ["**/*.npy", "**/sources.json"], unchecked=("*.json",), weight=0.7, prepare=make_columns),
    DamagedFile("UNITER's image DB, inspect_db", [*INSPECT, "uniter_db/img"], ["uniter_db"], ["uniter_db/img/**/*.*"], free=OTHERS, weight=2),
    DamagedFile("UNITER's text DB, inspect_db", [*INSPECT, "uniter_db/txt"], ["uniter_db"], ["uniter_db/txt/**/*.*"], free=OTHERS, weight=2),
    DamagedFile("feature index, search", SEARCH, ["fine", "img", "queries.txt"], ["img/data.mdb"] * 4 + ["img/*"], weight=3, exchanged={"img/data.mdb": "eval_b/img/data.mdb"}, unchecked=("*.json",)),
    DamagedFile("feature index, inspect_db", [*INSPECT, "img"], ["img"], ["img/data.mdb"] * 4 + ["img/*"], weight=3, unchecked=("*.json",)),
    DamagedFile("feature index, build_index --update", [*INDEX, "--regions", "regions", "--out", "img", "--update", "replace"], ["fine", "img", "regions"], ["img/data.mdb"] * 4 + ["img/*"], ["img"], unchecked=("*.json",)),
    DamagedFile("feature index, build_index --delete", [*INDEX, "--delete", "delete.txt", "--out", "img"], ["fine", "img", "delete.txt"], ["img/data.mdb"] * 4 + ["img/*"], ["img"], unchecked=("*.json",)),
    DamagedFile("feature index of captions, search", ["scripts/search.py", "--image", "scene_000020.npz", "--regions", "regions", "--index", "txt", "--checkpoint", "fine/best", "--captions", "db/test", "--json", "out.json"], [*TESTED, "txt"], ["txt/data.mdb"] * 3 + ["txt/*", "db/test/*"], unchecked=("*.json",)),
    DamagedFile("feature index, export_index", EXPORT, ["img"], ["img/data.mdb"] * 4 + ["img/*"], ["out.db"], unchecked=("*.json",)),
    DamagedFile("export to milvus-lite, search", ["scripts/search.py", "--queries", "queries.txt", "--backend", "milvus", "--uri", "out.db", "--index", EXPORTED, "--checkpoint", "fine/best", "--json", "out.json"], ["fine", "img", "queries.txt"], ["out.db/**/*.*"], prepare=EXPORT, free=OTHERS),
    DamagedFile("hnsw, search", [*SEARCH, "--backend", "hnsw"], ["fine", "img", "queries.txt"], ["img/hnsw.*"], prepare=[*SEARCH, "--backend", "hnsw"]),
    DamagedFile("ivfpq, search", [*SEARCH, "--backend", "ivfpq"], ["fine", "img", "queries.txt"], ["img/ivfpq.*"], prepare=[*SEARCH, "--backend", "ivfpq"]),
]  # fmt: skip
MODELS = [
    DamagedFile("checkpoint, search", SEARCH, ["fine", "img", "queries.txt"], ["fine/best/*.json", "fine/best/*.safetensors", "fine/best/*.safetensors", "fine/best/tokenizer/*"], weight=3, exchanged={"fine/best/model.safetensors": "other/best/model.safetensors", "fine/best/config.json": "pre/last/config.json"}),
    DamagedFile("checkpoint, build_index", [*INDEX, "--regions", "regions", "--out", "out"], ["fine", "regions"], ["fine/best/*.json", "fine/best/*.safetensors"], exchanged={"fine/best/model.safetensors": "other/best/model.safetensors"}),
    DamagedFile("checkpoint, push_to_hub", PUBLISH, ["fine"], ["fine/best/*.json", "fine/best/*.safetensors", "fine/best/tokenizer/*", "fine/*.*"], free="a card says what stands in files without a checksum"),
    DamagedFile("re-ranker, eval_itm", [*EVALUATE, "--reranker", "uniter/best", "--rerank-top", "4"], [*TESTED, "uniter"], ["uniter/best/*.json", "uniter/best/*.safetensors"], weight=0.7, exchanged={"uniter/best/model.safetensors": "fine/best/model.safetensors"}),
    DamagedFile("stopped pre-training, pretrain", ["pretrain.py", "--config", "pretrain.yaml", "--output-dir", "stopped"], ["db", "regions", "stopped", "pretrain.yaml"], ["stopped/last/*.*", "stopped/last/*.pt", "stopped/last/*.pt", "stopped/config.yaml"], ["stopped/last", "stopped/best", "stopped/checkpoints"], rewritable=True, weight=0.7),
    DamagedFile("stopped fine-tuning, train_itm", ["train_itm.py", "--config", "finetune.yaml", "--output-dir", "stopped_fine"], [*TRAINED, "stopped_fine"], ["stopped_fine/last/*.*", "stopped_fine/last/*.pt", "stopped_fine/config.yaml"], ["stopped_fine/last", "stopped_fine/best", "stopped_fine/checkpoints"], rewritable=True, weight=0.7),
    DamagedFile("metrics of a stopped run, pretrain", ["pretrain.py", "--config", "pretrain.yaml", "--output-dir", "stopped"], ["db", "regions", "stopped", "pretrain.yaml"], ["stopped/metrics.jsonl", "stopped/run.json"], ["stopped"], free="lines of metrics", weight=0.5),
    DamagedFile("metrics, plot_runs", ["scripts/plot_runs.py", "fine", "other", "--out", "out.png"], ["fine", "other"], ["fine/metrics.jsonl", "fine/*.*"], free="lines of metrics"),
    DamagedFile("a run, report", ["scripts/report.py", "fine", "--out", "out.html"], ["fine"], ["fine/*.*", "fine/last/*.json"], ["out.html"], free="lines of metrics", weight=0.7),
    DamagedFile("evaluation, report", ["scripts/report.py", "eval", "--out", "out.html"], ["eval"], ["eval/*.json", "eval/*.npz"], ["out.html"], free="its numbers"),
    DamagedFile("ranks and results, compare", ["scripts/compare.py", "eval", "eval_b", "--bootstrap", "50", "--json", "out.json"], ["eval", "eval_b"], ["eval/ranks.npz", "eval/ranks.npz", "eval/results.json"], free="results.json says its numbers without a checksum", weight=2, exchanged={"eval/ranks.npz": "eval_b/ranks.npz"}),
    DamagedFile("original checkpoint, convert_checkpoint", CONVERT, ["original.pt", "bert.json"], ["original.pt"], rewritable=True, weight=2),
    DamagedFile("tokenizer, build_captions", [*CAPTIONS, "--annotations", "captions.jsonl"], ["tokenizer", "captions.jsonl"], ["tokenizer/*"], free=OTHERS, weight=2),
    DamagedFile("teacher's scores, train_itm", [*TRAIN, "--distill.scores", "teacher.npz", "--distill.weight", "1"], [*TRAINED, "teacher.npz"], ["teacher.npz"], WEIGHTS, weight=0.7),
]  # fmt: skip


def score_target(name: str, *words: str) -> DamagedFile:
    scores = [*EVALUATE, "--rerank-scores", f"scores/{name}", "--rerank-top", "4", *words]
    return DamagedFile(f"scores {name}, eval_itm", scores, [*TESTED, "scores"], [f"scores/{name}"], free=OTHERS, weight=0.5)


IDS = ["--rerank-ids", "scores/captions.txt", "scores/images.txt", "--rerank-rows", "captions"]
SCORES = [score_target("matrix.npz"), score_target("list.tsv"), score_target("results.bin"), score_target("matrix.npy", *IDS), score_target("tensor.bin", *IDS)]


def annotation_target(form: str, path: str, damaged: str = "", *words: str) -> DamagedFile:
    command = [*CAPTIONS, "--annotations", f"annotations/{path}", "--format", form, *words]
    return DamagedFile(f"{form} {path}, build_captions", command, ["tokenizer", "annotations"], [f"annotations/{damaged or path}"], free=TEXT, weight=0.8)


ANNOTATIONS = [
    annotation_target("jsonl", "own.jsonl"),
    annotation_target("jsonl", "packed.jsonl.gz"),
    annotation_target("karpathy", "dataset_own.json"),
    annotation_target("coco", "captions_own.json"),
    annotation_target("token", "results.token"),
    annotation_target("pairs", "pairs.tsv", "[pf]*s.tsv", "--downloaded", "annotations/files.tsv"),
    annotation_target("pairs", "pairs.json"),
    annotation_target("pairs", "pairs.jsonl"),
    annotation_target("pairs", "pairs.csv"),
    annotation_target("visual-genome", "region_descriptions.json"),
    annotation_target("image-meta", "own_meta.json"),
    annotation_target("stair", "stair_captions_v1.2_val.json"),
    annotation_target("coco-cn", "coco_cn", "coco_cn/*"),
    annotation_target("multi30k-task1", "multi30k", "multi30k/data/task1/*/*"),
    DamagedFile("annotations, train_tokenizer", ["scripts/train_tokenizer.py", "--annotations", "captions.jsonl", "--vocab-size", "300", "--out", "out"], ["captions.jsonl"], ["captions.jsonl"], free=TEXT),
]  # fmt: skip
REGIONS = [
    DamagedFile("regions .npz, extract_regions", [*PRECOMPUTED, "--photos", "forms/npz"], ["forms/npz"], ["forms/npz/*"], free=OTHERS, weight=1.5),
    DamagedFile("regions .npy, extract_regions", [*PRECOMPUTED, "--photos", "forms/npy", "--sizes", "forms/sizes.json"], ["forms"], ["forms/npy/*", "forms/npy/*", "forms/sizes.json"], free=OTHERS, weight=1.5),
    DamagedFile("regions .tsv, extract_regions", [*PRECOMPUTED, "--photos", "forms/features.tsv"], ["forms/features.tsv"], ["forms/features.tsv"], free=OTHERS, weight=1.5),
    DamagedFile("regions .h5, extract_regions", [*PRECOMPUTED, "--photos", "forms/all.h5"], ["forms/all.h5"], ["forms/all.h5"], free=OTHERS, weight=1.5),
    DamagedFile("photographs, extract_regions", [*EXTRACT, *SMALL, "--photos", "photo"], ["photo"], ["photo/*"], free=OTHERS, weight=2),
    DamagedFile("photographs in a tar, extract_regions", [*EXTRACT, *SMALL, "--photos", "photos.tar"], ["photos.tar"], ["photos.tar"], free=OTHERS, weight=1.5),
    DamagedFile("list of photographs, extract_regions", [*EXTRACT, *SMALL, "--photos", "photos", "--list", "pictures.txt"], ["photos", "pictures.txt"], ["pictures.txt"], free=TEXT, weight=0.5),
]  # fmt: skip
TEXTS = [
    DamagedFile("recipe of pre-training, plan", ["scripts/plan.py", "--config", "pretrain.yaml", "--gpu", "h100", "--json", "out.json"], ["pretrain.yaml", "db"], ["pretrain.yaml"], free=TEXT),
    DamagedFile("recipe of fine-tuning, plan", ["scripts/plan.py", "--config", "finetune.yaml", "--kind", "finetune", "--gpu", "h100", "--json", "out.json"], ["finetune.yaml", "db", "pre"], ["finetune.yaml"], free=TEXT),
    DamagedFile("recipes of tables, reproduce", REPRODUCE, ["recipes"], ["recipes/*/*"], free=TEXT),
    DamagedFile("recipe of evaluation, eval_itm", ["eval_itm.py", "--config", "eval.yaml"], [*TESTED, "eval.yaml"], ["eval.yaml"], free=TEXT),
    DamagedFile("original's config, convert_config", ["scripts/convert_config.py", "original.json", "--out", "out.yaml"], ["original.json"], ["original.json"], ["out.yaml"], free=TEXT, weight=2),
    DamagedFile("benchmark's results, retrieval_table", ["scripts/retrieval_table.py", "--results", "measured.json"], ["measured.json"], ["measured.json"], free=TEXT),
    DamagedFile("sources of downloads, download", ["scripts/download.py", "x", "--sources", "sources.yaml", "--out", "out"], ["sources.yaml"], ["sources.yaml"], free=TEXT),
    DamagedFile("queries, search", SEARCH, ["fine", "img", "queries.txt"], ["queries.txt"], free=TEXT),
    DamagedFile("ids to delete, build_index", [*INDEX, "--delete", "delete.txt", "--out", "img"], ["fine", "img", "delete.txt"], ["delete.txt"], ["img"], free=TEXT, weight=0.5),
]  # fmt: skip
OF_OTHERS = [
    DamagedFile("archives, download", ["scripts/download.py", "x", "--sources", "served.yaml", "--out", "out", "--retries", "0"], ["captions.zip", "captions.tar", "photos.tar"], ["captions.*", "photos.tar", "served.yaml"], free=OTHERS, served=True),
    DamagedFile("pictures and their list, download_pictures", ["scripts/download_pictures.py", "served.tsv", "--out", "out", "--workers", "3"], ["photo"], ["photo/*", "served.tsv"], free=OTHERS, served=True, weight=0.5),
    DamagedFile("Marian model, translate", TRANSLATE, ["db/val", "marian", "tokenizer"], ["marian/*"], free=OTHERS, weight=0.7),
    DamagedFile("text DB, translate", TRANSLATE, ["db/val", "marian", "tokenizer"], ["db/val/data.mdb", "db/val/*"], rewritable=True, unchecked=("*.json",), weight=0.5),
    DamagedFile("transformers' vision model, extract_regions", [*EXTRACT, "--extractor", "hf:others/vit", "--photos", "photo"], ["photo", "others/vit"], ["others/vit/*"], free=OTHERS),
    DamagedFile("transformers' text model, pretrain", [*PRETRAIN_ONE, "--model.txt-init", "others/text", "--model.txt-encoder", "auto"], [*PRETRAINED, "others/text"], ["others/text/*"], WEIGHTS, free=OTHERS, weight=0.7),
    DamagedFile("BERT, pretrain", [*PRETRAIN_ONE, "--model.txt-init", "others/bert"], [*PRETRAINED, "others/bert"], ["others/bert/*"], WEIGHTS, free=OTHERS, weight=0.7),
    DamagedFile("photograph, search", ["scripts/search.py", "--image", "asked.jpg", "--regions", "regions", "--index", "txt", "--checkpoint", "fine/best", "--captions", "db/test", "--json", "out.json"], ["fine", "txt", "db/test", "regions", "asked.jpg"], ["asked.jpg"], free=OTHERS),
    DamagedFile("photographs, contact_sheet", ["scripts/contact_sheet.py", *SEARCHED, "--photos", "photos", "--captions", "db/test", "--n", "2", "--out", "out.png"], ["fine", "img", "photos", "db/test"], ["photos/*", "db/test/*", "img/data.mdb"], [], free=OTHERS, weight=0.7),
    DamagedFile("parts, extract_regions --merge", [*EXTRACT, *SMALL, "--photos", "photo", "--merge"], ["photo"], ["out/part-*/*/*", "out/part-*/*.json"], ["out/feat_th0.2_max100_min10", "out/nbb_th0.2_max100_min10.json", "out/report.json"], rewritable=True, unchecked=("*.json",), prepare=make_parts),
    DamagedFile("checkpoint, convert_checkpoint --to original", ["scripts/convert_checkpoint.py", "pre/last", "out.pt", "--to", "original"], ["pre"], ["pre/last/*.json", "pre/last/*.safetensors"], ["out.pt"], unchecked=("*.json",), weight=0.5),
    DamagedFile("lists of splits, build_captions", [*CAPTIONS, "--annotations", "annotations/results.token", "--format", "token", "--split-lists", "train=lists/train.txt", "val=lists/val.txt", "--exclude", "lists/excluded.txt"], ["tokenizer", "annotations", "lists"], ["lists/*"], free=TEXT),
    DamagedFile("re-ranker and index, search", [*SEARCH, "--reranker", "uniter/best", "--regions", "regions", "--k", "3", "--rerank", "5"], ["fine", "img", "queries.txt", "uniter", "regions"], ["uniter/best/*.json", "uniter/best/*.safetensors", "regions/*/data.mdb"], rewritable=True, unchecked=("*.json",), weight=0.5),
]  # fmt: skip
FILES = [*DATABASES, *MODELS, *SCORES, *ANNOTATIONS, *REGIONS, *TEXTS, *OF_OTHERS]
