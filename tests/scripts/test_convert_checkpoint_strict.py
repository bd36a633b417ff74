"""Checkpoints of the original and of UNITER: what does not fit is named, and sizes that shapes cannot tell."""

import argparse
import json

import pytest
import torch

from data.errors import BadInput
from model import checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.original import files as conversion
from model.transformer import EncoderConfig
from tests.original_weights import (
    FINETUNED,
    PRETRAINED,
    RETRIEVAL,
    TIED,
    assert_same,
    refusal,
    save,
    state,
    there_and_back,
)

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


def test_the_number_of_a_layer_that_no_model_has_is_another_key(tmp_path):
    tensors = state(FINETUNED)
    odd = next(name for name in tensors if ".layer.0." in name).replace(".layer.0.", f".layer.{'9' * 5000}.")
    assert "1 keys do not fit the model" in refusal(tmp_path, tensors | {odd: torch.ones(2)})


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
