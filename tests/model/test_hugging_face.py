"""Hugging Face folders through the converter: the same numbers as transformers computes, and back."""

import pytest
import torch
import transformers

from data.batches.ragged import pack_texts
from data.errors import BadInput
from model import checkpoints
from model.initial import ModelOptions, build_model
from model.original import files as conversion
from model.transformer import Bert

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 24, "initializer_range": 0.2}  # fmt: skip
ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2}
FAMILY = {
    "bert": ("Bert", {"vocab_size": 90}),
    "multilingual bert, one token type": ("Bert", {"vocab_size": 300, "type_vocab_size": 1, "directionality": "bidi"}),
    "tanh and epsilon": ("Bert", {"vocab_size": 90, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    "roberta": ("Roberta", ROBERTA | {"vocab_size": 70}),
    "xlm-roberta": ("XLMRoberta", ROBERTA | {"vocab_size": 80}),
    "camembert": ("Camembert", ROBERTA | {"vocab_size": 60, "layer_norm_eps": 1e-2}),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILY)
def test_hugging_face_folders_compute_what_transformers_computes(tmp_path, kind):
    family, changes = FAMILY[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    theirs = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    conversion.to_ours(tmp_path / "theirs", tmp_path / "ours")

    sizes, tensors = checkpoints.read_bert(tmp_path / "ours")
    ours = Bert(sizes).eval()
    checkpoints.load_strict(ours, tensors, "ours", optional=r"^pooler\.")
    mask = torch.arange(20) < torch.tensor([7, 20, 1, 12])[:, None]
    pad = config.pad_token_id
    ids = torch.randint(pad + 1, config.vocab_size, mask.shape).masked_fill(~mask, pad)
    expected = theirs.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    torch.testing.assert_close(ours(pack_texts(ids, mask)), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.5
    meta = {"CLS": 3, "SEP": 4, "MASK": 5, "UNK": 2, "PAD": 0, "v_range": [6, config.vocab_size], "bert": "tiny"}
    model = build_model(
        ModelOptions(txt_init=str(tmp_path / "ours"), img_init=str(tmp_path / "ours")), meta, 20, 7, "x"
    )
    torch.testing.assert_close(model.eval().txt_model.bert(pack_texts(ids, mask)), expected, atol=1e-5, rtol=1e-5)

    conversion.to_original(tmp_path / "ours", tmp_path / "back")
    back = type(theirs).from_pretrained(tmp_path / "back")
    torch.testing.assert_close(back.state_dict(), theirs.state_dict(), atol=0, rtol=0)
    logits = [m(input_ids=ids, attention_mask=mask.long()).logits for m in (back.eval(), theirs)]
    assert torch.equal(*logits)


def test_hugging_face_folders_are_strict_too(tmp_path):
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **SIZES))
    model.save_pretrained(tmp_path / "theirs")
    tensors = checkpoints.read_tensors(tmp_path / "theirs" / "model.safetensors")
    gone, bent = "encoder.layer.1.output.dense.bias", "embeddings.position_embeddings.weight"
    changed = {n: t for n, t in tensors.items() if n != gone} | {bent: torch.ones(9, 32), "adapter.x": torch.ones(1)}
    checkpoints.save_tensors(changed, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(BadInput) as error:
        conversion.to_ours(tmp_path / "theirs", tmp_path / "ours")
    for part in (f"missing {gone}", "unexpected adapter.x", f"{bent} has shape [9, 32], expected [24, 32]"):
        assert part in str(error.value)
    with pytest.raises(BadInput, match="is a Hugging Face folder, where --image-config has no place"):
        conversion.to_ours(tmp_path / "theirs", tmp_path / "ours", image_config="x.json")
    with pytest.raises(BadInput, match="neither a LightningDOT checkpoint nor a converted encoder"):
        conversion.to_original(tmp_path / "theirs", tmp_path / "back")
