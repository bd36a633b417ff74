"""An option that nothing reads, since another one makes it idle, is refused."""

from pathlib import Path

import pytest

from configs import cli
from data.errors import BadInput
from scripts import (
    build_captions,
    build_index,
    contact_sheet,
    export_index,
    extract_regions,
    plan,
    prepare,
    push_to_hub,
    search,
    serve,
)

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {
    search: ["a dog", "--index", "x", "--checkpoint", "y"],
    serve: ["--index", "x", "--checkpoint", "y"],
    contact_sheet: ["--index", "x", "--checkpoint", "y", "--photos", "p", "--out", "o", "--queries", "q"],
    build_index: ["--checkpoint", "y", "--out", "o", "--captions", "c"],
    export_index: ["--index", "x", "--uri", "milvus.db"],
    push_to_hub: ["x", "user/name"],
    build_captions: ["--annotations", "a", "--tokenizer", "t", "--out", "o"],
    extract_regions: ["--photos", "p", "--out", "o"],
    prepare: ["--photos", "p", "--checkpoint", "y"],
}
POSITIONAL = {search: ("query",), push_to_hub: ("checkpoint", "name")}


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        (serve, "--milvus-uri m.db", "--backends milvus and --milvus-uri go together"),
        (serve, "--backends exact milvus", "--backends milvus and --milvus-uri go together"),
        (serve, "--milvus-token a:b", "--milvus-token has no effect without milvus among --backends; give that too, or leave it out"),
        (serve, "--milvus-captions-collection txt", "--milvus-captions-collection has no effect without milvus"),
        (serve, "--backends exact milvus --milvus-uri m.db --milvus-captions-collection txt", "without --captions-index"),
        (serve, "--target-recall 0.9", "--target-recall has no effect without hnsw or ivfpq among --backends"),
        (serve, "--rerank 20", "--rerank has no effect without --reranker"),
        (serve, "--boxes.min-bb 2", "--boxes has no effect without --regions"),
        (search, "--rerank 20", "--rerank has no effect without --reranker"),
        (search, "--photos p", "--photos has no effect without --sheet"),
        (search, "--captions c", "--captions has no effect without --image or --sheet"),
        (search, "--regions r --photos p --sheet s --boxes.min-bb 2", "--boxes has no effect without --regions for --image or --reranker"),
        (search, "--token a:b", "--token has no effect without --backend milvus"),
        (search, "--target-recall 0.9", "--target-recall has no effect without --backend hnsw or ivfpq"),
        (search, "--extractor-weights w", "--extractor-weights has no effect without a picture file as --image"),
        (contact_sheet, "--rerank 20", "--rerank has no effect without --reranker"),
        (contact_sheet, "--seed 1", "--seed has no effect with --queries; leave it out"),
        (build_index, "--update add --dtype int8", "--dtype has no effect with --update"),
        (build_index, "--boxes.min-bb 2", "--boxes has no effect without --regions"),
        (export_index, "--token a:b", "--token has no effect without a server as --uri"),
        (push_to_hub, "--dry-run --out o", "--out has no effect with --dry-run"),
        (push_to_hub, "--out o --private", "--private has no effect where nothing is sent"),
        (build_captions, "--seed 1", "--seed has no effect without --shares"),
        (build_captions, "--downloaded d", "--downloaded has no effect without --format pairs"),
        (extract_regions, "--extractor hf:x --size 96", "--size has no effect with --extractor hf:x"),
        (prepare, "--tokenizer t", "--tokenizer has no effect without --captions"),
        (prepare, "--captions c --vocab-size 9", "--vocab-size has no effect with --checkpoint, whose tokenizer is taken"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(command, words, sentence):
    with pytest.raises(BadInput, match=sentence):
        cli.parse(command.Options, [*NEEDED[command], *words.split()], POSITIONAL.get(command, ()))


def test_the_captions_of_a_fine_tuning_are_refused_in_a_plan_of_pre_training():
    words = ["--config", str(ROOT / "configs/pretrain/paper.yaml"), "--captions", "9"]
    with pytest.raises(BadInput, match="--captions has no effect with a recipe of pre-training, of whose corpora --counts tells"):
        plan.read_recipe(cli.parse(plan.Options, words))


@pytest.mark.parametrize("command", NEEDED, ids=lambda command: command.__name__)
def test_what_is_needed_alone_is_not_refused(command):
    cli.parse(command.Options, NEEDED[command], POSITIONAL.get(command, ()))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (serve, "--backends exact hnsw milvus --milvus-uri m.db --milvus-token a:b --target-recall 0.9 --captions-index t --milvus-captions-collection c"),
        (serve, "--second-checkpoint a --second-index b --second-regions r --boxes.min-bb 2"),
        (serve, "--second-checkpoint a --second-index b --second-reranker u --rerank 20"),  # which counts for both
        (search, "--regions r --reranker u --rerank 20 --boxes.min-bb 2 --backend hnsw --target-recall 0.9"),
        (build_captions, "--shares train=1 --seed 3 --format pairs --downloaded d"),
        (extract_regions, "--extractor precomputed --num-labels 0 --sizes s"),
        (prepare, "--captions c --tokenizer t --shares train=0.5 val=0.5"),
    ],
)
def test_options_that_are_read_are_not_refused(command, words):
    cli.parse(command.Options, [*NEEDED[command], *words.split()], POSITIONAL.get(command, ()))
