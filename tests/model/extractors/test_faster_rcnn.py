"""`butd`: every stage against an independent computation, its weights' names, and what is refused."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hub_server import Repository, asked_hub
from PIL import Image

from data.errors import BadInput
from data.regions.db import BoxOptions
from model.extractors.base import ExtractorOptions
from model.extractors.butd.faster_rcnn import AnchorGenerator, FasterRcnn, ProposalGenerator, load_butd
from model.extractors.butd.rcnn_config import RcnnConfig, read_config
from model.extractors.extraction import build_extractor
from model.extractors.weight_files import read_weights
from tests.model.extractors.test_box_ops import naive_decode, naive_iou, naive_nms, naive_roi_pool

SMALL = {
    "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 160},
    "MODEL": {"PIXEL_MEAN": [102.9801, 115.9465, 122.7717], "PIXEL_STD": [1.0, 1.0, 1.0], "MAX_POOL": True},
    "RESNETS": {
        "DEPTH": 50, "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4, "NUM_GROUPS": 1,
        "STRIDE_IN_1X1": True,
    },
    "PROPOSAL_GENERATOR": {"HIDDEN_CHANNELS": 12, "MIN_SIZE": 2},
    "ANCHOR_GENERATOR": {"SIZES": [[16, 32]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "OFFSET": 0.0},
    "RPN": {"NMS_THRESH": 0.7, "PRE_NMS_TOPK_TEST": 200, "POST_NMS_TOPK_TEST": 40},
    "ROI_HEADS": {"NUM_CLASSES": 9},
    "ROI_BOX_HEAD": {"NUM_ATTRS": 5, "ATTR": True, "POOLER_TYPE": "ROIPool", "POOLER_RESOLUTION": 6, "RES5HALVE": False},
}  # fmt: skip


def picture_of_patches() -> Image.Image:
    rng = np.random.RandomState(0)
    return Image.fromarray(rng.randint(0, 256, (9, 12, 3), dtype=np.uint8)).resize((300, 200), Image.Resampling.NEAREST)


@torch.no_grad()
def randomise(model: FasterRcnn) -> None:
    """Weights and statistics for which neither box nor class is trivial."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "cell_anchors" not in name and "running" not in name:
            noise = torch.randn(value.shape, generator=generator)
            scale = 0.5 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5
            value.copy_(noise * scale + ("norm.weight" in name))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1  # what the next pass sees becomes the statistics
    model.train()
    model.roi_heads.res5(model.backbone(model.pixels(picture_of_patches())))
    model.eval()
    model.proposal_generator.rpn_head.anchor_deltas.weight.mul_(0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small detector as it is published: config.yaml and pytorch_model.bin."""
    folder = tmp_path_factory.mktemp("butd")
    (folder / "config.yaml").write_text(yaml.safe_dump(SMALL))
    model = FasterRcnn(read_config(folder / "config.yaml"))
    randomise(model)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    torch.set_num_threads(1)
    return build_extractor("butd", ExtractorOptions(weights=str(folder), boxes=BoxOptions(0.3, 20, 5)))


@pytest.fixture(scope="module")
def picture():
    return picture_of_patches()


def test_pixels_are_resized_bgr_and_centred(model, picture):
    pixels = model.pixels(picture)
    assert pixels.shape == (1, 3, 96, 144)  # 200 → 96 on the shorter side
    red, green, blue = np.moveaxis(np.asarray(picture.resize((144, 96), Image.Resampling.BILINEAR), np.float64), 2, 0)
    expected = np.stack([blue - 102.9801, green - 115.9465, red - 122.7717])
    np.testing.assert_allclose(pixels[0], expected, atol=1e-4)
    assert model.pixels(Image.new("RGB", (1000, 100))).shape == (1, 3, 16, 160)  # the longer side is the limit
    assert model.pixels(Image.new("RGB", (5000, 1))).shape == (1, 3, 16, 160)  # a cell of the map


def plain_conv(x, weights, name, stride=1, padding=0, dilation=1):
    """Convolution and frozen batch norm, written out."""
    x = F.conv2d(x, weights[f"{name}.weight"], None, stride, padding, dilation)
    weight, bias, mean, var = (
        weights[f"{name}.norm.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def plain_stage(x, weights, name, blocks, stride, dilation=1):
    for block in range(blocks):
        at, step = f"{name}.{block}", stride if block == 0 else 1
        out = plain_conv(x, weights, f"{at}.conv1", step).relu()  # Caffe: the first convolution strides
        out = plain_conv(out, weights, f"{at}.conv2", 1, dilation, dilation).relu()
        out = plain_conv(out, weights, f"{at}.conv3")
        x = (out + (plain_conv(x, weights, f"{at}.shortcut", step) if block == 0 else x)).relu()
    return x


@pytest.mark.parametrize("caffe", [True, False])
def test_the_backbone_against_functions(folder, picture, caffe):
    config = read_config(folder / "config.yaml")
    model = FasterRcnn(RcnnConfig(**{**config.__dict__, "caffe_max_pool": caffe}))
    model.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    weights, pixels = model.state_dict(), model.pixels(picture)
    x = plain_conv(pixels, weights, "backbone.stem.conv1", 2, 3).relu()
    x = F.max_pool2d(x, 3, 2, 0, ceil_mode=True) if caffe else F.max_pool2d(x, 3, 2, 1)
    for name, blocks, stride in (("res2", 3, 1), ("res3", 4, 2), ("res4", 6, 2)):
        x = plain_stage(x, weights, f"backbone.{name}", blocks, stride)
    maps = model.backbone(pixels)
    assert maps.shape == (1, 64, 6, 9)
    torch.testing.assert_close(maps, x, atol=1e-3, rtol=1e-3)


def test_anchors_against_loops():
    anchors = AnchorGenerator(RcnnConfig(anchor_sizes=(64, 128), anchor_ratios=(0.5, 1, 2), anchor_offset=0.25))(3, 4)
    expected = []
    for row in range(3):
        for column in range(4):
            x, y = (column + 0.25) * 16, (row + 0.25) * 16
            for size in (64, 128):
                for ratio in (0.5, 1, 2):  # height over width
                    wide = math.sqrt(size * size / ratio)
                    tall = ratio * wide
                    expected.append([x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2])
    torch.testing.assert_close(anchors, torch.tensor(expected))
    published = AnchorGenerator(RcnnConfig())
    assert published.cell_anchors[0].shape == (12, 4)
    torch.testing.assert_close(published.cell_anchors[0][1], torch.tensor([-32.0, -32, 32, 32]))


def test_proposals_against_loops(model, picture):
    """Decode every anchor, clip, drop the small, suppress: box by box."""
    generator: ProposalGenerator = model.proposal_generator
    maps = model.backbone(model.pixels(picture))
    head, hidden = generator.rpn_head, F.relu(generator.rpn_head.conv(maps))
    logits, deltas = head.objectness_logits(hidden)[0], head.anchor_deltas(hidden)[0]
    anchors = generator.anchor_generator(*maps.shape[2:]).tolist()
    found = []
    for row in range(maps.shape[2]):
        for column in range(maps.shape[3]):
            for a in range(6):
                delta = deltas[4 * a : 4 * a + 4, row, column].tolist()
                box = naive_decode(delta, anchors[len(found)], (1, 1, 1, 1))
                box = [min(max(v, 0), limit) for v, limit in zip(box, (144, 96, 144, 96))]
                found.append((logits[a, row, column].item(), box))
    best = sorted(found, key=lambda pair: -pair[0])[:200]
    large = [(score, box) for score, box in best if box[2] - box[0] > 2 and box[3] - box[1] > 2]
    assert len(found) > 300 and 40 < len(large) < 200  # every limit matters
    keep = naive_nms([box for _, box in large], [score for score, _ in large], 0.7)[:40]
    proposals = generator(maps, 144, 96)
    torch.testing.assert_close(proposals, torch.tensor([large[i][1] for i in keep]), atol=1e-2, rtol=1e-4)


def test_features_and_detections_against_loops(model, picture):
    """Pool, res5 (stride 1, dilated), mean, classes; suppression class by class; 10 to 100 boxes: here 5 to 20."""
    weights = model.state_dict()
    maps = model.backbone(model.pixels(picture))
    boxes = model.proposal_generator(maps, 144, 96)
    pooled = naive_roi_pool(maps, boxes, torch.zeros(len(boxes), dtype=torch.long), (6, 6), 1 / 16)
    features = plain_stage(pooled, weights, "roi_heads.res5", 3, 1, dilation=2).flatten(2).mean(2)
    logits = features @ weights["roi_heads.box_predictor.cls_score.weight"].T
    labels = (logits + weights["roi_heads.box_predictor.cls_score.bias"]).softmax(1)  # 9 classes, then background
    conf = [0.0] * len(boxes)
    for c in range(9):
        for i in naive_nms(boxes.tolist(), labels[:, c].tolist(), 0.3):
            conf[i] = max(conf[i], labels[i, c].item())
    order = sorted(range(len(boxes)), key=lambda i: (-conf[i], i))
    count = min(max(sum(c > 0.3 for c in conf), 5), 20)

    found = model([picture])[0]
    assert len(found.boxes) == count and 5 < count < len(boxes)
    torch.testing.assert_close(found.conf, torch.tensor([conf[i] for i in order[:count]]), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.features, features[order[:count]], atol=1e-3, rtol=1e-3)
    scale = torch.tensor([300 / 144, 200 / 96] * 2)
    torch.testing.assert_close(found.boxes, boxes[order[:count]] * scale)
    labels = labels[order[:count]]
    torch.testing.assert_close(found.soft_labels, torch.cat([labels[:, 9:], labels[:, :9]], 1), atol=1e-4, rtol=1e-3)
    assert (found.conf[:-1] >= found.conf[1:]).all()
    assert max(naive_iou(a, b) for i, a in enumerate(boxes.tolist()) for b in boxes.tolist()[:i]) <= 0.7 + 1e-5


@pytest.mark.parametrize(("conf_th", "expected"), [(0.0, 20), (1.0, 5)])
def test_the_number_of_boxes_is_clamped(folder, picture, conf_th, expected):
    found = load_butd(str(folder), BoxOptions(conf_th, 20, 5))([picture])[0]
    assert len(found.boxes) == expected


def test_a_picture_does_not_depend_on_its_batch(model, picture):
    small = Image.new("RGB", (40, 30), "green")
    together = model([small, picture])
    assert torch.equal(together[1].features, model([picture])[0].features)
    assert together[0].features.shape[1] == model.feature_dim == 128 and model.num_labels == 10


def test_roi_align_and_a_halving_res5(folder):
    config = RcnnConfig(**{**read_config(folder / "config.yaml").__dict__, "pooler": "ROIAlign", "halve_res5": True})
    heads = FasterRcnn(config).roi_heads
    boxes = torch.tensor([[0.0, 0, 96, 96]])
    ramp = torch.arange(6.0).expand(1, 64, 6, 6)
    torch.testing.assert_close(heads.pool(ramp, boxes)[0, 0, 0], torch.arange(6.0))  # bins are the map's pixels
    assert heads.res5(torch.zeros(1, 64, 6, 6)).shape == (1, 128, 3, 3)


def test_published_names_and_shapes():
    """The full model, never run: names and sizes of what was published with the paper's code."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in FasterRcnn(RcnnConfig()).state_dict().items()}
    expected = {
        "backbone.stem.conv1.weight": (64, 3, 7, 7),
        "backbone.stem.conv1.norm.running_mean": (64,),
        "backbone.res2.0.shortcut.weight": (256, 64, 1, 1),
        "backbone.res4.22.conv2.weight": (256, 256, 3, 3),
        "proposal_generator.anchor_generator.cell_anchors.0": (12, 4),
        "proposal_generator.rpn_head.conv.weight": (512, 1024, 3, 3),
        "proposal_generator.rpn_head.objectness_logits.weight": (12, 512, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas.bias": (48,),
        "roi_heads.res5.0.shortcut.norm.bias": (2048,),
        "roi_heads.res5.2.conv3.weight": (2048, 512, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": (1601, 2048),
        "roi_heads.box_predictor.bbox_pred.weight": (6400, 2048),
        "roi_heads.box_predictor.cls_embedding.weight": (1601, 256),
        "roi_heads.box_predictor.fc_attr.weight": (512, 2304),
        "roi_heads.box_predictor.attr_score.weight": (401, 512),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    weights = [name for name in shapes if name.endswith("conv1.weight") and "res4" in name]
    assert len(weights) == 23


# ---- files -----------------------------------------------------------------------------------------------------------


def copy_of(folder, tmp_path, change):
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(weights)
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    return weights


def test_every_difference_of_the_weights_is_listed(folder, tmp_path):
    def change(weights):
        del weights["backbone.res3.1.conv2.weight"], weights["roi_heads.box_predictor.fc_attr.bias"]
        weights["backbone.fc.weight"] = torch.zeros(2)
        weights["proposal_generator.rpn_head.conv.bias"] = torch.zeros(13)

    torch.save(copy_of(folder, tmp_path, change), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput) as caught:
        load_butd(str(tmp_path))
    for part in (
        "missing backbone.res3.1.conv2.weight; missing roi_heads.box_predictor.fc_attr.bias",
        "unexpected backbone.fc.weight",
        "proposal_generator.rpn_head.conv.bias (13,) instead of (12,)",
    ):
        assert part in str(caught.value)


def test_pickled_arrays_are_read_and_the_counters_may_be_missing(folder, tmp_path, picture, model):
    weights = copy_of(folder, tmp_path, lambda weights: None)
    arrays = {name: value.numpy() for name, value in weights.items() if "num_batches" not in name}
    for protocol in (2, 4):
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol))
        found = load_butd(str(tmp_path), BoxOptions(0.3, 20, 5))([picture])[0]
        assert torch.equal(found.features, model([picture])[0].features)


class Evil:
    def __reduce__(self):
        return (open, ("/dev/null",))


@pytest.mark.parametrize("content", ["object", "torch", "text", "list"])
def test_files_that_are_no_weights_are_refused_and_not_run(tmp_path, content):
    path = tmp_path / "w.bin"
    if content == "object":
        path.write_bytes(pickle.dumps({"model": {"x": Evil()}}))
        message = "holds the function or class '.*open'; only numbers"
    elif content == "torch":
        torch.save({"x": Evil()}, path)
        message = "not a file of weights"
    elif content == "text":
        path.write_text("<html>not found</html>")
        message = "not a file of weights"
    else:
        torch.save([1, 2], path)
        message = "no dictionary of tensors"
    with pytest.raises(BadInput, match=message):
        read_weights(path)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", [b"O8", b"V4", b"f8", b"U1", b"M8", b"c8", b"O\x00", b",f"])
def test_arrays_of_a_crafted_type_are_refused(tmp_path, kind, protocol):
    """numpy would take their bytes for addresses, or read behind them."""
    content = pickle.dumps({"model": {"x": np.full((2, 3), 1e30, np.float32)}}, protocol)
    assert content.count(b"f4") == 1
    (tmp_path / "w.bin").write_bytes(content.replace(b"f4", kind))
    with pytest.raises(BadInput, match="not a file of weights"):
        read_weights(tmp_path / "w.bin")


def test_the_config_in_lower_case_and_its_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("rpn: {nms_thresh: 0.6}\nmodel: {max_pool: 0}\nresnets: {depth: 152}\nother: 3\n")
    config = read_config(path)
    assert (config.rpn_nms, config.caffe_max_pool, config.depth) == (0.6, False, 152)
    assert (config.post_nms, config.anchor_sizes, config.classes) == (300, (64, 128, 256, 512), 1600)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnets: {depth: 34}", "resnets.depth: found 34, expected one of 50, 101, 152"),
        ("input: {format: GRB}", "input.format: found GRB"),
        ("roi_box_head: {pooler_type: Max}", "pooler_type: found Max"),
        ("model: {pixel_mean: none}", "model.pixel_mean: found 'none'"),
        ("rpn: {nms_thresh: [1, 2]}", "rpn.nms_thresh: found"),
        ("- 1", "holds a list, expected an object; .*the sections model, resnets"),
        ("{", "the file is not YAML"),
    ],
)
def test_bad_configs(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_config(tmp_path / "config.yaml")


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"config\.yaml is not there; give a folder with config\.yaml and pytorch_model\.bin, such as unc-nlp/"):
        load_butd(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"^nobody/nothing: no such folder, and the hub's cache .* HF_HUB_OFFLINE is set"):
        load_butd("nobody/nothing")


def test_weights_of_the_hub_at_a_revision(model, folder, tmp_path, monkeypatch):
    with asked_hub(tmp_path, monkeypatch) as hub:
        hub.models["user/detector"] = repo = Repository()
        repo.add_folder(folder, "v1")
        repo.commit({"config.yaml": b"{}", "README.md": b"no weights"})
        loaded = build_extractor("butd", ExtractorOptions(weights="user/detector@v1"))
        assert loaded.weights_digest() == model.weights_digest()
        with pytest.raises(BadInput, match=r"^--weights user/detector: .*pytorch_model\.bin is not there"):
            build_extractor("butd", ExtractorOptions(weights="user/detector"))
        with pytest.raises(BadInput, match=r"^user/detector@v2: user/detector of the hub has no revision v2$"):
            build_extractor("butd", ExtractorOptions(weights="user/detector@v2"))


@pytest.mark.parametrize("size", [(3000, 4), (4, 1000), (4096, 5)])
def test_a_very_thin_picture(model, picture, size):
    picture = picture.resize(size)
    assert min(model.pixels(picture).shape[2:]) >= 16
    (found,) = model([picture])
    assert len(found.boxes) >= 1 and torch.isfinite(found.features).all()
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([*size, *size]) + 1e-3).all()
