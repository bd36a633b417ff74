"""Both towers against embeddings and hidden states recorded from the original implementation.

The fixture's features are 172 wide: the recorded 2,048-wide ones and W_f, both written in an orthonormal basis of the
space that those features span, so that every product W_f f is the recorded one. Words that no caption has are zeros.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches.ragged import pack_images, pack_texts
from model.bi_encoder import LightningDOT
from model.original import files as conversion

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parents[1] / "fixtures" / "biencoder.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def convert(folder, weights):
    """The recorded weights as a checkpoint of the original, through the converter, into our model."""
    torch.save({"model_dict": weights, "epoch": 3}, folder / "original.pt")
    (folder / "sizes.json").write_text(json.dumps({"num_attention_heads": 4}))
    conversion.to_ours(folder / "original.pt", folder / "ours", folder / "sizes.json", folder / "sizes.json")
    return LightningDOT.from_pretrained(folder / "ours")


@pytest.fixture(scope="module")
def weights(recorded):
    return {n.removeprefix("weights/"): w for n, w in recorded.items() if n.startswith("weights/")}


@pytest.fixture(scope="module")
def model(tmp_path_factory, weights):
    return convert(tmp_path_factory.mktemp("parity"), weights)


def texts(recorded, name):
    ids = recorded[name].long()
    return ids, ids != 0


def images(recorded, name):
    """Batch of the recorded images, padded to its longest."""
    rows = list(zip(*(recorded[n].split(recorded["counts"].tolist()) for n in ("features", "positions"))))
    chosen = [rows[i] for i in recorded[f"{name}/images"]]
    counts = torch.tensor([len(features) for features, _ in chosen])
    features, positions = (torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in zip(*chosen))
    return features, positions, torch.arange(counts.max()) < counts[:, None]


@torch.no_grad()
@pytest.mark.parametrize("name, output", [
    ("batch/txts", "batch/txt"), ("batch_caps/caps", "batch_caps/cap"),  # image captions: the third view
    ("batch_hard/txts", "batch_hard/txt"), ("batch_hard/caps", "batch_hard/cap"),
])  # fmt: skip
def test_texts_and_image_captions(recorded, model, name, output):
    assert recorded[output].std() > 0.5
    torch.testing.assert_close(model.encode_text(*texts(recorded, name)), recorded[output], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["batch", "batch_hard"])
def test_images_with_and_without_hard_negatives(recorded, model, name):
    assert recorded[f"{name}/img"].std() > 0.5
    torch.testing.assert_close(model.encode_image(*images(recorded, name)), recorded[f"{name}/img"], **CLOSE)


@torch.no_grad()
def test_masked_regions(recorded, model):
    """The recorded features were not zeroed: the mask embedding comes on top of them."""
    features, positions, mask = images(recorded, "batch")
    masked = recorded["masked/regions"]
    hidden = model.img_model.bert(pack_images(features, positions, mask), masked[mask], first_only=True)
    embedding = model.img_model.embed(hidden)
    torch.testing.assert_close(embedding, recorded["masked/img"], **CLOSE)
    assert (embedding - recorded["batch/img"]).abs().max() > 0.1


@torch.no_grad()
def test_hidden_states_of_every_position(recorded, model):
    ids, mask = texts(recorded, "batch/txts")
    hidden, expected = model.txt_model.bert(pack_texts(ids, mask)), recorded["batch/txt_sequence"]  # of the first three
    assert len(expected) == mask[:3].sum()
    torch.testing.assert_close(hidden[: len(expected)], expected, **CLOSE)
    features, positions, mask = images(recorded, "batch")
    hidden, expected = model.img_model.bert(pack_images(features, positions, mask)), recorded["batch/img_sequence"]
    assert len(expected) == 3 + mask[:3].sum()
    torch.testing.assert_close(hidden[: len(expected)], expected, **CLOSE)


@torch.no_grad()
def test_without_projection_the_embedding_is_the_recorded_position_0(tmp_path, recorded, weights):
    model = convert(tmp_path, {name: w for name, w in weights.items() if "encode_proj" not in name})
    assert model.config.project_dim == 0 and model.config.feature_dim == 172
    ids, mask = texts(recorded, "batch/txts")
    starts = torch.cat([torch.zeros(1), mask[:2].sum(1).cumsum(0)]).long()  # of the first three texts
    torch.testing.assert_close(model.encode_text(ids, mask)[:3], recorded["batch/txt_sequence"][starts], **CLOSE)
    regions = images(recorded, "batch")
    starts = torch.cat([torch.zeros(1), (1 + regions[2][:2].sum(1)).cumsum(0)]).long()
    torch.testing.assert_close(model.encode_image(*regions)[:3], recorded["batch/img_sequence"][starts], **CLOSE)
