"""Hugging Face backbones and torchvision's detectors as region extractors."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hub_server import Repository, asked_hub
from PIL import Image

from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB
from model.extractors.base import ExtractorOptions
from model.extractors.extraction import build_extractor
from model.extractors.hf import grid_boxes
from scripts.extract_regions import Options, main

try:
    import torchvision
except (ImportError, RuntimeError):  # no wheel, or one of another torch
    torchvision = None
with_torchvision = pytest.mark.skipif(torchvision is None, reason="an extractor of torchvision, which is not here")

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BACKBONES = {  # config, rows and columns of its grid
    "vit": (transformers.ViTConfig(**VIT, image_size=64, patch_size=16), 4),
    "deit": (transformers.DeiTConfig(**VIT, image_size=64, patch_size=16), 4),
    "beit": (transformers.BeitConfig(**VIT, image_size=64, patch_size=16), 4),
    "dinov2": (transformers.Dinov2Config(**VIT, image_size=70, patch_size=14), 5),
    "dinov2_with_registers": (
        transformers.Dinov2WithRegistersConfig(**VIT, image_size=70, patch_size=14, num_register_tokens=4), 5,
    ),
    "swin": (
        transformers.SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 2], window_size=4), 4,
    ),
    "resnet": (transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic"), 7),
    "convnext": (transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]), 7),
    "clip": (
        transformers.CLIPConfig(
            text_config={**VIT, "vocab_size": 50}, vision_config={**VIT, "image_size": 64, "patch_size": 16}
        ), 4,
    ),
}  # fmt: skip


def save(folder, name, **preprocessing):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(BACKBONES[name][0])
    model.save_pretrained(folder)
    if preprocessing:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model.eval()


def patches_of(columns=300, rows=200) -> Image.Image:
    noise = np.random.RandomState(0).randint(0, 256, (10, 15, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((columns, rows), Image.Resampling.NEAREST)


def test_grid_boxes_against_loops():
    expected = []
    for row in range(0, 5, 2):
        for column in range(0, 7, 2):
            expected.append([column / 7, row / 5, min(column + 2, 7) / 7, min(row + 2, 5) / 5])
    torch.testing.assert_close(grid_boxes(5, 7, 2), torch.tensor(expected))


@pytest.mark.parametrize("name", BACKBONES)
def test_patches_are_regions(tmp_path, name):
    """Each patch is where the model has it: the features are those of transformers' own forward pass."""
    model = save(tmp_path, name, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25])
    extractor = build_extractor(f"hf:{tmp_path}", ExtractorOptions())
    side, picture = BACKBONES[name][1], patches_of()
    found = extractor([picture])[0]
    assert found.boxes.shape == (side * side, 4) and found.soft_labels is None and extractor.num_labels == 0
    assert found.features.shape == (side * side, extractor.feature_dim) and (found.conf == 1).all()
    for number in (0, side, side * side - 1):
        row, column = divmod(number, side)
        box = [300 * column / side, 200 * row / side, 300 * (column + 1) / side, 200 * (row + 1) / side]
        torch.testing.assert_close(found.boxes[number], torch.tensor(box))

    pixels = np.asarray(picture.resize((extractor.side,) * 2, Image.Resampling.BICUBIC), np.float32) / 255
    pixels = torch.from_numpy((pixels - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.25])).permute(2, 0, 1)[None]
    with torch.no_grad():
        hidden = getattr(model, "vision_model", model)(pixel_values=pixels).last_hidden_state[0]
    if name in ("resnet", "convnext"):
        expected = hidden.flatten(1).T
    else:
        front = {"swin": 0, "deit": 2, "dinov2_with_registers": 5}.get(name, 1)  # [CLS], distillation, registers
        assert len(hidden) == front + side * side
        expected = hidden[front:]
    torch.testing.assert_close(found.features, expected, atol=1e-4, rtol=1e-4)


def test_patches_beyond_max_bb_are_averaged(tmp_path):
    save(tmp_path, "dinov2")
    fine = build_extractor(f"hf:{tmp_path}", ExtractorOptions(boxes=BoxOptions(max_bb=25)))([patches_of()])[0]
    coarse = build_extractor(f"hf:{tmp_path}", ExtractorOptions(boxes=BoxOptions(max_bb=24)))([patches_of()])[0]
    assert len(fine.boxes) == 25 and len(coarse.boxes) == 9  # 2 x 2 windows of 5 x 5, cut off at the edge
    grid = fine.features.view(5, 5, -1)
    for number, (rows, columns) in enumerate((r, c) for r in (0, 2, 4) for c in (0, 2, 4)):
        window = grid[rows : rows + 2, columns : columns + 2].flatten(0, 1)
        torch.testing.assert_close(coarse.features[number], window.mean(0))
    torch.testing.assert_close(coarse.boxes[8], torch.tensor([240.0, 160, 300, 200]))


def test_a_backbone_of_the_hub_at_a_revision(tmp_path, monkeypatch):
    with asked_hub(tmp_path, monkeypatch) as hub:
        hub.models["user/vit"] = repo = Repository()
        save(Path("old"), "vit", image_mean=[0.1, 0.2, 0.3], image_std=[0.2, 0.2, 0.2])
        save(Path("new"), "deit")
        repo.add_folder(Path("old"), "v1")
        repo.add_folder(Path("new"))
        for name, folder in {"user/vit@v1": "old", "user/vit": "new"}.items():
            of_hub, own = (build_extractor(f"hf:{each}", ExtractorOptions()) for each in (name, folder))
            assert of_hub.weights_digest() == own.weights_digest()
            torch.testing.assert_close(of_hub([patches_of()])[0].features, own([patches_of()])[0].features, rtol=0, atol=0)
        with pytest.raises(BadInput, match=r"^user/vit@v2: user/vit of the hub has no revision v2$"):
            build_extractor("hf:user/vit@v2", ExtractorOptions())
        with pytest.raises(BadInput, match=r"^user/none: no such folder, and the hub has no vision backbone user/none"):
            build_extractor("hf:user/none", ExtractorOptions())


def test_what_is_no_vision_backbone(tmp_path):
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=9)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(BadInput, match="no vision backbone that takes a picture"):
        build_extractor(f"hf:{tmp_path / 'bert'}", ExtractorOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="cannot be loaded"):
        build_extractor(f"hf:{tmp_path / 'empty'}", ExtractorOptions())
    with pytest.raises(BadInput, match="--weights w: hf takes none"):
        build_extractor(f"hf:{tmp_path / 'bert'}", ExtractorOptions(weights="w"))


def test_a_database_without_soft_labels_trains_mrfr_and_refuses_mrckl(small_world, tmp_path, command):
    """The whole way: patches → image DB → pre-training; a config that asks for mrckl says so before the first step."""
    save(tmp_path / "vit", "vit")
    regions = tmp_path / "regions"
    main(Options(str(small_world / "photos"), str(regions), extractor=f"hf:{tmp_path / 'vit'}", workers=0))
    db = RegionDB(regions)
    assert (db.num_labels, db.feature_dim) == (0, 24) and all(len(db[key]) == 16 for key in db.keys[:3])

    words = ["--config", small_world / "pretrain.yaml", "--num-steps", 2, "--out", tmp_path / "run"]
    corpus = {"name": "patches", "captions": str(small_world / "db" / "train"), "regions": str(regions)}
    command("pretrain.py", *words, "--data", json.dumps([{**corpus, "tasks": {"mrfr": 1}}]))
    words[-1] = tmp_path / "refused"
    refused = command("pretrain.py", *words, "--data", json.dumps([{**corpus, "tasks": {"mrckl": 1}}]), status=2)
    assert "has no soft labels, which mrckl" in refused.stderr and "leave these tasks out" in refused.stderr
    assert refused.stderr.strip().count("\n") == 0


def test_without_torchvision_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BadInput, match=r"torchvision:fasterrcnn_resnet50_fpn: torchvision cannot be imported .*install the version"):
        build_extractor("torchvision:fasterrcnn_resnet50_fpn", ExtractorOptions())


@with_torchvision
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_torchvision_detectors(tmp_path, name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    extractor = build_extractor(f"torchvision:{name}", ExtractorOptions(weights=str(tmp_path / "w.pt"), boxes=BoxOptions(0.0, 30)))
    picture = patches_of()
    found = extractor([picture])[0]
    n = len(found.boxes)
    assert 10 <= n <= 30 and extractor.num_labels == 91
    assert found.features.shape == (n, extractor.feature_dim) and found.soft_labels.shape == (n, 91)
    torch.testing.assert_close(found.soft_labels.sum(1), torch.ones(n), atol=1e-4, rtol=0)
    for part in (model, getattr(model, "roi_heads", model)):
        part.score_thresh, part.detections_per_img = 0.005, 30
    with torch.no_grad():
        own = model([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255])[0]
    torch.testing.assert_close(found.conf, own["scores"][:n])
    torch.testing.assert_close(found.boxes, own["boxes"][:n])
    del (state := model.state_dict())[next(iter(state))]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"w\.pt: .*Missing key"):
        build_extractor(f"torchvision:{name}", ExtractorOptions(weights=str(tmp_path / "w.pt")))
    with pytest.raises(BadInput, match=f"no detection model, expected for instance {name}"):
        build_extractor(f"torchvision:{name[:-1]}", ExtractorOptions())
