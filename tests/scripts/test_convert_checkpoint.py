"""Checkpoints of the original and of UNITER: there and back, towers that start from one, the command."""

import pytest
import torch

from configs import cli
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from model import checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.initial import ModelOptions, build_model
from model.objectives.heads import PretrainingHeads
from model.original import files as conversion
from model.transformer import EncoderConfig
from optim.run import load_heads
from scripts import convert_checkpoint
from tests.original_weights import (
    FINETUNED,
    PRETRAINED,
    RETRIEVAL,
    assert_same,
    base_shapes,
    refusal,
    save,
    small_shapes,
    state,
    there_and_back,
    tie,
)

META = {"CLS": 3, "SEP": 4, "MASK": 5, "UNK": 2, "PAD": 0, "v_range": [6, 150], "bert": "tiny"}


# ---- there and back --------------------------------------------------------------------------------------------------


KINDS = [
    FINETUNED, PRETRAINED, RETRIEVAL, "uniter pretraining", f"{RETRIEVAL} bare", f"{FINETUNED} parallel",
    f"{PRETRAINED} parallel", f"{PRETRAINED} buffers",
]  # fmt: skip


def test_the_fixture_has_every_key_of_the_originals_models():
    assert [len(base_shapes(name)) for name in (FINETUNED, PRETRAINED, RETRIEVAL)] == [421, 441, 214]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_state_dict_comes_back_bit_identical(tmp_path, kind):
    tensors = state(kind)
    assert_same(there_and_back(tmp_path, tensors)[1], tensors)


@pytest.mark.parametrize("kind", [FINETUNED, PRETRAINED, "uniter pretraining"])
def test_half_precision_comes_back_as_it_was_and_computes_in_fp32(tmp_path, kind):
    tensors = state(kind, torch.float16)
    assert_same(there_and_back(tmp_path, tensors)[1], tensors)
    if kind == FINETUNED:
        model = LightningDOT.from_pretrained(tmp_path / "ours")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert_same(model.state_dict(), {name: t.float() for name, t in tensors.items()})


def test_finetuned_with_what_stands_beside_it(tmp_path):
    tensors = state(FINETUNED)
    beside = {"scheduler_dict": {"last_epoch": 7}, "offset": 0, "epoch": 14, "encoder_params": {"project_dim": 64}}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    notes, back = there_and_back(tmp_path, {"model_dict": tensors, "optimizer_dict": optimizer, **beside})
    assert_same(back.pop("model_dict"), tensors)
    assert back == {"optimizer_dict": {}, **beside}
    assert "optimizer_dict: left out, and empty on the way back" in notes
    model = LightningDOT.from_pretrained(tmp_path / "ours")
    assert_same(model.state_dict(), tensors)
    assert model.fingerprint == checkpoints.fingerprint(tensors)


def test_towers_that_share_memory(tmp_path):
    tensors = state(FINETUNED)
    names = [f"{side}_model.bert.embeddings.word_embeddings.weight" for side in ("txt", "img")]
    tensors[names[0]] = tensors[names[1]]
    assert_same(there_and_back(tmp_path, tensors)[1], tensors)


def test_the_old_file_format_is_read(tmp_path):
    tensors = state(FINETUNED)
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    conversion.to_ours(tmp_path / "old.pt", tmp_path / "ours")
    assert_same(LightningDOT.from_pretrained(tmp_path / "ours").state_dict(), tensors)


def test_pretrained_gives_towers_and_heads(tmp_path):
    tensors = state(PRETRAINED)
    conversion.to_ours(save(tensors, tmp_path / "a.pt"), tmp_path / "ours", cls_token_id=3)
    model = LightningDOT.from_pretrained(tmp_path / "ours")
    assert_same(model.state_dict(), {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")})
    assert (model.config.num_labels, model.config.feature_dim, model.config.cls_token_id) == (7, 20, 3)
    heads = PretrainingHeads(model.config)
    assert load_heads(heads, tmp_path / "ours")
    assert_same(heads.state_dict(), {n: tensors[n] for n in heads.state_dict()})
    again = build_model(ModelOptions(init=str(tmp_path / "ours")), META, 20, 7, "db/regions")  # training starts from it
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("with_heads", [False, True])
def test_a_run_of_ours_becomes_the_originals_format(tmp_path, with_heads):
    sizes = EncoderConfig(150, 64, 2, 1, 48, max_position_embeddings=24)
    model = LightningDOT(LightningDOTConfig(sizes, sizes, 64, 20, 7))
    model.save_pretrained(tmp_path / "run")
    if with_heads:
        checkpoints.save_tensors(PretrainingHeads(model.config).state_dict(), tmp_path / "run" / "heads.safetensors")
    notes = conversion.to_original(tmp_path / "run", tmp_path / "run.pt")
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    tensors = content if with_heads else content["model_dict"]
    expected = small_shapes(PRETRAINED if with_heads else FINETUNED)
    assert {name: list(t.shape) for name, t in tensors.items()} == expected
    assert set(content) == set(expected) or set(content) == {
        "model_dict", "optimizer_dict", "scheduler_dict", "offset", "epoch", "encoder_params"
    }  # fmt: skip
    assert any("itm_output: zeros" in note for note in notes) == with_heads
    conversion.to_ours(tmp_path / "run.pt", tmp_path / "again")
    assert_same(LightningDOT.from_pretrained(tmp_path / "again").state_dict(), model.state_dict())


def test_a_run_without_region_labels_has_no_pretrained_format(tmp_path):
    sizes = EncoderConfig(50, 64, 2, 1, 48)
    model = LightningDOT(LightningDOTConfig(sizes, sizes, 64, 20, num_labels=0))
    model.save_pretrained(tmp_path / "run")
    checkpoints.save_tensors(PretrainingHeads(model.config).state_dict(), tmp_path / "run" / "heads.safetensors")
    with pytest.raises(BadInput, match=r"run: pre-trained without soft labels; .* Without heads.safetensors"):
        conversion.to_original(tmp_path / "run", tmp_path / "run.pt")


def test_base_size_there_and_back(tmp_path):
    """All 441 tensors of the pre-trained model at their real shapes; half precision, to be quick."""
    bank = torch.randn(30_000_000, generator=torch.Generator().manual_seed(0)).half()
    tensors, start = {}, 0
    for name, shape in base_shapes(PRETRAINED).items():
        size = torch.Size(shape).numel()
        start = (start + 7919) % (len(bank) - size)
        tensors[name] = bank[start : start + size].reshape(shape).clone()
    tie(tensors)
    files = [tmp_path / name for name in ("a.pt", "ours/model.safetensors", "ours/heads.safetensors", "b.pt")]
    try:
        conversion.to_ours(save(tensors, files[0]), tmp_path / "ours")
        values = checkpoints.read_config(tmp_path / "ours")
        assert LightningDOTConfig.from_dict(values) == LightningDOTConfig()  # the defaults are base size
        conversion.to_original(tmp_path / "ours", files[-1])
        assert_same(torch.load(files[-1], weights_only=True, mmap=True), tensors)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


# ---- towers that start from a converted encoder ----------------------------------------------------------------------


@pytest.fixture
def uniter(tmp_path):
    tensors = state("uniter pretraining")
    conversion.to_ours(save(tensors, tmp_path / "uniter.pt"), tmp_path / "uniter")
    return tmp_path / "uniter", {n.removeprefix("uniter."): t for n, t in tensors.items() if n.startswith("uniter.")}


def build(feature_dim=20, **options):
    return build_model(ModelOptions(project_dim=10, **options), META, feature_dim, 7, "db/regions")


def test_both_towers_start_from_a_uniter(uniter):
    folder, tensors = uniter
    model = build(txt_init=str(folder), img_init=str(folder))
    assert_same(model.img_model.bert.state_dict(), tensors)
    text = {name: t for name, t in tensors.items() if not name.startswith("img_embeddings.")}
    assert_same(model.txt_model.bert.state_dict(), text)


def test_a_uniter_is_loaded_whole_or_not_at_all(uniter):
    folder, _ = uniter
    with pytest.raises(BadInput, match=r"^db/regions: region features are 32 wide, but \S*uniter was made for .* 20"):
        build(feature_dim=32, img_init=str(folder))
    whole = checkpoints.read_tensors(folder / "model.safetensors")
    for gone, message in (
        (
            ("img_embeddings.img_linear.weight", "img_embeddings.pos_linear.bias"),
            "missing img_embeddings.pos_linear.bias",
        ),
        (tuple(n for n in whole if n.startswith("img_embeddings.")), "no img_embeddings, which a UNITER has"),
    ):
        checkpoints.save_tensors({n: t for n, t in whole.items() if n not in gone}, folder / "model.safetensors")
        with pytest.raises(BadInput, match=message):
            build(img_init=str(folder))


def test_a_file_in_the_place_of_a_folder_is_told_to_be_converted(tmp_path):
    path = save(state(FINETUNED), tmp_path / "a.pt")
    for options in ({"init": str(path)}, {"txt_init": str(path)}, {"img_init": str(path)}):
        with pytest.raises(BadInput, match=r"a.pt: a file, .*scripts/convert_checkpoint.py makes a folder"):
            build(**options)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def vocabulary(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "cat", "the", "on", "beach"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return tmp_path / "vocab.txt"


def convert(*words):
    options = cli.parse(convert_checkpoint.Options, [str(word) for word in words], ("src", "dst"))
    convert_checkpoint.main(options)


def test_command(tmp_path, command, vocabulary, capsys):
    tensors = state(FINETUNED)
    save(tensors, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "ours", "--tokenizer", vocabulary, "--cls-token-id", 2)
    printed = capsys.readouterr().out
    assert "finetuned, 101 tensors" in printed and "cls_token_id 2" in printed
    tokenizer = CaptionTokenizer.from_pretrained(tmp_path / "ours" / "tokenizer")
    assert tokenizer.input_ids("a dog on the beach") == [5, 7, 10, 9, 11]
    convert(tmp_path / "ours", tmp_path / "b.pt", "--to", "original")
    assert_same(torch.load(tmp_path / "b.pt", weights_only=True), tensors)
    with pytest.raises(BadInput, match="--to original takes all it needs from the folder"):
        convert(tmp_path / "ours", tmp_path / "c.pt", "--to", "original", "--cls-token-id", 2)

    gone = [tensors.popitem()[0] for _ in range(3)]
    save(tensors, tmp_path / "c.pt")
    done = command("scripts/convert_checkpoint.py", tmp_path / "c.pt", tmp_path / "c", status=2)
    assert done.stderr.startswith(f"error: {tmp_path}/c.pt: 3 keys do not fit") and done.stderr.count("\n") == 1
    assert all(f"missing {name}" in done.stderr for name in gone)


def test_a_tokenizer_of_more_words_is_refused(tmp_path, vocabulary):
    vocabulary.write_text(vocabulary.read_text() + "".join(f"word{i}\n" for i in range(160)))
    message = refusal(tmp_path, state(FINETUNED), tokenizer=vocabulary, cls_token_id=2)
    assert "vocab.txt: has 172 words, the word embeddings in /a.pt are for 150" in message
