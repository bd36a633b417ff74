"""Encoders of transformers as the text tower: the same numbers as transformers', saved, read, trained, refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from data.batches.ragged import pack_texts
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from model.bi_encoder import LightningDOT
from model.initial import ModelOptions, build_model
from model.retrieval.encoding import encode_queries
from model.text_encoders import TEXT_ENCODERS, choose_text_encoder
from model.text_encoders.auto import read_auto_encoder
from model.transformer import Bert

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
BERT_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
IDS = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 4, "cls_token_id": 3, "sep_token_id": 4}
MODELS = {
    "ModernBert": BERT_SIZES | IDS | {"num_hidden_layers": 3, "local_attention": 8},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "XLMRoberta": BERT_SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
}
META = {"CLS": 3, "SEP": 4, "MASK": 5, "UNK": 2, "PAD": 0, "v_range": [6, 90], "bert": "tiny"}


def save_tiny(folder: Path, kind: str, head: str = "Model", vocab_size: int = 90, **changes):
    """Write a tiny model of transformers with random weights → its encoder."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": 60, "initializer_range": 0.2} | MODELS[kind] | changes
    model = getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    model.save_pretrained(folder)
    return model.base_model


def build(folder: Path, **options) -> LightningDOT:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    values = {"txt_init": str(folder), "txt_encoder": "auto", "project_dim": 12} | shape | options
    return build_model(ModelOptions(**values), META, 8, 5, "db/regions")


def texts(pad: int = 0):
    mask = torch.arange(20) < torch.tensor([7, 20, 3, 12])[:, None]
    ids = torch.randint(6, 90, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~mask, pad), mask


def images():
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 3])[:, None]
    return torch.rand(4, 5, 8, generator=generator), torch.rand(4, 5, 7, generator=generator), mask


@torch.no_grad()
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_tower_computes_what_transformers_computes(tmp_path, kind, head):
    theirs = save_tiny(tmp_path, kind, head)
    model = build(tmp_path).eval()
    ids, mask = texts(pad=theirs.config.pad_token_id)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(model.txt_model.bert(pack_texts(ids, mask)), expected[mask], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.txt_model.bert(pack_texts(ids, mask), first_only=True), expected[:, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.encode_text(ids, mask), model.txt_model.embed(expected[:, 0]), atol=1e-6, rtol=1e-5)
    assert expected.std() > 0.1 and model.config.txt.max_tokens == (58 if kind == "XLMRoberta" else 60)
    other_padding = ids.masked_fill(~mask, 9)
    torch.testing.assert_close(model.encode_text(other_padding, mask), model.encode_text(ids, mask))


@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_is_whole_without_the_folder_it_started_from(tmp_path, kind):
    save_tiny(tmp_path / "theirs", kind)
    model = build(tmp_path / "theirs").eval()
    model.save_pretrained(tmp_path / "ours")
    for path in (tmp_path / "theirs").iterdir():
        path.unlink()
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    again = LightningDOT.from_pretrained(tmp_path / "ours")
    assert again.config == model.config and again.fingerprint == model.fingerprint
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    with torch.no_grad():
        torch.testing.assert_close(again.encode_text(*texts()), model.encode_text(*texts()), atol=1e-6, rtol=1e-5)
    start = build_model(ModelOptions(init=str(tmp_path / "ours")), META, 8, 5, "db/regions")
    assert start.training and torch.equal(start.state_dict()["txt_model.encode_proj.0.weight"], again.txt_model.encode_proj[0].weight)


@pytest.mark.parametrize("kind", MODELS)
def test_one_step_of_training_lowers_the_loss_with_towers_of_another_width(tmp_path, kind):
    save_tiny(tmp_path, kind)
    model = build(tmp_path, dropout=0.0)
    assert model.config.txt.hidden_size == 32 and model.config.img.hidden_size == 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss():
        scores = model.encode_text(*texts()) @ model.encode_image(*images()).T
        return torch.nn.functional.cross_entropy(scores, torch.arange(4))

    before = loss()
    before.backward()
    parts = [p for n, p in model.txt_model.bert.named_parameters() if "pooler" not in n]
    assert all(p.grad is not None for p in parts)
    gradients = [p.grad.clone() for p in parts]
    model.zero_grad()
    model.set_checkpointing(True)
    loss().backward()
    torch.testing.assert_close([p.grad for p in parts], gradients)
    optimizer.step()
    assert loss() < before


@pytest.mark.parametrize("kind", MODELS)
def test_dropout_and_freezing(tmp_path, kind):
    save_tiny(tmp_path, kind)
    for rate in (0.0, 0.4):
        model = build(tmp_path, dropout=rate)
        assert torch.equal(model.encode_text(*texts()), model.encode_text(*texts())) == (rate == 0)
    model = build(tmp_path, dropout=0.4, freeze_txt=True)
    assert torch.equal(model.encode_text(*texts()), model.encode_text(*texts()))
    model.encode_text(*texts()).sum().detach()
    assert not any(p.requires_grad for p in model.txt_model.parameters())


def test_which_encoder_is_used(tmp_path):
    save_tiny(tmp_path / "distil", "DistilBert")
    save_tiny(tmp_path / "xlm", "XLMRoberta")
    assert choose_text_encoder(tmp_path / "distil") is TEXT_ENCODERS["auto"]
    assert choose_text_encoder(tmp_path / "xlm") is TEXT_ENCODERS["bert"]
    assert isinstance(build(tmp_path / "xlm", txt_encoder=None).txt_model.bert, Bert)
    ours, theirs = (build(tmp_path / "xlm", txt_encoder=name).eval().txt_model.bert for name in ("bert", "auto"))
    with torch.no_grad():
        ids, mask = texts(pad=1)
        torch.testing.assert_close(*(bert(pack_texts(ids, mask)) for bert in (ours, theirs)), atol=1e-5, rtol=1e-5)
    with pytest.raises(BadInput, match=r"model.txt_encoder 'gpt' is not one of bert, auto"):
        ModelOptions(txt_init="x", txt_encoder="gpt")
    with pytest.raises(BadInput, match=r"model.txt_encoder auto says how to read a folder: give model.txt_init"):
        ModelOptions(txt_encoder="auto")


def test_the_image_tower_keeps_its_own_cls(tmp_path):
    save_tiny(tmp_path / "modern", "ModernBert")
    bert = transformers.BertConfig(vocab_size=40, max_position_embeddings=20, **BERT_SIZES)
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    meta = META | {"CLS": 50}
    options = {"txt_init": str(tmp_path / "modern"), "img_init": str(tmp_path / "bert"), "project_dim": 12}
    with pytest.raises(BadInput, match=r"vocab_size 40 does not hold the captions' \[CLS\] 50.*model.cls_token_id"):
        build_model(ModelOptions(**options), meta, 8, 5, "db/regions")
    model = build_model(ModelOptions(**options, cls_token_id=7), meta, 8, 5, "db/regions")
    assert model.config.cls_token_id == 7 and model.config.txt.vocab_size == 90
    model.encode_image(*images()).sum().backward()
    rows = model.img_model.bert.embeddings.word_embeddings.weight.grad.abs().sum(dim=1)
    assert rows.nonzero().flatten().tolist() == [7]


def test_what_cannot_be_a_text_tower_is_refused(tmp_path):
    torch.manual_seed(0)
    gpt = transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=2, bos_token_id=3, eos_token_id=4)
    transformers.GPT2Model(gpt).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(BadInput, match=r"gpt2: in a gpt2 the first position does not see the rest of the text"):
        read_auto_encoder(tmp_path / "gpt2")
    bart = transformers.BartConfig(
        vocab_size=90, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=20,
    )  # fmt: skip
    transformers.BartModel(bart).save_pretrained(tmp_path / "bart")
    with pytest.raises(BadInput, match=r"bart: bart is an encoder with a decoder"):
        read_auto_encoder(tmp_path / "bart")
    save_tiny(tmp_path / "short", "DistilBert", n_layers=1)
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"n_layers": 2}))
    with pytest.raises(BadInput, match=r"short: 16 weights of its distilbert are missing or mis-shaped: transformer.layer.1"):
        read_auto_encoder(tmp_path / "short")
    (tmp_path / "short" / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(BadInput, match=r"short/config.json: model_type 'unheard-of': transformers cannot read the folder as an encoder: "):
        read_auto_encoder(tmp_path / "short")
    with pytest.raises(BadInput, match=r"a text of 61 tokens does not fit the model's 60 positions"):
        save_tiny(tmp_path / "modern", "ModernBert")
        build(tmp_path / "modern").encode_text(torch.full((1, 61), 7), torch.ones(1, 61))


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_not_executed(tmp_path):
    save_tiny(tmp_path, "DistilBert")
    (tmp_path / "model.safetensors").unlink()
    mark = tmp_path / "executed"
    for content in (pickle.dumps(Evil(mark)), None):
        if content is None:
            torch.save({"x": Evil(mark)}, tmp_path / "pytorch_model.bin")
        else:
            (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(BadInput, match="transformers cannot read the folder as an encoder"):
            read_auto_encoder(tmp_path)
    assert not mark.exists()


def test_train_itm_with_such_a_tower(small_world, command, tmp_path):
    """The tokenizer of the captions is the model's: here the world's own, with the ids that it gives."""
    vocabulary = len(CaptionTokenizer.from_pretrained(small_world / "tokenizer"))
    save_tiny(tmp_path / "modern", "ModernBert", vocab_size=vocabulary, max_position_embeddings=80)
    recipe = yaml.safe_load((small_world / "finetune.yaml").read_text())
    towers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "project_dim": 24}
    recipe |= {"model": towers | {"txt_init": str(tmp_path / "modern"), "dropout": 0.1}, "activation_checkpointing": True, "epochs": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command("train_itm.py", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    model = LightningDOT.from_pretrained(tmp_path / "run" / "best")
    assert model.config.txt.encoder == "auto"
    vectors = encode_queries(model, CaptionTokenizer.from_pretrained(tmp_path / "run" / "best" / "tokenizer"), ["a red square", "a dog"])
    assert vectors.shape == (2, 24) and (vectors[0] != vectors[1]).any()


def test_pretraining_with_such_a_tower_of_another_width(small_world, command, tmp_path):
    save_tiny(tmp_path / "distil", "DistilBert", vocab_size=len(CaptionTokenizer.from_pretrained(small_world / "tokenizer")), max_position_embeddings=80)
    recipe = yaml.safe_load((small_world / "pretrain.yaml").read_text())
    towers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "project_dim": 24}
    corpora = [corpus | {"tasks": {"cmr": 1}} for corpus in recipe["data"]]
    recipe |= {"model": towers | {"txt_init": str(tmp_path / "distil")}, "data": corpora, "num_steps": 4, "valid_every": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run"]
    command("pretrain.py", *words)
    assert LightningDOT.from_pretrained(tmp_path / "run" / "last").config.txt.encoder == "auto"
    command("pretrain.py", *words, "--num-steps", 4)  # nothing is left to do: it reads what it saved
