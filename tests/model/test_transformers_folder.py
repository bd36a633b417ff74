"""Folders of transformers whose settings and weights do not belong together: refused, and not made of random numbers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from data.errors import BadInput
from model.extractors.base import ExtractorOptions
from model.extractors.extraction import build_extractor
from model.text_encoders.auto import read_auto_encoder
from model.transformers_folder import check_transformers_settings
from model.translation import TranslationSettings, Translator
from tests.tiny_marian import make_marian

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A vision model, a text model and a translation model."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32, patch_size=16)).save_pretrained(root / "vit")
    transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=30)).save_pretrained(root / "bert")
    make_marian(root / "marian", ["a red circle", "ein roter Kreis", "two blue squares"])
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """Links to all of them, and copies of their small files, which may be changed."""
    for path in saved.rglob("*.*"):
        copy = tmp_path / path.relative_to(saved)
        copy.parent.mkdir(exist_ok=True)
        copy.symlink_to(path) if path.suffix == ".spm" else copy.write_bytes(path.read_bytes())
    return tmp_path


def without(path, name: str):
    tensors = load_file(path)
    save_file({key: tensor for key, tensor in tensors.items() if name not in key}, path, {"format": "pt"})


@pytest.mark.parametrize("kind", ["bert", "vit", "clip", "swin", "convnext", "dinov2", "modernbert", "deberta-v2", "marian", "xlm-roberta", "siglip"])
def test_what_there_is_is_no_larger(kind):
    check_transformers_settings(transformers.CONFIG_MAPPING[kind]().to_dict(), kind)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 10**9}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": 0}, {"vision_config": {"hidden_size": 10**12}},
        {"depths": [2, 10**7]}, {"max_position_embeddings": 1e30}, {"text_config": {"vision": {"num_experts": 10**6}}},
    ],
)  # fmt: skip
def test_sizes_beyond_any_are_refused(settings):
    with pytest.raises(BadInput, match=r"x: \w+ is "):
        check_transformers_settings(settings, "x")


def test_a_vision_model_is_taken_whole_or_not_at_all(folder):
    build = lambda: build_extractor(f"hf:{folder / 'vit'}", ExtractorOptions())  # noqa: E731
    assert build().feature_dim == 24
    without(folder / "vit/model.safetensors", "pooler")
    assert build().feature_dim == 24
    change(folder / "vit/config.json", num_hidden_layers=3)
    with pytest.raises(BadInput, match="16 weights of its vit are missing"):
        build()
    change(folder / "vit/config.json", num_hidden_layers=1)
    with pytest.raises(BadInput, match=r"more layers than its config\.json says"):
        build()
    change(folder / "vit/config.json", num_hidden_layers=10**9)
    with pytest.raises(BadInput, match="expected 1,000 at the most"):
        build()
    change(folder / "vit/config.json", num_hidden_layers=2)
    (folder / "vit/preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5, 0.0]}')
    with pytest.raises(BadInput, match="expected three numbers"):
        build()


def test_a_text_model_is_taken_whole_or_not_at_all(folder):
    change(folder / "bert/config.json", num_hidden_layers=1)
    with pytest.raises(BadInput, match=r"more layers than its config\.json says"):
        read_auto_encoder(folder / "bert")


def test_a_translation_model_is_taken_whole_or_not_at_all(folder):
    where, device = str(folder / "marian"), torch.device("cpu")
    make = lambda: Translator(where, TranslationSettings(where, 1, 8, 100, None), device)  # noqa: E731
    assert len(make().translate(["a red circle"])) == 1
    words = json.loads((folder / "marian/vocab.json").read_text())
    (folder / "marian/vocab.json").write_text(json.dumps({word: number + 10**6 for word, number in words.items()}))
    with pytest.raises(BadInput, match=r"cannot translate|cannot be loaded"):
        make().translate(["a red circle"])
    (folder / "marian/vocab.json").write_text(json.dumps(words))
    change(folder / "marian/generation_config.json", no_repeat_ngram_size="x")
    with pytest.raises(BadInput, match=r"cannot translate|cannot be loaded"):
        make().translate(["a red circle"])
    change(folder / "marian/tokenizer_config.json", model_max_length="x")
    with pytest.raises(BadInput, match="model_max_length 'x'"):
        make()
    without(folder / "marian/model.safetensors", "fc1")
    with pytest.raises(BadInput, match="weights of its marian are missing"):
        make()
