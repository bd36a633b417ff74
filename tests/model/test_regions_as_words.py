"""An image tower that starts by reading regions as words of their captions."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import train_itm
from configs import cli
from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.regions_as_words import GAIN, POSITIONS, RIDGE, mean_words, ridge


def test_the_mean_word_of_an_image_counts_rare_words_more():
    captions = [np.array([1, 2]), np.array([1, 2, 2]), np.array([1, 3]), np.array([1])]
    found, told = mean_words(torch.eye(6, dtype=torch.double), captions, np.array([0, 0, 1, 2]))
    assert found[0].tolist() == [0, 0, 1, 0, 0, 0] and found[1].tolist() == [0, 0, 0, 1, 0, 0]  # all images have word 1
    assert told.tolist() == [True, True, False]
    found, _ = mean_words(torch.eye(6, dtype=torch.double), [np.array([2, 3, 3]), np.array([2]), np.array([4])], np.arange(3))
    of_two, of_one = np.log(3 / 2), np.log(3)
    np.testing.assert_allclose(found[0], np.array([0, 0, of_two, 2 * of_one, 0, 0]) / (of_two + 2 * of_one))


def test_the_regression_is_that_of_all_rows_at_once():
    torch.manual_seed(0)
    features, words = torch.randn(50, 7, dtype=torch.double) + 3, torch.randn(50, 4, dtype=torch.double)
    words = words + features[:, :4]
    weight, bias, explained = ridge(iter(features.split(20)), words)
    x, y = features - features.mean(0), words - words.mean(0)
    penalty = RIDGE * x.square().mean() * 50 * torch.eye(7, dtype=torch.double)
    expected = torch.linalg.inv(x.T @ x + penalty) @ x.T @ y
    torch.testing.assert_close(weight, GAIN * expected.T)
    torch.testing.assert_close(weight @ features.mean(0) + bias, words.mean(0))  # the mean image has the mean words
    assert explained == pytest.approx(float(1 - (y - x @ expected).square().sum() / y.square().sum()))


@pytest.fixture(scope="module")
def encoder(small_world, tmp_path_factory):
    """A text encoder of the world's words, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("encoder")
    words = len(json.loads((small_world / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(3)
    sizes = transformers.BertConfig(
        vocab_size=words, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, initializer_range=0.2
    )
    bert = transformers.BertModel(sizes)
    torch.nn.init.normal_(bert.embeddings.LayerNorm.weight, 1, 0.2)
    bert.save_pretrained(folder)
    return folder


def settings(small_world, out, *words):
    fixed = ["--config", small_world / "finetune.yaml", "--model.project_dim", 0, "--out", out, "--regions-as-words"]
    return cli.parse(train_itm.CONFIGS, [str(word) for word in (*fixed, *words)])


def test_training_starts_with_what_the_regression_gives(small_world, encoder, tmp_path, capsys):
    towers = ["--model.txt-init", encoder, "--model.img-init", encoder, "--model.pooling", "mean"]
    train_itm.main(settings(small_world, tmp_path / "run", *towers, "--num-steps", 1, "--optim.lr", 1e-12))
    assert "regions start as words: their features explain " in capsys.readouterr().out
    pairs = open_pairs(str(small_world / "db" / "train"), str(small_world / "regions"), BoxOptions())
    features, words = [], []
    table = load_file(encoder / "model.safetensors")["embeddings.word_embeddings.weight"].double()
    of_images = [[w for i in np.flatnonzero(pairs.image_of == n) for w in pairs.words([i])[0].tolist()] for n in range(len(pairs.images))]
    rarity = {w: np.log(len(of_images) / sum(w in own for own in of_images)) for own in of_images for w in own}
    for key, own in zip(pairs.images, of_images, strict=True):
        features.append(torch.from_numpy(np.asarray(pairs.regions[key].features, np.float64)).mean(0))
        weights = torch.tensor([rarity[w] for w in own])
        words.append(weights @ table[own] / weights.sum())
    weight, bias, _ = ridge(iter([torch.stack(features)]), torch.stack(words))
    model = LightningDOT.from_pretrained(tmp_path / "run" / "last")
    regions = model.img_model.bert.img_embeddings
    torch.testing.assert_close(regions.img_linear.weight, weight.float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(regions.img_linear.bias, bias.float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(regions.LayerNorm.weight, model.img_model.bert.embeddings.LayerNorm.weight)
    torch.testing.assert_close(regions.pos_layer_norm.weight, torch.full((32,), POSITIONS))
    assert model.config.pooling == "mean"


def test_what_goes_on_does_not_start_again(small_world, encoder, tmp_path, capsys):
    words = ["--model.txt-init", encoder, "--model.img-init", encoder, "--epochs", 1, "--save-every", 1, "--keep-checkpoints", 9]
    train_itm.main(settings(small_world, tmp_path / "run", *words))
    expected = load_file(tmp_path / "run" / "last" / "model.safetensors")
    first = min((tmp_path / "run" / "checkpoints").iterdir(), key=lambda folder: int(folder.name.rpartition("-")[2]))
    (tmp_path / "run" / "last").unlink()
    (tmp_path / "run" / "last").symlink_to(first.relative_to(tmp_path / "run"))
    capsys.readouterr()
    train_itm.main(settings(small_world, tmp_path / "run", *words))
    assert "regions start" not in capsys.readouterr().out
    found = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_towers_that_cannot_read_words_are_refused(small_world, encoder, pretrained, tmp_path):
    with pytest.raises(BadInput, match=r"^regions_as_words needs an image tower that knows words and no regions yet"):
        train_itm.main(settings(small_world, tmp_path / "run", "--model.txt-init", encoder))
    with pytest.raises(BadInput, match=r"last reads regions already; give --regions-as-words false with model.init"):
        train_itm.main(settings(small_world, tmp_path / "run", "--model.init", pretrained / "last"))
    (tmp_path / "uniter").mkdir()
    (tmp_path / "uniter" / "config.json").write_bytes((encoder / "config.json").read_bytes())
    tensors = load_file(encoder / "model.safetensors") | {"img_embeddings.img_linear.weight": torch.zeros(32, 32)}
    save_file(tensors, tmp_path / "uniter" / "model.safetensors")
    with pytest.raises(BadInput, match=r"uniter reads regions already; leave it out"):
        train_itm.main(settings(small_world, tmp_path / "run", "--model.txt-init", encoder, "--model.img-init", tmp_path / "uniter"))
    other = json.loads((encoder / "config.json").read_text()) | {"vocab_size": 700}  # another vocabulary, which has its own [CLS]
    transformers.BertModel(transformers.BertConfig(**other)).save_pretrained(tmp_path / "other")
    words = ["--model.txt-init", encoder, "--model.img-init", tmp_path / "other", "--model.cls-token-id", 7]
    with pytest.raises(BadInput, match=r"^regions_as_words: the image tower has another vocabulary than .*train: give one of its tokenizer$"):
        train_itm.main(settings(small_world, tmp_path / "run", *words))
