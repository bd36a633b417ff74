"""Weights from files: Hugging Face's, ours, damaged ones, and files that would run code."""

import json
import pickle
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from data.errors import BadInput
from model import checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.initial import ModelOptions, build_model, check_model_fits
from model.transformer import Bert, EncoderConfig
from model.uniter import Reranker, UniterConfig

ROOT = Path(__file__).resolve().parents[2]

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

META = {"CLS": 3, "SEP": 4, "MASK": 5, "UNK": 2, "PAD": 0, "v_range": [6, 60], "bert": "tiny"}


def tiny_bert(seed=0, model_class=transformers.BertModel, **changes):
    torch.manual_seed(seed)
    config = transformers.BertConfig(**SIZES | changes)
    return model_class(config).eval()


def write_bin(folder, tensors, config):
    """As folders looked before safetensors."""
    folder.mkdir()
    torch.save(OrderedDict(tensors), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_same_encoder(folder, expected, pooler=True):
    config, tensors = checkpoints.read_bert(folder)
    expected = {n: t for n, t in expected.items() if pooler or not n.startswith("pooler.")}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    checkpoints.load_strict(Bert(config), tensors, "here", optional="" if pooler else r"^pooler\.")
    return config


# ---- Hugging Face folders --------------------------------------------------------------------------------------------


def test_safetensors_and_sizes(tmp_path):
    model = tiny_bert(hidden_dropout_prob=0.3, layer_norm_eps=1e-6, hidden_act="relu", pad_token_id=7)
    model.save_pretrained(tmp_path)
    config = assert_same_encoder(tmp_path, model.state_dict())
    assert config == EncoderConfig(
        **SIZES, hidden_dropout_prob=0.3, layer_norm_eps=1e-6, hidden_act="relu", pad_token_id=7, position_offset=0
    )


def test_old_names_prefixes_heads_and_buffers(tmp_path):
    model = tiny_bert(model_class=transformers.BertForPreTraining)
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
           for n, t in model.state_dict().items()}  # fmt: skip
    assert "bert.embeddings.LayerNorm.gamma" in old and "cls.predictions.transform.LayerNorm.beta" in old
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    folder = write_bin(tmp_path / "old", old, SIZES)  # so old that there is no model_type
    assert_same_encoder(folder, model.bert.state_dict())


def test_a_model_for_masked_words_has_no_pooler(tmp_path):
    model = tiny_bert(model_class=transformers.BertForMaskedLM)
    model.save_pretrained(tmp_path)
    assert_same_encoder(tmp_path, model.bert.state_dict(), pooler=False)


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Camembert"])
def test_roberta_family(tmp_path, kind):
    config_class = getattr(transformers, f"{kind}Config")
    model = getattr(transformers, f"{kind}ForMaskedLM")(config_class(**SIZES, type_vocab_size=1, pad_token_id=1))
    model.save_pretrained(tmp_path)
    config = assert_same_encoder(tmp_path, model.roberta.state_dict(), pooler=False)
    assert (config.position_offset, config.type_vocab_size, config.pad_token_id) == (2, 1, 1)


def test_half_precision_weights_become_fp32_parameters(tmp_path):
    model = tiny_bert()
    model.half().save_pretrained(tmp_path)
    config, tensors = checkpoints.read_bert(tmp_path)
    bert = Bert(config)
    checkpoints.load_strict(bert, tensors, "here")
    assert {p.dtype for p in bert.parameters()} == {torch.float32}
    assert torch.equal(bert.pooler.dense.weight, model.pooler.dense.weight.float())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "distilbert"}, "config.json: model_type 'distilbert' is not of the BERT family"),
        ({"model_type": "lightningdot"}, "config.json: model_type 'lightningdot' is not of the BERT family"),
        ({"position_embedding_type": "relative_key"}, "config.json: position_embedding_type 'relative_key'"),
        ({"hidden_act": "swish"}, "config.json: hidden_act 'swish' is not one of"),
        ({"hidden_size": 15}, "config.json: hidden_size 15 is not a multiple"),
        ({"num_hidden_layers": 10**9}, "config.json: an encoder of 1000000000 layers"),
        ({"vocab_size": 10**15}, "config.json: an encoder of .* parameters: expected at most 1,000 and 100,000,000,000"),
        ([1, 2], "config.json: .* expected"),
    ],
)
def test_folders_that_are_no_bert_name_the_file(tmp_path, config, message):
    if isinstance(config, dict):
        config = SIZES | config
    folder = write_bin(tmp_path / "x", tiny_bert().state_dict(), config)
    with pytest.raises(BadInput, match=f"^{folder}/{message}"):
        checkpoints.read_bert(folder)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(BadInput, match=f"{tmp_path}/no/config.json: no such file"):
        checkpoints.read_bert(tmp_path / "no")
    with pytest.raises(BadInput, match=f"{tmp_path}/no/config.json: no such file"):
        LightningDOT.from_pretrained(tmp_path / "no")
    folder = write_bin(tmp_path / "x", tiny_bert().state_dict(), SIZES)
    with pytest.raises(BadInput, match=r"x/config.json: not a LightningDOT checkpoint"):
        LightningDOT.from_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(BadInput, match=f"{folder}: neither model.safetensors nor pytorch_model.bin"):
        checkpoints.read_bert(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"x/config.json: the file is not JSON"):
        checkpoints.read_bert(folder)


# ---- damaged and hostile files ---------------------------------------------------------------------------------------


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_pickles_are_not_executed(tmp_path, suffix, legacy):
    mark = tmp_path / "executed"
    path = tmp_path / f"weights{suffix}"
    weights = {"a": torch.zeros(2), "b": Evil(mark)}
    torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInput, match=f"^{path}: holds more than tensors and is not unpickled"):
        checkpoints.read_tensors(path)
    path.write_bytes(pickle.dumps(weights["b"]))
    with pytest.raises(BadInput, match=f"^{path}: "):
        checkpoints.read_tensors(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the file was no dud
    assert mark.exists()


def test_a_file_that_holds_no_state_dict(tmp_path):
    for content in ([torch.zeros(2)], {"a": 1.0}, {"model": {"a": torch.zeros(2)}}, torch.zeros(2)):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(BadInput, match=r"x.pt: expected a state dict"):
            checkpoints.read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damage_is_bad_input(tmp_path, kind):
    tensors = {"a": torch.arange(500.0).reshape(50, 10), "b": torch.ones(5)}
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.bin")
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    assert checkpoints.read_tensors(path).keys() == tensors.keys()
    generator = random.Random(0)
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(60))):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=f"^{path}: "):
            checkpoints.read_tensors(path)
    for _ in range(100):  # flipped bytes may go unnoticed, or make a file that only looks hostile
        damaged = bytearray(whole)
        damaged[generator.randrange(400)] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoints.read_tensors(path)
        except BadInput as error:
            assert str(path) in str(error)
    with pytest.raises(BadInput, match=r"gone.bin: no such file"):
        checkpoints.read_tensors(tmp_path / "gone.bin")


# ---- strict loading --------------------------------------------------------------------------------------------------


def test_every_key_that_does_not_fit_is_listed_and_nothing_is_loaded():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    shapes = {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (3, 1), "x.weight": (1,)}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(BadInput) as error:
        checkpoints.load_strict(module, tensors, "file", optional=r"^2\.bias$")
    assert str(error.value) == (
        "file: 5 keys do not fit the model: missing 1.weight; missing 1.bias; unexpected x.weight; "
        "0.weight has shape [3, 4], expected [3, 2]; 2.weight has shape [3, 1], expected [1, 3]"
    )
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_optional_keys_keep_what_the_module_has():
    module = torch.nn.Linear(2, 3)
    bias = module.bias.detach().clone()
    checkpoints.load_strict(module, {"weight": torch.ones(3, 2)}, "file", optional="^bias$")
    assert torch.equal(module.weight, torch.ones(3, 2)) and torch.equal(module.bias, bias)


def test_fingerprint_sees_name_shape_type_and_value():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    prints = [
        checkpoints.fingerprint(t)
        for t in (
            tensors,
            {"a": torch.zeros(2, 3), "c": torch.ones(4)},
            {"a": torch.zeros(3, 2), "b": torch.ones(4)},
            {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int32)},
            {"a": torch.zeros(2, 3), "b": torch.tensor([1, 1, 1, 1 + 1e-7])},
        )
    ]
    assert len(set(prints)) == 5
    assert checkpoints.fingerprint(dict(reversed(tensors.items()))) == prints[0]
    assert checkpoints.fingerprint({"a": torch.zeros(3, 2).T, "b": torch.ones(8)[::2]}) == prints[0]


READING = """
import sys, torch
from model.bi_encoder import LightningDOT
from model.uniter import Reranker
torch.manual_seed(5)
before = torch.get_rng_state()
for kind, folder in ((LightningDOT, sys.argv[1]), (Reranker, sys.argv[2])):
    assert not any(p.is_meta for p in kind.from_pretrained(folder).parameters())
assert torch.equal(before, torch.get_rng_state()), "random numbers were drawn"
assert "torch._dynamo" not in sys.modules, "torch._dynamo, which is slow to import"
"""


def test_reading_draws_no_random_numbers_and_imports_no_compiler(tmp_path):
    sizes = EncoderConfig(**SIZES)
    LightningDOT(LightningDOTConfig(sizes, sizes, 10, 8, 5)).save_pretrained(tmp_path / "towers")
    Reranker(UniterConfig(sizes, 8, 5)).save_pretrained(tmp_path / "uniter")
    words = [sys.executable, "-c", READING, str(tmp_path / "towers"), str(tmp_path / "uniter")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- where a model starts (model/initial.py) -------------------------------------------------------------------------


def options(**values):
    small = {n: v for n, v in SIZES.items() if n != "vocab_size"}
    return ModelOptions(**{"project_dim": 10, **small, **values})


def build(feature_dim=8, num_labels=5, meta=META, **values):
    return build_model(options(**values), meta, feature_dim, num_labels, "db/regions")


def test_both_towers_from_one_folder(tmp_path):
    bert = tiny_bert(model_class=transformers.BertForPreTraining)
    bert.save_pretrained(tmp_path)
    # the folder's sizes win over the options'
    model = build(txt_init=str(tmp_path), img_init=str(tmp_path), hidden_size=99, num_attention_heads=3)
    assert model.training and model.config.cls_token_id == 3 and model.config.embedding_dim == 10
    for tower in (model.txt_model.bert, model.img_model.bert):
        state = tower.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in bert.bert.state_dict().items())
    assert model.config.txt.hidden_size == model.config.img.hidden_size == 16
    assert model.img_model.bert.img_embeddings.img_linear.weight.shape == (16, 8)


def test_towers_from_different_folders_or_random(tmp_path):
    txt, img = tiny_bert(seed=1), tiny_bert(seed=2, hidden_size=8)
    txt.save_pretrained(tmp_path / "txt")
    img.save_pretrained(tmp_path / "img")
    model = build(txt_init=str(tmp_path / "txt"), img_init=str(tmp_path / "img"))
    assert torch.equal(model.txt_model.bert.pooler.dense.weight, txt.pooler.dense.weight)
    assert torch.equal(model.img_model.bert.pooler.dense.weight, img.pooler.dense.weight)
    model = build(img_init=str(tmp_path / "img"), initializer_range=0.5)
    assert torch.equal(model.img_model.bert.pooler.dense.weight, img.pooler.dense.weight)
    assert model.config.txt.hidden_size == 16 and model.config.txt.vocab_size == 60
    assert model.txt_model.bert.pooler.dense.weight.std().item() == pytest.approx(0.5, rel=0.2)


def test_from_our_checkpoint(tmp_path):
    first = build()
    first.save_pretrained(tmp_path)
    again = build(init=str(tmp_path), project_dim=3, hidden_size=99, num_attention_heads=9)  # ignored
    assert again.training and again.config == first.config
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in first.state_dict().items())
    with pytest.raises(BadInput, match=r"model.cls_token_id is 4, and images begin with 3 in .*; leave it out"):
        build(init=str(tmp_path), cls_token_id=4)
    with pytest.raises(BadInput, match=r"model.init gives both towers; it excludes"):
        options(init=str(tmp_path), txt_init="bert")


@pytest.mark.parametrize("start", ["random", "folder", "checkpoint"])
def test_dropout_reaches_the_modules(tmp_path, start):
    values = {}
    if start == "folder":
        tiny_bert().save_pretrained(tmp_path)
        values = {"txt_init": str(tmp_path), "img_init": str(tmp_path)}
    elif start == "checkpoint":
        build().save_pretrained(tmp_path)
        values = {"init": str(tmp_path)}
    inputs = torch.arange(6, 18)[None], torch.ones(1, 12, dtype=torch.bool)
    regions = torch.randn(1, 5, 8), torch.rand(1, 5, 7), torch.ones(1, 5, dtype=torch.bool)
    for dropout, rate in ((None, 0.1), (0.0, 0.0), (0.25, 0.25)):
        model = build(dropout=dropout, **values)
        sizes = model.config.txt, model.config.img
        assert {c.hidden_dropout_prob for c in sizes} | {c.attention_probs_dropout_prob for c in sizes} == {rate}
        assert torch.equal(model.encode_text(*inputs), model.encode_text(*inputs)) == (rate == 0)
        assert torch.equal(model.encode_image(*regions), model.encode_image(*regions)) == (rate == 0)


def test_what_does_not_fit_the_data_is_refused(tmp_path):
    build().save_pretrained(tmp_path / "ours")
    tiny_bert().save_pretrained(tmp_path / "bert")
    with pytest.raises(
        BadInput, match=r"^db/regions: region features are 9 wide, but .*ours was made for feature_dim 8"
    ):
        build(feature_dim=9, init=str(tmp_path / "ours"))
    large = META | {"v_range": [6, 61]}
    for values in ({"init": str(tmp_path / "ours")}, {"txt_init": str(tmp_path / "bert")}):
        with pytest.raises(BadInput, match=r"vocab_size 60 is smaller than the captions' vocabulary \(61 words"):
            build(meta=large, **values)


def test_special_tokens_behind_the_words_are_in_the_vocabulary(tmp_path):
    """RoBERTa's <mask> is its last id; v_range ends before it."""
    meta = META | {"MASK": 60}
    model = build(meta=meta)
    assert model.config.txt.vocab_size == 61
    assert torch.isfinite(model.encode_text(torch.tensor([[3, 60, 4]]), torch.ones(1, 3))).all()
    build().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="vocab_size 60 is smaller than the captions' vocabulary"):
        build(meta=meta, init=str(tmp_path))


def test_image_tower_without_the_captions_cls_is_refused(tmp_path):
    tiny_bert(vocab_size=30).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"image tower's vocab_size 30 .* \[CLS\] 40"):
        build(meta=META | {"CLS": 40}, img_init=str(tmp_path))


def test_a_model_of_a_larger_vocabulary_fits():
    sizes = EncoderConfig(**SIZES)
    config = LightningDOTConfig(txt=sizes, img=sizes, project_dim=0, feature_dim=8, cls_token_id=3)
    check_model_fits(config, META | {"v_range": [6, 31]}, 8, "model", "db/regions")
