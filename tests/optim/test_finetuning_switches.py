"""Fine-tuning's switches: the original's recipe step by step, third view, hard negatives, distillation, frozen towers."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import eval_itm
import train_itm
from configs import cli
from data.annotations.records import Caption
from data.batches.pairs import open_image_captions, open_pairs
from data.batches.teacher import write_teacher_scores
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.distributed import SINGLE
from model.evaluation.tasks import evaluate
from model.objectives import OBJECTIVES
from model.retrieval.encoding import Encoding, embed_pairs
from model.retrieval.indexing import build_index
from model.retrieval.mining import HardNegativeOptions, HardNegatives, hard_negatives_of
from model.retrieval.sources import image_source
from optim.tasks.pretraining import PretrainConfig, Pretraining
from optim.tasks.retrieval import Retrieval, RetrievalConfig
from tests.padded import padded_images, padded_texts

ORIGINAL = """--siblings keep --optim.algorithm adamw_original --optim.no_decay original --optim.schedule hf_linear
--optim.warmup-ratio 0.1 --optim.betas [0.9,0.999] --optim.eps 1e-8 --optim.weight-decay 0.01 --optim.grad-clip 0
--model.dropout 0 --optim.lr 1e-3""".split()


@pytest.fixture(scope="module")
def image_captions(small_world):
    """Text DBs with one caption of each training and validation image."""
    tokenizer = CaptionTokenizer.from_pretrained(small_world / "tokenizer")
    for split in ("train", "val"):
        captions = CaptionDB(small_world / "db_de" / split)
        records = [
            Caption(f"{key[:-4]}.png", captions[ids[0]]["raw"], f"{key}#0", split, "de")
            for key, ids in captions.img2txts.items()
        ]
        write_caption_db(small_world / "image_captions" / split, records, tokenizer, ["test"])
    return small_world / "image_captions"


@pytest.fixture
def train(small_world, pretrained, tmp_path):
    """Fine-tune in this process → (run folder, lines of metrics)."""

    def run(*words, name="run"):
        fixed = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--languages", "en"]
        words = [*fixed, "--out", tmp_path / name, *words]
        train_itm.main(cli.parse(train_itm.CONFIGS, [str(word) for word in words]))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return tmp_path / name, [json.loads(line) for line in lines]

    return run


def losses(lines):
    return [line["train/cmr/loss"] for line in lines if "train/cmr/loss" in line]


def assert_goes_on_bit_for_bit(train, words, folder, lines):
    """A run that is taken back to a checkpoint within its second epoch."""
    expected = load_file(folder / "last" / "model.safetensors")
    steps = sorted((folder / "checkpoints").iterdir())
    stopped = steps[3 * len(steps) // 4]
    (folder / "last").unlink()
    (folder / "last").symlink_to(stopped.relative_to(folder))
    assert losses(train(*words)[1]) == losses(lines)
    found = load_file(folder / "last" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_originals_recipe_step_by_step(train, small_world, pretrained, image_captions):
    """Third view and all, against a plain loop: one parameter at a time, schedule and decay as recorded."""
    view = ["--image-captions", "image_captions/train", "--val-image-captions", "image_captions/val"]
    folder, lines = train(*ORIGINAL, *view, "--caption-score-weight", 0.1, "--epochs", 1)

    model = LightningDOT.from_pretrained(pretrained / "last", dropout=0.0)
    third = open_image_captions(str(image_captions / "train"), 0.1)
    data = open_pairs(str(small_world / "db/train"), str(small_world / "regions"), BoxOptions(), 62, ["en"])
    order = np.random.default_rng([42, 0]).permutation(len(data))
    total = -(-len(data) // 16)
    warmup = round(0.1 * total)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    expected = []
    for step in range(total):
        batch = OBJECTIVES["cmr"]().prepare(data.examples(order[16 * step : 16 * (step + 1)]))
        texts = model.encode_text(*padded_texts(batch.texts))
        images = model.encode_image(*padded_images(batch.images))
        words = [torch.from_numpy(third.input_ids(key))[None] for key in batch.img_keys]
        captions = torch.cat([model.encode_text(ids, torch.ones_like(ids)) for ids in words])
        own = torch.arange(len(texts))
        t2i = F.cross_entropy(texts @ (0.9 * images + 0.1 * captions).T, own)
        i2t = F.cross_entropy(images @ (0.9 * texts + 0.1 * captions).T, own)
        loss = (t2i + i2t) / 2
        expected.append(float(loss.detach()))
        model.zero_grad()
        loss.backward()
        rate = 1e-3 * (step / warmup if step < warmup else (total - step) / (total - warmup))
        for name, p in model.named_parameters():
            if p.grad is None:
                continue
            m, v = moments[name]
            m.mul_(0.9).add_(0.1 * p.grad), v.mul_(0.999).add_(0.001 * p.grad**2)
            corrected = (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
            p.data -= rate * corrected * m / (v.sqrt() + 1e-8)
            if "bias" not in name and "LayerNorm.weight" not in name:
                p.data -= rate * 0.01 * p.data
    assert warmup and losses(lines) == pytest.approx(expected, abs=1e-5)
    for name, tensor in load_file(folder / "last" / "model.safetensors").items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_hard_negatives_enter_from_their_first_epoch_and_survive_a_stop(train):
    words = ["--hard-negatives.count", 2, "--hard-negatives.window", "1-5", "--epochs", 3]
    folder, lines = train(*words, name="whole")
    plain = train("--epochs", 3, name="plain")[1]
    per_epoch = len(losses(plain)) // 3
    assert losses(lines)[:per_epoch] == losses(plain)[:per_epoch]
    more = np.array(losses(lines)[per_epoch:]) > np.array(losses(plain)[per_epoch:])
    assert more.mean() > 0.8  # more negatives, and hard ones
    training = torch.load(folder / "last" / "training.pt", weights_only=True)
    assert training["ranking"].shape[1] == 5


def test_the_originals_hard_negatives_enter_the_loss_as_drawn(train, small_world, pretrained):
    """Two databases, each mined by itself; a rate so small that the weights stay."""
    data = ["--train-captions", "db/train", "db/test", "--train-regions", "regions", "--val-regions", "regions"]
    words = [*data, "--hard-negatives.count", 3, "--hard-negatives.window", "original", "--hard-negatives.from-epoch", 1]
    lines = train(*words, "--siblings", "keep", "--epochs", 1, "--model.dropout", 0, "--optim.lr", 1e-12)[1]

    names = [str(small_world / f"db/{name}") for name in ("train", "test")]
    pairs = open_pairs(names, str(small_world / "regions"), BoxOptions(), 62, ["en"])
    model = LightningDOT.from_pretrained(pretrained / "last")
    txt, img, _ = embed_pairs(model, pairs, "cpu", "fp32")
    negatives = hard_negatives_of(pairs, HardNegativeOptions(3, "original", from_epoch=1))
    negatives.mine(txt, img)
    order, expected = np.random.default_rng([42, 0]).permutation(len(pairs)), []
    first_database = len(pairs.parts[0][0])
    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        of_texts, of_images = negatives.draw(rows, np.random.default_rng([42, 5, 0, start]))
        assert ((of_texts < first_database) == (rows.repeat(3) < first_database)).all()
        images = img[pairs.image_of[np.concatenate([rows, of_images])]]
        texts = txt[np.concatenate([rows, of_texts])]
        own = torch.arange(len(rows))
        t2i, i2t = texts[: len(rows)] @ images.T, images[: len(rows)] @ texts.T
        expected.append(float(F.cross_entropy(t2i, own) + F.cross_entropy(i2t, own)) / 2)
    assert losses(lines) == pytest.approx(expected, abs=1e-4)


def test_a_run_with_the_originals_hard_negatives_goes_on_bit_for_bit(train):
    words = ["--hard-negatives.count", 3, "--hard-negatives.window", "original", "--grad-cache", 7, "--epochs", 2,
             "--hard-negatives.from-epoch", 1, "--save-every", 3, "--keep-checkpoints", 50]  # fmt: skip
    folder, lines = train(*words)
    assert_goes_on_bit_for_bit(train, words, folder, lines)


def test_distillation_pulls_the_ranking_towards_the_teacher(train, small_world, tmp_path):
    data = open_pairs(str(small_world / "db/train"), str(small_world / "regions"), BoxOptions(), 62, ["en"])
    rng = np.random.default_rng(0)
    candidates = np.tile(np.arange(len(data.images)), (len(data), 1))
    scores = np.tile(2 * rng.normal(size=len(data.images)), (len(data), 1)).astype(np.float32)  # some images please it
    write_teacher_scores(tmp_path / "scores.npz", data.ids, data.images, candidates, scores)
    words = ["--distill.scores", tmp_path / "scores.npz", "--distill.weight", 50, "--distill.temperature", 2]

    def divergence(folder):
        txt, img, _ = embed_pairs(LightningDOT.from_pretrained(folder / "last"), data, "cpu", "fp32")
        target = torch.from_numpy(scores / 2).softmax(1)
        return float(F.kl_div((txt @ img.T / 2).log_softmax(1), target, reduction="batchmean"))

    long = ["--epochs", 8, "--optim.lr", 5e-3]
    taught, plain = (train(*each, *long, name=name)[0] for each, name in ((words, "taught"), ((), "plain")))
    assert divergence(taught) < 0.5 * divergence(plain), (divergence(taught), divergence(plain))


@pytest.mark.parametrize("side", ["txt", "img"])
def test_a_frozen_tower_stays_bit_for_bit(train, pretrained, side):
    folder, _ = train(f"--model.freeze-{side}", "--epochs", 1)
    before, after = load_file(pretrained / "last/model.safetensors"), load_file(folder / "last/model.safetensors")
    changed = {name.split("_")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"txt", "img"} - {side}


def test_a_frozen_tower_has_no_dropout_while_the_other_trains(pretrained):
    model = LightningDOT.from_pretrained(pretrained / "last", dropout=0.5)
    model.freeze(txt=True)
    model.train()
    ids, mask = torch.tensor([[2, 7, 8, 9, 3]]), torch.ones(1, 5)
    assert torch.equal(model.encode_text(ids, mask), model.encode_text(ids, mask))
    images = torch.randn(1, 3, 32), torch.rand(1, 3, 7), torch.ones(1, 3)
    assert not torch.equal(model.encode_image(*images), model.encode_image(*images))


def test_accumulated_batches_are_one_update(train, small_world):
    """The last update of an epoch averages over the batches that are left."""
    words = ["--grad-accumulation", 3, "--epochs", 1, "--model.dropout", 0]
    lines = train(*words)[1]
    batches = -(
        -len(open_pairs(str(small_world / "db/train"), str(small_world / "regions"), BoxOptions(), 62, ["en"])) // 16
    )
    assert batches % 3 and len(losses(lines)) == -(-batches // 3)
    summed = train(*words, "--optim.accumulation", "sum", "--grad-cache", 5, name="sum")[1]
    norms = [[line["grad_norm"] for line in each if "grad_norm" in line] for each in (lines, summed)]
    assert norms[1][0] == pytest.approx(3 * norms[0][0], rel=1e-3)


def test_captions_of_an_image_are_trained_on_together_and_go_on_bit_for_bit(train, small_world):
    words = ["--captions-together", "--batch-size", 24, "--languages", "en", "de", "--epochs", 2, "--save-every", 3,
             "--keep-checkpoints", 50]  # fmt: skip
    folder, lines = train(*words)
    task = Retrieval(cli.parse(RetrievalConfig, ["--config", str(folder / "config.yaml")]), torch.device("cpu"), SINGLE)
    batches = [batch for group in task._groups(0) for _, batch in group]
    assert sum(map(len, batches)) == len(task.train) > 3 * sum(len(batch.images) for batch in batches)
    assert_goes_on_bit_for_bit(train, words, folder, lines)
    with pytest.raises(BadInput, match="captions_together takes all captions of an image, language_temperature some"):
        train("--captions-together", "--language-temperature", 2)


def test_whose_pairs_are_negatives_reaches_both_trainings(small_world, pretrained, tmp_path):
    for negatives in ("all_ranks", "own_rank"):
        words = ["--out", str(tmp_path), "--negatives", negatives]
        config = cli.parse(RetrievalConfig, ["--config", str(small_world / "finetune.yaml"), *words])
        assert Retrieval(config, torch.device("cpu"), SINGLE).objective.options.negatives == negatives
        config = cli.parse(PretrainConfig, ["--config", str(small_world / "pretrain.yaml"), *words])
        assert Pretraining(config, torch.device("cpu"), SINGLE).objectives["cmr"].options.negatives == negatives


def test_several_databases_are_trained_on_and_mined_as_one(train, small_world):
    words = ["--train-captions", "db/train", "db/test", "--val-regions", "regions", "--epochs", 2]
    folder, _ = train(*words, "--train-regions", "regions", "regions", "--hard-negatives.count", 2,
                      "--hard-negatives.window", "0-30")  # fmt: skip
    count = sum(len(open_pairs(str(small_world / f"db/{name}"), str(small_world / "regions"), BoxOptions(), 62, ["en"]))
                for name in ("train", "test"))  # fmt: skip
    assert json.loads((folder / "run.json").read_text())["train"] == {"captions": count, "images": 32}
    ranking = torch.load(folder / "last" / "training.pt", weights_only=True)["ranking"]
    assert len(ranking) == count and set(ranking.unique().tolist()) & set(range(24, 32))


def test_third_view_is_part_of_an_image_embedding(small_world, pretrained, image_captions, tmp_path):
    third = str(image_captions / "val")
    boxes = BoxOptions()
    paths = str(small_world / "db/val"), str(small_world / "regions")
    data = open_pairs(*paths, boxes, image_captions=third, caption_weight=0.3)
    model = LightningDOT.from_pretrained(pretrained / "last")
    _, mixed, _ = embed_pairs(model, data, "cpu", "fp32")
    _, plain, _ = embed_pairs(model, open_pairs(*paths, boxes), "cpu", "fp32")
    ids = [torch.from_numpy(data.image_captions.input_ids(key))[None] for key in data.images]
    with torch.no_grad():
        captions = torch.cat([model.encode_text(each, torch.ones_like(each)) for each in ids])
    torch.testing.assert_close(mixed, 0.7 * plain + 0.3 * captions, atol=1e-5, rtol=1e-5)

    stamps = []
    for view in (data.image_captions, None, open_image_captions(third, 0.2)):
        source = image_source(model, data.regions, data.images, view)
        build_index(source, tmp_path / "index", Encoding(progress=False))
        stamps.append(EmbeddingIndex(tmp_path / "index").header["data"])
    assert len(set(stamps)) == 3  # an index of another view is never used again

    words = [
        "--checkpoint",
        pretrained / "last",
        "--captions",
        paths[0],
        "--regions",
        paths[1],
        "--image-captions",
        third,
    ]
    words += ["--caption-score-weight", 0.3, "--out", tmp_path / "eval"]
    eval_itm.main(cli.parse(eval_itm.EvalConfig, [str(word) for word in words]))
    found = json.loads((tmp_path / "eval" / "results.json").read_text())["recall"]
    assert found["all"] == pytest.approx(evaluate(model, data, "cpu")["all"])
    index = EmbeddingIndex(tmp_path / "eval" / "img")
    order = [data.images.index(name) for name in index.ids()]
    np.testing.assert_allclose(index.vectors(np.arange(len(index))), mixed[order], atol=1e-5)


def test_a_third_view_in_the_loss_alone_ranks_nothing(train, small_world, image_captions):
    """Neither validation, which then needs no such captions, nor the mining of hard negatives."""
    view = ["--image-captions", "image_captions/train", "--caption-score-weight", 0.5, "--epochs", 2, "--keep-checkpoints", 5]
    view += ["--hard-negatives.count", 1, "--hard-negatives.window", "0-9"]
    folder, lines = train(*view, "--third-view", "loss", name="loss")
    everywhere = train(*view, "--val-image-captions", "image_captions/val", name="everywhere")[1]
    plain = train("--epochs", 1, name="plain")[1]
    first = len(losses(plain))
    assert losses(lines)[:first] == losses(everywhere)[:first] != losses(plain)
    steps = sorted((folder / "checkpoints").iterdir())
    training, val = (open_pairs(str(small_world / "db" / split), str(small_world / "regions"), BoxOptions(),
                                62 if split == "train" else -1, ["en"]) for split in ("train", "val"))  # fmt: skip
    model = LightningDOT.from_pretrained(steps[0])
    found = [line["val/all/AR"] for line in lines if "val/all/AR" in line]
    assert found[0] == pytest.approx(evaluate(model, val, "cpu")["all"]["AR"])
    assert found[0] != next(line["val/all/AR"] for line in everywhere if "val/all/AR" in line)
    negatives = HardNegatives(training, HardNegativeOptions(1, "0-9"))
    negatives.mine(*embed_pairs(model, training, "cpu", "fp32")[:2])
    assert torch.load(steps[1] / "training.pt", weights_only=True)["ranking"].tolist() == negatives.ranking.tolist()


def test_bad_switches_are_one_clear_line(small_world, pretrained, image_captions, train):
    with pytest.raises(BadInput, match="the third view needs both, a weight above 0"):
        train("--caption-score-weight", 0.1)
    view = ["--caption-score-weight", 0.1, "--image-captions", "image_captions/train"]
    with pytest.raises(BadInput, match="window original draws captions and images apart from each other, which a third view"):
        train(*view, "--hard-negatives.count", 2, "--hard-negatives.window", "original")
    with pytest.raises(BadInput, match="third_view loss has no third view in validation"):
        train("--third-view", "loss", "--val-image-captions", "image_captions/val")
    with pytest.raises(BadInput, match="image_captions/val: has no caption of image"):
        train("--caption-score-weight", 0.1, "--image-captions", "image_captions/val")
    with pytest.raises(BadInput, match="distill: scores and weight go together"):
        train("--distill.weight", 1)
    with pytest.raises(BadInput, match="leave nothing to train"):
        train("--model.freeze-txt", "--model.freeze-img")
    with pytest.raises(BadInput, match="24 images in all"):
        train("--hard-negatives.count", 2, "--hard-negatives.window", "22-40")


def test_a_number_of_updates_instead_of_epochs(train):
    """The same updates as in epochs, with the rate's fall to the end of these; the last is validated in mid-epoch."""
    lines = train("--num-steps", 11, "--optim.schedule", "constant", "--optim.warmup-ratio", 0, name="steps")[1]
    plain = train("--epochs", 3, "--optim.schedule", "constant", "--optim.warmup-ratio", 0, name="epochs")[1]
    per_epoch = len(losses(plain)) // 3
    assert len(losses(lines)) == 11 and 11 % per_epoch
    assert losses(lines) == losses(plain)[:11]
    validated = [line["step"] for line in lines if "val/all/AR" in line]
    assert validated == [*range(per_epoch, 11, per_epoch), 11]
    falling = [line["lr"] for line in train("--num-steps", 11, name="falling")[1] if "lr" in line]
    assert falling[-1] == pytest.approx(1e-3 / (11 - 1))
    again = train("--num-steps", 11, name="falling")[1]
    assert [line["lr"] for line in again if "lr" in line] == falling  # a run that is done has nothing left
