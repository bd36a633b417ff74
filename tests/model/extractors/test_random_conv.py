"""Connected components against a naive twin; what random-conv promises about any picture."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from data.errors import BadInput
from data.scenes import world as scenes
from model.extractors.base import ExtractorOptions
from model.extractors.box_ops import box_iou, norm_boxes
from model.extractors.extraction import build_extractor
from model.extractors.proposals import components


def test_components_against_flood_fill():
    rng = np.random.RandomState(0)
    for density in (0.3, 0.55, 0.62, 0.9):  # from specks, over mazes, to one patch with holes
        masks, image = rng.rand(2, 17, 23) < density, rng.rand(17, 23, 3)
        expected, seen = [], np.zeros_like(masks)
        for start in zip(*np.nonzero(masks)):
            if seen[start]:
                continue
            seen[start], stack, pixels = True, [start], []
            while stack:
                m, y, x = stack.pop()
                pixels.append((y, x))
                for near in ((m, y + 1, x), (m, y - 1, x), (m, y, x + 1), (m, y, x - 1)):
                    if 0 <= near[1] < 17 and 0 <= near[2] < 23 and masks[near] and not seen[near]:
                        seen[near] = True
                        stack.append(near)
            y, x = np.array(pixels).T
            expected.append((x.min(), y.min(), x.max() + 1, y.max() + 1, len(y), *image[y, x].mean(0)))
        box, area, colour = components(masks, image)
        np.testing.assert_allclose(np.column_stack([box, area, colour]), expected, atol=1e-9)
    assert len(components(np.zeros((2, 5, 5), bool), np.zeros((5, 5, 3)))[0]) == 0


@pytest.fixture(scope="module")
def extractor():
    torch.set_num_threads(1)
    return build_extractor("random-conv", ExtractorOptions(512, 101))


def picture_of(shape: str, colour, size=(192, 192), box=(40, 60, 100, 120)) -> Image.Image:
    picture = Image.new("RGB", size, (190, 190, 180))
    getattr(ImageDraw.Draw(picture), shape)(box, fill=colour)
    return picture


STRANGE = {
    "one pixel": Image.new("RGB", (1, 1), "red"),
    "narrow": Image.new("RGB", (3, 900), "white"),
    "wide": Image.fromarray(np.random.RandomState(0).randint(0, 256, (5, 700, 3), dtype=np.uint8)),
    "black": Image.new("RGB", (100, 80)),
    "grey noise": Image.fromarray(np.random.RandomState(1).randint(0, 256, (61, 97), dtype=np.uint8)),
    "halves": Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 50)[None].repeat(70, 0)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_any_picture_gives_10_to_16_sound_regions(extractor, name):
    picture = STRANGE[name]
    found = extractor([picture])[0]
    n = len(found.boxes)
    assert 10 <= n <= 16
    assert found.features.shape == (n, 512) and found.soft_labels.shape == (n, 101) and found.conf.shape == (n,)
    x1, y1, x2, y2 = norm_boxes(found.boxes, *picture.size)[:, :4].T
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 1).all() and (y2 <= 1).all()
    assert (x2 > x1).all() and (y2 > y1).all()
    assert (found.conf > 0.2).all() and (found.conf <= 1).all() and (found.conf.diff() <= 0).all()
    assert found.features.half().isfinite().all() and found.features.abs().max() < 60
    torch.testing.assert_close(found.soft_labels.sum(1), torch.ones(n))
    assert any(box == [0, 0, *picture.size] for box in found.boxes.tolist())  # the whole picture


def test_objects_are_found_in_the_picture_s_own_pixels(extractor):
    picture = picture_of("ellipse", (200, 30, 30), box=(20, 60, 79, 119))
    ImageDraw.Draw(picture).rectangle((110, 20, 169, 99), fill=(30, 60, 200))
    truth = torch.tensor([[20.0, 60, 80, 120], [110, 20, 170, 100]])
    assert (box_iou(truth, extractor([picture])[0].boxes).amax(1) > 0.85).all()
    large = picture.resize((768, 768), Image.Resampling.NEAREST)
    assert (box_iou(truth * 4, extractor([large])[0].boxes).amax(1) > 0.85).all()


def test_a_picture_s_regions_do_not_depend_on_its_batch(extractor):
    pictures = [picture_of("rectangle", "blue"), STRANGE["wide"], picture_of("ellipse", "green", size=(150, 192))]
    together = extractor(pictures)
    again = build_extractor("random-conv", ExtractorOptions(512, 101))
    for picture, found in zip(pictures, together):
        alone = again([picture])[0]
        for name in ("boxes", "features", "conf", "soft_labels"):
            assert torch.equal(getattr(found, name), getattr(alone, name))


def test_the_seed_makes_the_features_and_not_the_boxes(extractor):
    picture = picture_of("rectangle", "blue")
    first = extractor([picture])[0]
    second = build_extractor("random-conv", ExtractorOptions(512, 101, seed=1))([picture])[0]
    assert torch.equal(first.boxes, second.boxes)
    assert not torch.allclose(first.features, second.features, atol=0.1)


def test_like_regions_have_like_labels(extractor):
    """Bhattacharyya coefficient of the soft labels: the same thing elsewhere, against other things."""

    def labels(*args, **kwargs):
        found = extractor([picture_of(*args, **kwargs)])[0]
        return found.soft_labels[0, 1:] / found.soft_labels[0, 1:].sum()

    here = labels("ellipse", (200, 30, 30))
    moved = labels("ellipse", (196, 36, 28), box=(101, 30, 161, 90))
    recoloured, reshaped = labels("ellipse", (30, 60, 200)), labels("rectangle", (200, 30, 30))
    like, unlike = (here * moved).sqrt().sum(), torch.stack([(here * o).sqrt().sum() for o in (recoloured, reshaped)])
    assert like > 0.9 and (unlike < like - 0.1).all()


def test_features_tell_colour_shape_and_texture(extractor):
    """A ridge classifier on the features of the best-matching box, on scenes that it was not fitted to."""
    features, looks, objects = [], [], 0
    for index in range(160):
        scene = scenes.make_scene(5, index)
        found = extractor([scenes.render(scene, 192)])[0]
        for item in scene.objects:
            y, x = np.nonzero(scenes.silhouette(item, 192))
            truth = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]])
            overlap, best = box_iou(truth, found.boxes)[0].max(0)
            if overlap > 0.5:
                features.append(found.features[best])
                looks.append((item.colour, item.shape, item.texture))
    features = torch.stack(features).double()
    assert len(features) > 0.95 * objects
    train = torch.arange(len(features)) < 0.75 * len(features)
    mean = features[train].mean(0)
    x = torch.cat([features - mean, torch.ones(len(features), 1)], 1)
    accuracy = []
    for names in zip(*looks):
        label = torch.tensor([sorted(set(names)).index(name) for name in names])
        target = torch.nn.functional.one_hot(label).double()
        gram = x[train].T @ x[train] + 30 * torch.eye(x.shape[1])
        weight = torch.linalg.solve(gram, x[train].T @ target[train])
        accuracy.append(((x[~train] @ weight).argmax(1) == label[~train]).double().mean().item())
    assert accuracy[0] > 0.9 and accuracy[1] > 0.8 and accuracy[2] > 0.75


def test_soft_labels_can_be_left_out():
    assert build_extractor("random-conv", ExtractorOptions(64, 0))([STRANGE["black"]])[0].soft_labels is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "yolo"}, "found yolo, expected one of random-conv, butd"),
        ({"name": "hf:"}, "found hf:, expected one of"),
        ({"name": "butd:x"}, "found butd:x, expected one of"),
        ({"weights": "w"}, "--weights w: random-conv takes none"),
        ({"feature_dim": 3}, "feature_dim is 3"),
        ({"num_labels": 1}, "num_labels is 1"),
        ({"size": 8}, "size is 8"),
        ({"size": 190}, "size is 190, expected a multiple of 4"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"size": 10**9}, "size is 1000000000, expected 32 to 16,384"),  # as a file may say it, and nobody has the memory
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"feature_dim": 10**9}, "feature_dim is 1000000000"),
    ],
)
def test_impossible_settings(settings, message):
    name = settings.pop("name", "random-conv")
    with pytest.raises(BadInput, match=message):
        build_extractor(name, ExtractorOptions(**settings))
