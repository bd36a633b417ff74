"""An image tower that starts from a text encoder, and reads regions as if they were words.

Such an encoder knows words, and what sentences they make; the projection of region features before it starts from random weights, so that
all it gets at first is noise. Here the projection starts as the ridge regression from an image's mean region feature to the mean of the word
embeddings of its captions. Being linear, it gives each region the words that its feature speaks for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data.batches.batch import collate_pairs
from data.batches.pairs import PairDataset
from data.captions.db import vocabulary_size
from data.errors import BadInput
from data.progress import ProgressBar
from model import checkpoints
from model.bi_encoder import ImageBert, LightningDOT
from model.initial import ModelOptions

RIDGE = 0.3  # added to the diagonal of the features' covariance, in units of its mean
GAIN = 3.0  # a regression predicts less than there is: regions would all be the same average word
POSITIONS = 0.1  # weight of a region's position beside its feature, until training knows better
AT_ONCE = 256  # images read together


def check_knows_words_alone(options: ModelOptions) -> None:
    """Refuse an image tower that knows no words, as one from random weights, or reads regions already, as a checkpoint's or UNITER's.
    Raises BadInput."""
    if options.init:
        raise BadInput(f"regions_as_words: {options.init} reads regions already; give --regions-as-words false with model.init")
    if not options.img_init:
        raise BadInput("regions_as_words needs an image tower that knows words and no regions yet: give model.img_init")
    if any(name.startswith("img_embeddings.") for name in checkpoints.read_bert(options.img_init)[1]):
        raise BadInput(f"regions_as_words: {options.img_init} reads regions already; leave it out")


def read_regions_as_words(model: LightningDOT, pairs: PairDataset) -> float:
    """Start the projection of region features, and what stands around it, so that the image tower reads words of the captions.

    Args:
        model: its image tower's word embeddings are those of the captions' words
        pairs: captions and regions of the training images; each image is read once

    Returns: share of the variance of the images' words that their features explain.

    Raises:
        BadInput: the image tower knows other words than those of the captions, or the captions of all images hold the same.
    """
    encoder: ImageBert = model.img_model.bert
    meta = pairs.captions.meta
    if encoder.cls_token_id != meta["CLS"] or encoder.embeddings.word_embeddings.num_embeddings < vocabulary_size(meta):
        raise BadInput(f"regions_as_words: the image tower has another vocabulary than {pairs.captions.folder}: give one of its tokenizer")
    image_of = np.asarray(pairs.image_of)
    table = encoder.embeddings.word_embeddings.weight.detach().cpu().double()
    words, told = mean_words(table, pairs.words(np.arange(len(pairs))), image_of)
    if not told.any():
        raise BadInput(f"regions_as_words: {pairs.captions.folder}: the captions of all images hold the same words")
    _, first_captions = np.unique(image_of, return_index=True)
    weight, bias, explained = ridge(_mean_features(pairs, first_captions[told]), words[told])
    _start(encoder, weight, bias)
    return explained


def mean_words(table: Tensor, captions: list[np.ndarray], rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """The mean word of each image's captions, rare words counting more: each as often as it stands there, times the logarithm of
    the images for each one that it is said of. A word that is said of all, as [CLS], counts nothing.

    Args:
        table: [V,h] word embeddings
        captions: token ids of each caption
        rows: [len(captions)], the image of each caption, 0 to I-1

    Returns: [I,h], and [I] whether an image has words at all that count.
    """
    number = int(rows.max()) + 1
    of_words = np.repeat(rows, [len(each) for each in captions])
    at = torch.from_numpy(np.stack([of_words, np.concatenate(captions).astype(np.int64)]))
    counts = torch.sparse_coo_tensor(at, torch.ones(at.shape[1], dtype=table.dtype), (number, len(table)), check_invariants=True).coalesce()
    images, ids = counts.indices()
    rarity = torch.log(number / torch.bincount(ids, minlength=len(table)).clamp(min=1).to(table.dtype))
    weights = counts.values() * rarity[ids]
    sums = torch.zeros(number, dtype=table.dtype).index_add_(0, images, weights)
    told = sums > 0
    weighted = torch.sparse_coo_tensor(counts.indices(), weights / sums[images].clamp(min=1e-12), counts.shape, check_invariants=True)
    return torch.sparse.mm(weighted, table), told.numpy()


def ridge(batches: Iterator[Tensor], targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """Ridge regression with an intercept, in float64, and its distance from the mean target times `GAIN`.

    Args:
        batches: features [N,F] in order, together of all I images
        targets: [I,h]

    Returns: weight [h,F] and bias [h], both with the gain; and the share of the targets' variance that the regression without it explains.
    """
    total = outer = cross = targets.new_zeros(())
    done = 0
    for features in batches:
        features = features.to(targets.dtype)
        total, outer = total + features.sum(0), outer + features.T @ features
        cross = cross + features.T @ targets[done : done + len(features)]
        done += len(features)
    mean, mean_target = total / done, targets.mean(0)
    covariance = outer / done - torch.outer(mean, mean)
    shared = cross / done - torch.outer(mean, mean_target)  # [F,h]
    diagonal = covariance.diagonal().mean().clamp(min=1e-12)
    weight = torch.linalg.solve(covariance + RIDGE * diagonal * torch.eye(len(mean), dtype=targets.dtype), shared)
    left = (targets - mean_target).square().mean(0).sum() - 2 * (weight * shared).sum() + (weight * (covariance @ weight)).sum()
    explained = 1 - left / (targets - mean_target).square().mean(0).sum().clamp(min=1e-12)
    return GAIN * weight.T, mean_target - GAIN * (mean @ weight), float(explained)


def _mean_features(pairs: PairDataset, captions: np.ndarray) -> Iterator[Tensor]:
    """The mean region feature of the image of each caption, [N,F] float64 at a time."""
    with ProgressBar(what="reading regions as words", total=len(captions), unit="img") as bar:
        for start in range(0, len(captions), AT_ONCE):
            images = collate_pairs(pairs.examples(captions[start : start + AT_ONCE])).images
            yield torch.segment_reduce(images.features.double(), "mean", lengths=torch.from_numpy(images.counts))
            bar.update(len(images))


@torch.no_grad()
def _start(encoder: ImageBert, weight: Tensor, bias: Tensor) -> None:
    """Set the projection, and the layer norms behind it to what words go through."""
    regions, words = encoder.img_embeddings, encoder.embeddings
    regions.img_linear.weight.copy_(weight)
    regions.img_linear.bias.copy_(bias)
    regions.pos_layer_norm.weight.fill_(POSITIONS)
    regions.pos_layer_norm.bias.zero_()
    regions.LayerNorm.load_state_dict(words.LayerNorm.state_dict())
