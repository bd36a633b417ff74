"""Checkpoints of the original and of UNITER: there and back, strictly, and what is refused."""

import argparse
import json
import re
from pathlib import Path

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

TEMPLATE = json.loads((Path(__file__).parents[1] / "fixtures" / "keys_base.json").read_text())
# Base size made small. The region feature is 20 wide, and the projection as wide as the hidden state.
SMALL = {28996: 150, 768: 64, 3072: 48, 2048: 20, 512: 24, 1536: 128, 1601: 7}
FINETUNED, PRETRAINED, RETRIEVAL = "BiEncoder", "BiEncoderForPretraining", "UniterForImageTextRetrieval"
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "feat_regress.weight": "img_embeddings.img_linear.weight",
}
META = {"CLS": 3, "SEP": 4, "MASK": 5, "UNK": 2, "PAD": 0, "v_range": [6, 150], "bert": "tiny"}


def base_shapes(model):
    """Every name and shape of a model of the original at base size; the fixture holds repeated parts once."""
    shapes = {}
    for prefix, part in TEMPLATE["models"][model]:
        for layer in range(TEMPLATE["layers"] if "*" in prefix else 1):
            for name, shape in TEMPLATE["parts"][part].items():
                shapes[prefix.replace("*", str(layer)) + name] = shape
    return shapes


def small_shapes(model, layers=2):
    deep = re.compile(rf"layer\.({'|'.join(map(str, range(layers, 12)))})\.")
    return {n: [SMALL.get(s, s) for s in shape] for n, shape in base_shapes(model).items() if not deep.search(n)}


def tie(tensors):
    tower = next(name[: name.index("embeddings.word")] for name in tensors if "embeddings.word" in name)
    for name, owner in TIED.items():
        if name in tensors:
            tensors[name] = tensors[tower + owner]
    return tensors


def random_tensors(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tie({name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()})


def uniter_pretraining(dtype=torch.float32):
    """UNITER's pre-training model: the image tower of ours with other prefixes."""
    shapes = {n.replace("bert.img_model.bert.", "uniter."): s for n, s in small_shapes(PRETRAINED).items()
              if "txt_model" not in n and "encode_proj" not in n}  # fmt: skip
    return random_tensors(shapes, dtype)


def state(kind, dtype=torch.float32):
    if kind == "uniter pretraining":
        return uniter_pretraining(dtype)
    tensors = random_tensors(small_shapes(kind.split()[0]), dtype)
    if kind.endswith("bare"):  # an encoder without heads
        return {name: t for name, t in tensors.items() if name.startswith("bert.")}
    if kind.endswith("parallel"):
        return {f"module.{name}": t for name, t in tensors.items()}
    if kind.endswith("buffers"):
        return tensors | {"bert.txt_model.bert.embeddings.position_ids": torch.arange(24)[None]}
    return tensors


def save(tensors, path):
    torch.save(tensors, path)
    return path


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def there_and_back(folder, content, **settings):
    source = save(content, folder / "a.pt")
    notes = conversion.to_ours(source, folder / "ours", **settings)
    conversion.to_original(folder / "ours", folder / "b.pt")
    return notes, torch.load(folder / "b.pt", weights_only=True)


def refusal(folder, content, **settings):
    with pytest.raises(BadInput) as error:
        conversion.to_ours(save(content, folder / "a.pt"), folder / "ours", **settings)
    assert not (folder / "ours").exists()
    return str(error.value).replace(str(folder), "")


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


# ---- strictness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FINETUNED, PRETRAINED, RETRIEVAL, "uniter pretraining"])
def test_every_key_that_does_not_fit_is_listed(tmp_path, kind):
    tensors = state(kind)
    names = [n for n in tensors if "embeddings.word" not in n and "decoder" not in n and "feat_regress.weight" not in n]
    gone, bent, whole = names[1::9], names[2::9], names[3]
    changed = {name: t for name, t in tensors.items() if name not in gone} | {"vqa_output.0.weight": torch.ones(2, 2)}
    for name in bent:
        changed[name] = torch.zeros(*tensors[name].shape, 3)
    changed[whole] = changed[whole].int()
    message = refusal(tmp_path, changed)
    assert f"{len(gone) + len(bent) + 2} keys do not fit the model" in message
    assert "unexpected vqa_output.0.weight" in message and f"{whole} has type torch.int32" in message
    for name in gone:
        assert f"missing {name};" in message
    for name in bent:
        shape = list(tensors[name].shape)
        assert f"{name} has shape {[*shape, 3]}, expected {shape}" in message


@pytest.mark.parametrize("kind", [FINETUNED, PRETRAINED, RETRIEVAL])
@pytest.mark.parametrize("axis", [0, -1])
def test_one_wrong_width_is_told_from_all_the_others(tmp_path, kind, axis):
    tensors = state(kind)
    name = next(n for n in tensors if n.endswith("layer.1.attention.output.LayerNorm.bias"))
    tensors[name] = tensors[name].repeat_interleave(2, axis)
    assert f"1 keys do not fit the model: {name} has shape [128], expected [64]" in refusal(tmp_path, tensors)


def test_a_whole_head_or_the_region_embeddings_are_missed(tmp_path):
    tensors = state(PRETRAINED)
    message = refusal(tmp_path, {n: t for n, t in tensors.items() if not n.startswith("region_classifier.")})
    assert "6 keys" in message and message.count("missing region_classifier.net.") == 6
    message = refusal(tmp_path, {n: t for n, t in state(RETRIEVAL).items() if not n.startswith("rank_output.")})
    assert "2 keys" in message and "missing rank_output.weight; missing rank_output.bias" in message
    message = refusal(tmp_path, {n: t for n, t in state(RETRIEVAL).items() if "img_embeddings" not in n})
    assert message.count("missing bert.img_embeddings.") == 11


@pytest.mark.parametrize("kind", [PRETRAINED, "uniter pretraining"])
def test_tied_tensors_that_differ_are_refused(tmp_path, kind):
    tensors = state(kind)
    for name in TIED:
        tensors[name] = tensors[name].clone()
        tensors[name][1, 1] += 1e-6
    tower = "bert.img_model.bert." if kind == PRETRAINED else "uniter."
    assert refusal(tmp_path, tensors) == "/a.pt: tensors that are tied to each other differ: " + "; ".join(
        f"{name} from {tower}{owner}" for name, owner in TIED.items()
    )


@pytest.mark.parametrize("kind", [FINETUNED, PRETRAINED, RETRIEVAL])
def test_a_damaged_folder_of_ours_is_refused(tmp_path, kind):
    conversion.to_ours(save(state(kind), tmp_path / "a.pt"), tmp_path / "ours")
    path = tmp_path / "ours" / "model.safetensors"
    tensors = checkpoints.read_tensors(path)
    first, second, *_ = tensors
    checkpoints.save_tensors({n: t for n, t in tensors.items() if n != first} | {second: torch.zeros(3)}, path)
    config = json.loads((tmp_path / "ours/config.json").read_text())
    config.pop("fingerprint", None)  # which would say that they are others
    (tmp_path / "ours/config.json").write_text(json.dumps(config))
    with pytest.raises(
        BadInput, match=rf"ours: 2 keys do not fit the model: missing \S*{first}; \S*{second} has shape"
    ):
        conversion.to_original(tmp_path / "ours", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_files_with_more_than_tensors_are_refused(tmp_path):
    tensors = state(FINETUNED)
    hostile = {"model_dict": tensors, "encoder_params": argparse.Namespace(a=1)}
    message = refusal(tmp_path, hostile)
    assert message == "/a.pt: holds more than tensors and is not unpickled: it names argparse.Namespace"
    message = refusal(tmp_path, tensors | {"step": 3, "args": {"lr": 1}})
    assert "expected a state dict (names to tensors); no tensors are step (int), args (dict)" in message
    assert "unexpected beside model_dict: amp" in refusal(tmp_path, {"model_dict": tensors, "amp": {}})
    assert "no tensors are 7 (Tensor)" in refusal(tmp_path, {7: torch.ones(1)})
    assert "expected a state dict (names to tensors), found list" in refusal(tmp_path, [torch.ones(1)])
    assert "expected a state dict (names to tensors), found dict" in refusal(tmp_path, {"model_dict": {}})


def test_other_models_are_refused(tmp_path):
    tensors = state(FINETUNED)
    third = {n.replace("txt_model", "cap_model"): t for n, t in tensors.items() if n.startswith("txt")}
    for prefix in ("", "bert."):
        message = refusal(tmp_path, {prefix + n: t for n, t in (tensors | third).items()})
        assert f"third tower ({prefix}cap_model.bert.embeddings.word_embeddings.weight, ...)" in message
        assert "seperate_caption_encoder" in message
    assert "neither LightningDOT's nor UNITER's" in refusal(tmp_path, {"visual.conv1.weight": torch.ones(2)})
    with pytest.raises(BadInput, match=r"none.pt: no such file"):
        conversion.to_ours(tmp_path / "none.pt", tmp_path / "ours")


def test_a_converted_folder_without_its_heads_is_finetuned(tmp_path):
    tensors = state(PRETRAINED)
    conversion.to_ours(save(tensors, tmp_path / "a.pt"), tmp_path / "ours")
    (tmp_path / "ours" / "heads.safetensors").unlink()
    conversion.to_original(tmp_path / "ours", tmp_path / "b.pt")
    towers = {name.removeprefix("bert."): t for name, t in tensors.items() if name.startswith("bert.")}
    assert_same(torch.load(tmp_path / "b.pt", weights_only=True)["model_dict"], towers)


def test_nothing_is_overwritten(tmp_path):
    conversion.to_ours(save(state(FINETUNED), tmp_path / "a.pt"), tmp_path / "ours")
    with pytest.raises(BadInput, match=r"ours: already there"):
        conversion.to_ours(tmp_path / "a.pt", tmp_path / "ours")
    with pytest.raises(BadInput, match=r"a.pt: already there"):
        conversion.to_original(tmp_path / "ours", tmp_path / "a.pt")
    with pytest.raises(BadInput, match="is a folder of ours already; --to original converts it back"):
        conversion.to_ours(tmp_path / "ours", tmp_path / "c")


# ---- sizes -----------------------------------------------------------------------------------------------------------


def write_json(path, values):
    path.write_text(json.dumps(values))
    return path


def test_what_shapes_cannot_tell_comes_from_json(tmp_path):
    save(state(FINETUNED), tmp_path / "a.pt")
    notes = conversion.to_ours(tmp_path / "a.pt", tmp_path / "assumed")
    assumed = [n for n in notes if "num_attention_heads, hidden_act, layer_norm_eps assumed as in BERT" in n]
    assert [n.split()[0] for n in assumed] == ["text", "image"]
    values = {"num_attention_heads": 4, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "vocab_size": 150}
    txt = write_json(tmp_path / "txt.json", values | {"model_type": "xlm-roberta", "pad_token_id": 1})
    img = write_json(tmp_path / "img.json", values | {"num_attention_heads": 8})
    notes = conversion.to_ours(tmp_path / "a.pt", tmp_path / "told", txt, img)
    assert not any("assumed" in n for n in notes)
    for folder, heads in (("assumed", (1, 1)), ("told", (4, 8))):
        config = LightningDOTConfig.from_dict(checkpoints.read_config(tmp_path / folder))
        assert (config.txt.num_attention_heads, config.img.num_attention_heads) == heads
        assert {(c.hidden_act, c.layer_norm_eps) for c in (config.txt, config.img)} == {
            ("gelu", 1e-12) if folder == "assumed" else ("gelu_new", 1e-5)
        }
        shapes = {(c.vocab_size, c.hidden_size, c.num_hidden_layers, c.intermediate_size, c.max_position_embeddings,
                   c.type_vocab_size) for c in (config.txt, config.img)}  # fmt: skip
        assert shapes == {(150, 64, 2, 48, 24, 2)}
    assert (config.txt.position_offset, config.img.position_offset) == (2, 0)


def test_json_that_contradicts_shapes_names_both(tmp_path):
    path = write_json(tmp_path / "sizes.json", {"num_hidden_layers": 6, "vocab_size": 150, "hidden_size": 32})
    for kind, setting, side in (
        (FINETUNED, "text_config", "text"), (FINETUNED, "image_config", "image"), (RETRIEVAL, "image_config", "image"),
    ):  # fmt: skip
        message = refusal(tmp_path, state(kind), **{setting: path})
        assert message == (
            f"/sizes.json: contradicts the shapes of the {side} encoder: hidden_size is 32, in /a.pt 64; "
            "num_hidden_layers is 6, in /a.pt 2"
        )
    path = write_json(tmp_path / "sizes.json", {"hidden_act": "swish"})
    assert "/sizes.json: hidden_act 'swish' is not one of" in refusal(tmp_path, state(FINETUNED), text_config=path)


def test_heads_of_an_uncommon_width_must_be_told(tmp_path):
    sizes = EncoderConfig(50, 48, 1, 3, 48)
    model = LightningDOT(LightningDOTConfig(sizes, sizes, 10, 20, cls_token_id=3))
    message = refusal(tmp_path, model.state_dict())
    assert "number of heads of the text encoder cannot be seen" in message and "--text-config" in message
    path = write_json(tmp_path / "sizes.json", {"num_attention_heads": 3})
    conversion.to_ours(tmp_path / "a.pt", tmp_path / "ours", path, path, cls_token_id=3)
    again = LightningDOT.from_pretrained(tmp_path / "ours")
    assert (again.config.txt.num_attention_heads, again.config.project_dim) == (3, 10)
    assert_same(again.state_dict(), model.state_dict())


def test_another_cls_than_the_originals_is_told_on_the_way_back(tmp_path):
    tensors = state(FINETUNED)
    conversion.to_ours(save(tensors, tmp_path / "a.pt"), tmp_path / "ours", cls_token_id=3)
    notes = conversion.to_original(tmp_path / "ours", tmp_path / "b.pt")
    assert any(note.startswith("warning: cls_token_id 3: the original begins every image sequence with word 101") for note in notes)
    conversion.to_ours(tmp_path / "a.pt", tmp_path / "same")
    assert not any("warning" in note for note in conversion.to_original(tmp_path / "same", tmp_path / "c.pt"))


def test_without_projection(tmp_path):
    tensors = {name: t for name, t in state(PRETRAINED).items() if "encode_proj" not in name}
    assert_same(there_and_back(tmp_path, tensors)[1], tensors)
    assert LightningDOT.from_pretrained(tmp_path / "ours").config.project_dim == 0


def test_settings_without_effect_are_refused(tmp_path):
    assert "is one encoder, of UNITER, where --cls-token-id has no place" in refusal(
        tmp_path, state(RETRIEVAL), cls_token_id=101
    )
    assert "no [CLS] 150 in the image tower's vocabulary of 150" in refusal(
        tmp_path, state(FINETUNED), cls_token_id=150
    )


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
