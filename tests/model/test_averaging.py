"""The mean of checkpoints against a loop over their tensors, and what has no mean."""

import copy
import json
import shutil

import pytest
import torch

from data.errors import BadInput
from data.storage.json_digest import with_digest
from data.storage.text_files import write_json
from model.averaging import average_checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.made_from import read_made_from
from model.transformer import EncoderConfig
from scripts import average_checkpoints as script
from tests.gallery import command

TOWER = EncoderConfig(300, 40, 2, 2, 80)


def model(seed, **settings):
    torch.manual_seed(seed)
    return LightningDOT(LightningDOTConfig(TOWER, TOWER, project_dim=0, feature_dim=300, num_labels=0, **settings))


def moved(first, seed):
    """As after a training from it: every weight a little elsewhere, what is small entirely."""
    torch.manual_seed(seed)
    found = copy.deepcopy(first)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(torch.randn_like(p) * (0.01 if p.numel() >= 10_000 else 1))
    return found


@pytest.fixture
def three(tmp_path):
    first = model(0)
    models = [first, moved(first, 1), moved(first, 2)]
    for number, each in enumerate(models):
        each.save_pretrained(tmp_path / str(number))
    return models, [tmp_path / str(number) for number in range(3)]


def test_weights_are_the_mean(three, tmp_path):
    models, folders = three
    fingerprint = average_checkpoints(folders, tmp_path / "mean")
    found = LightningDOT.from_pretrained(tmp_path / "mean")
    assert found.fingerprint == fingerprint and found.config.of_vectors == models[0].config.of_vectors
    for name, tensor in found.state_dict().items():
        total = sum(each.state_dict()[name].double() for each in models)
        torch.testing.assert_close(tensor.double(), total / 3, atol=1e-7, rtol=1e-6)


def test_tokenizer_and_what_it_was_trained_on_go_with_it(finetuned, tmp_path, capsys):
    other = shutil.copytree(finetuned / "best", tmp_path / "other")
    moved(LightningDOT.from_pretrained(other), 1).save_pretrained(other)
    command(script, "--checkpoints", finetuned / "best", other, "--out", tmp_path / "mean")
    assert "the mean of 2 checkpoints" in capsys.readouterr().out
    assert read_made_from(tmp_path / "mean") == read_made_from(finetuned / "best")
    for name in ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"):
        assert (tmp_path / "mean" / name).read_bytes() == (finetuned / "best" / name).read_bytes()
    with pytest.raises(BadInput, match="mean: already there"):
        average_checkpoints([finetuned / "best", other], tmp_path / "mean")
    values = json.loads((other / "data.json").read_text())
    write_json(other / "data.json", with_digest(values | {"boxes": values["boxes"] | {"max_bb": 7}}))
    with pytest.raises(BadInput, match="other: was trained on other regions, boxes or words"):
        average_checkpoints([finetuned / "best", other], tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda first: model(1), "has nothing in common with that of .*: the two did not begin from the same weights"),
        (lambda first: first, "has the same weights as"),
        (lambda first: moved(model(0, similarity="cosine", pooling="mean"), 5), r"config\.json: has another pooling, similarity than"),
    ],
)
def test_what_has_no_mean_is_refused(tmp_path, second, message):
    first = model(0)
    first.save_pretrained(tmp_path / "a")
    second(first).save_pretrained(tmp_path / "b")
    with pytest.raises(BadInput, match=message):
        average_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_one_is_not_enough_and_other_sizes_are_named(tmp_path, three):
    with pytest.raises(BadInput, match="expected two or more"):
        average_checkpoints(three[1][:1], tmp_path / "mean")
    LightningDOT(LightningDOTConfig(TOWER, TOWER, project_dim=8, feature_dim=300, num_labels=0)).save_pretrained(tmp_path / "wide")
    with pytest.raises(BadInput, match=r"wide, beside .*0: .* keys do not fit the model"):
        average_checkpoints([three[1][0], tmp_path / "wide"], tmp_path / "mean")
