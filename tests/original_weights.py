"""Weights in the original's files: the names and shapes of its models, small and of random numbers."""

import json
import re
from pathlib import Path

import pytest
import torch

from data.errors import BadInput
from model.original import files as conversion

TEMPLATE = json.loads((Path(__file__).parent / "fixtures" / "keys_base.json").read_text())
# Base size made small. The region feature is 20 wide, and the projection as wide as the hidden state.
SMALL = {28996: 150, 768: 64, 3072: 48, 2048: 20, 512: 24, 1536: 128, 1601: 7}
FINETUNED, PRETRAINED, RETRIEVAL = "BiEncoder", "BiEncoderForPretraining", "UniterForImageTextRetrieval"
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "feat_regress.weight": "img_embeddings.img_linear.weight",
}


def base_shapes(model):
    """Every name and shape of a model of the original at base size; the fixture holds repeated parts once."""
    shapes = {}
    for prefix, part in TEMPLATE["models"][model]:
        for layer in range(TEMPLATE["layers"] if "*" in prefix else 1):
            for name, shape in TEMPLATE["parts"][part].items():
                shapes[prefix.replace("*", str(layer)) + name] = shape
    return shapes


def small_shapes(model, layers=2):
    deep = re.compile(rf"layer\.({'|'.join(map(str, range(layers, 12)))})\.")
    return {n: [SMALL.get(s, s) for s in shape] for n, shape in base_shapes(model).items() if not deep.search(n)}


def tie(tensors):
    tower = next(name[: name.index("embeddings.word")] for name in tensors if "embeddings.word" in name)
    for name, owner in TIED.items():
        if name in tensors:
            tensors[name] = tensors[tower + owner]
    return tensors


def random_tensors(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tie({name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()})


def uniter_pretraining(dtype=torch.float32):
    """UNITER's pre-training model: the image tower of ours with other prefixes."""
    shapes = {n.replace("bert.img_model.bert.", "uniter."): s for n, s in small_shapes(PRETRAINED).items()
              if "txt_model" not in n and "encode_proj" not in n}  # fmt: skip
    return random_tensors(shapes, dtype)


def state(kind, dtype=torch.float32):
    if kind == "uniter pretraining":
        return uniter_pretraining(dtype)
    tensors = random_tensors(small_shapes(kind.split()[0]), dtype)
    if kind.endswith("bare"):  # an encoder without heads
        return {name: t for name, t in tensors.items() if name.startswith("bert.")}
    if kind.endswith("parallel"):
        return {f"module.{name}": t for name, t in tensors.items()}
    if kind.endswith("buffers"):
        return tensors | {"bert.txt_model.bert.embeddings.position_ids": torch.arange(24)[None]}
    return tensors


def save(tensors, path):
    torch.save(tensors, path)
    return path


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def there_and_back(folder, content, **settings):
    source = save(content, folder / "a.pt")
    notes = conversion.to_ours(source, folder / "ours", **settings)
    conversion.to_original(folder / "ours", folder / "b.pt")
    return notes, torch.load(folder / "b.pt", weights_only=True)


def refusal(folder, content, **settings):
    with pytest.raises(BadInput) as error:
        conversion.to_ours(save(content, folder / "a.pt"), folder / "ours", **settings)
    assert not (folder / "ours").exists()
    return str(error.value).replace(str(folder), "")
