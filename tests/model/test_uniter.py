"""The re-ranker: UNITER's files under both prefixes, scores against a plain computation of single pairs, starts, refusals."""

import json
import re

import pytest
import torch
import torch.nn.functional as F

from configs import cli
from data.batches.batch import Batch, ranked_pairs
from data.batches.pairs import open_pairs
from data.batches.ragged import Joined, pack_images, pack_texts
from data.errors import BadInput
from data.regions.db import BoxOptions
from data.storage.json_digest import with_digest
from data.storage.text_files import write_json
from model.bi_encoder import LightningDOT
from model.initial import settle_long_captions
from model.original import files as conversion
from model.transformer import EncoderConfig
from model.uniter import (
    Reranker,
    RerankerModelOptions,
    UniterConfig,
    build_reranker,
    check_reranker,
    forward_ranking,
)
from tests.original_weights import PRETRAINED, RETRIEVAL, random_tensors, small_shapes, tie


def uniter_file(path, prefix="bert.", shapes=None):
    """A UNITER as torch.save writes it; weights of a size that keeps attention and scores lively."""
    shapes = shapes or small_shapes(RETRIEVAL)
    tensors = {n.replace("bert.", prefix, 1): 0.2 * t for n, t in random_tensors(shapes, seed=3).items()}
    torch.save(tensors, path)
    return tensors


def pretrained_file(path):
    """A UNITER with pre-training heads, and no rank_output."""
    shapes = {n.replace("bert.img_model.bert.", "uniter."): s for n, s in small_shapes(PRETRAINED).items()
              if "txt_model" not in n and "encode_proj" not in n}  # fmt: skip
    torch.save(tie({n: 0.2 * t for n, t in random_tensors(shapes, seed=4).items()}), path)


def batch(sizes, seed=0):
    """Texts of L words and images of R regions, padded: ``sizes`` [(L, R), ...]."""
    generator = torch.Generator().manual_seed(seed)
    txt, img = (torch.tensor(each) for each in zip(*sizes))
    attention_mask = torch.arange(int(txt.max())) < txt[:, None]
    region_mask = torch.arange(int(img.max())) < img[:, None]
    ids = torch.randint(6, 150, attention_mask.shape, generator=generator) * attention_mask
    features = torch.randn(*region_mask.shape, 20, generator=generator) * region_mask[..., None]
    positions = torch.rand(*region_mask.shape, 7, generator=generator) * region_mask[..., None]
    return ids, attention_mask, features.half(), positions, region_mask


def plain_layers(weights):
    """Linear layers and layer norms by name, from the tensors of a file."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    return linear, norm


def plain_hidden(weights, ids, features, positions):
    """One pair without padding, from the tensors of the file: [L], [R,20], [R,7] → [L+R,64]. Heads are 64 wide."""
    linear, norm = plain_layers(weights)
    types = weights["embeddings.token_type_embeddings.weight"]
    words = weights["embeddings.word_embeddings.weight"][ids] + types[0]
    words = norm("embeddings.LayerNorm", words + weights["embeddings.position_embeddings.weight"][: len(ids)])
    regions = norm("img_embeddings.img_layer_norm", linear("img_embeddings.img_linear", features))
    regions = regions + norm("img_embeddings.pos_layer_norm", linear("img_embeddings.pos_linear", positions)) + types[1]
    x = torch.cat([words, norm("img_embeddings.LayerNorm", regions)])
    for n in range(2):
        layer = f"encoder.layer.{n}"
        q, k, v = (linear(f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
        attended = (q @ k.T / 64**0.5).softmax(dim=1) @ v
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", attended))
        between = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", between))
    return x


def plain_score(weights, ids, features, positions, head="rank_output"):
    """What a head says of one pair, as of `plain_hidden`."""
    linear, _ = plain_layers(weights)
    said = linear(head, linear("pooler.dense", plain_hidden(weights, ids, features, positions)[0]).tanh())
    return said[0] if head == "rank_output" else said


@pytest.mark.parametrize("prefix", ["bert.", "uniter."])
def test_scores_of_a_uniter_file_against_single_pairs(tmp_path, prefix):
    tensors = uniter_file(tmp_path / "uniter.pt", prefix)
    conversion.to_ours(tmp_path / "uniter.pt", tmp_path / "uniter")
    reranker = Reranker.from_pretrained(tmp_path / "uniter")
    sizes = [(9, 2), (4, 7), (3, 3), (9, 7), (5, 1)]
    ids, attention_mask, features, positions, region_mask = inputs = batch(sizes)
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    expected = [
        plain_score(weights, ids[n, :txt], features[n, :img].float(), positions[n, :img])
        for n, (txt, img) in enumerate(sizes)
    ]
    with torch.no_grad():
        found = reranker(*inputs)
    assert found.std() > 0.02
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)

    texts, images = torch.tensor([3, 0, 3, 1]), torch.tensor([1, 2, 0, 4])
    rows = ids[texts], attention_mask[texts], features[images], positions[images], region_mask[images]
    with torch.no_grad():
        torch.testing.assert_close(reranker(*inputs, texts, images), reranker(*rows), atol=1e-6, rtol=0)


def test_a_re_ranker_is_written_as_a_uniter_and_read_again(tmp_path):
    reranker = Reranker(UniterConfig(EncoderConfig(150, 64, 2, 1, 48, max_position_embeddings=24), 20, 7)).eval()
    reranker.save_pretrained(tmp_path / "ours")
    again = Reranker.from_pretrained(tmp_path / "ours")
    assert again.config == reranker.config and again.fingerprint == reranker.fingerprint
    inputs = batch([(5, 3), (2, 6)])
    with torch.no_grad():
        assert torch.equal(again(*inputs), reranker(*inputs))
    conversion.to_original(tmp_path / "ours", tmp_path / "uniter.pt")
    file = torch.load(tmp_path / "uniter.pt", weights_only=True)
    assert {n: list(t.shape) for n, t in file.items()} == small_shapes(RETRIEVAL)


def test_ranking_loss_against_a_loop():
    reranker = Reranker(UniterConfig(EncoderConfig(150, 64, 2, 1, 48, max_position_embeddings=24, initializer_range=0.2), 20, 7))
    reranker.eval()
    inputs = batch([(5, 3), (4, 2), (6, 6), (3, 5), (7, 4), (5, 5)])  # 2 pairs, then 2 hard negatives of each
    packed = pack_texts(*inputs[:2]), pack_images(*inputs[2:])
    joined = Joined.of(*packed, *ranked_pairs(6, 2))
    data = Batch(*packed, image_ids=torch.arange(6), txt_ids=[""] * 6, img_keys=[""] * 6, num_pairs=2, joined=joined)

    def score(text, image):
        rows = [each[text : text + 1] for each in inputs[:2]] + [each[image : image + 1] for each in inputs[2:]]
        return reranker(*rows).sigmoid()[0]

    found = forward_ranking(reranker, data, 0.2)
    for pair, others in ((0, (2, 3)), (1, (4, 5))):
        wrong = [score(pair, other) for other in others] + [score(other, pair) for other in others]
        expected = sum((0.2 + each - score(pair, pair)).clamp(min=0) for each in wrong) / 4
        torch.testing.assert_close(found[pair], expected, atol=1e-6, rtol=1e-5)

    data.num_pairs, data.joined = 0, Joined.of(*packed, *ranked_pairs(6, 0))  # a rank that has nothing left: no loss, and gradients all the same
    (forward_ranking(reranker, data, 0.2).sum() / 1).backward()
    assert reranker.bert.embeddings.word_embeddings.weight.grad.abs().sum() == 0


def test_a_pretrained_uniter_scores_by_its_match_head(tmp_path, capsys):
    """Zero-shot: the order of the softmax probability of class 1, pair by pair without padding."""
    pretrained_file(tmp_path / "uniter.pt")
    conversion.to_ours(tmp_path / "uniter.pt", tmp_path / "uniter")
    reranker = Reranker.from_pretrained(tmp_path / "uniter")
    assert reranker.head == "itm_output" and not reranker.training
    assert f"{tmp_path}/uniter: the re-ranker scores by itm_output, zero-shot" in capsys.readouterr().err
    file = torch.load(tmp_path / "uniter.pt", weights_only=True)
    weights = {name.removeprefix("uniter."): tensor for name, tensor in file.items()}
    sizes = [(9, 2), (4, 7), (3, 3), (9, 7), (5, 1)]
    ids, _, features, positions, _ = inputs = batch(sizes)
    logits = torch.stack(
        [
            plain_score(weights, ids[n, :txt], features[n, :img].float(), positions[n, :img], "itm_output")
            for n, (txt, img) in enumerate(sizes)
        ]
    )
    with torch.no_grad():
        found = reranker(*inputs)
    torch.testing.assert_close(found.sigmoid(), logits.softmax(dim=1)[:, 1], atol=1e-5, rtol=0)
    assert found.std() > 0.02 and found.argsort().tolist() == logits.softmax(dim=1)[:, 1].argsort().tolist()
    assert found.argsort().tolist() != logits[:, 1].argsort().tolist(), "row 1 alone would rank otherwise"

    uniter_file(tmp_path / "tuned.pt")  # has both heads
    conversion.to_ours(tmp_path / "tuned.pt", tmp_path / "tuned")
    tuned = Reranker.from_pretrained(tmp_path / "tuned")
    assert tuned.head == "rank_output" and "by rank_output, fine-tuned" in tuned.describe_head()


def test_a_uniter_without_heads_cannot_rank(tmp_path):
    shapes = {name: shape for name, shape in small_shapes(RETRIEVAL).items() if name.startswith("bert.")}
    uniter_file(tmp_path / "bare.pt", shapes=shapes)
    conversion.to_ours(tmp_path / "bare.pt", tmp_path / "bare")
    with pytest.raises(BadInput, match=r"bare/original_extra.safetensors: no rank_output.weight, and no itm_output in its place"):
        Reranker.from_pretrained(tmp_path / "bare")


def test_a_pretrained_uniter_starts_from_its_match(tmp_path):
    pretrained_file(tmp_path / "uniter.pt")
    conversion.to_ours(tmp_path / "uniter.pt", tmp_path / "uniter")
    reranker, origin = Reranker.start_from(tmp_path / "uniter", dropout=0.0)
    file = torch.load(tmp_path / "uniter.pt", weights_only=True)
    assert torch.equal(reranker.rank_output.weight[0], file["itm_output.weight"][1])
    assert torch.equal(reranker.rank_output.bias[0], file["itm_output.bias"][1])
    assert "itm_output" in origin and reranker.config.encoder.hidden_dropout_prob == 0

    uniter_file(tmp_path / "tuned.pt")
    conversion.to_ours(tmp_path / "tuned.pt", tmp_path / "tuned")
    reranker, origin = Reranker.start_from(tmp_path / "tuned")
    assert torch.equal(reranker.rank_output.weight, torch.load(tmp_path / "tuned.pt", weights_only=True)["rank_output.weight"])


def test_what_is_no_re_ranker_is_one_clear_line(tmp_path, pretrained):
    with pytest.raises(BadInput, match=r"absent/config.json: no such file"):
        Reranker.from_pretrained(tmp_path / "absent")
    with pytest.raises(BadInput, match=r"checkpoints/step-\d+/config.json: not a UNITER \(model_type 'lightningdot'\).*--model uniter"):
        Reranker.from_pretrained(pretrained / "last")
    reranker = Reranker(UniterConfig(EncoderConfig(150, 64, 2, 1, 48, max_position_embeddings=24), 20, 7))
    reranker.save_pretrained(tmp_path / "ours")
    values = json.loads((tmp_path / "ours/config.json").read_text())
    write_json(tmp_path / "ours/config.json", with_digest(values | {"num_hidden_layers": 1, "feature_dim": 21}, without=["fingerprint"]))
    with pytest.raises(BadInput, match=r"ours: \d+ keys do not fit the model: unexpected bert.encoder.layer.1.*\[64, 20\], expected"):
        Reranker.from_pretrained(tmp_path / "ours")


# ---- starts on the data of the small world ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(small_world):
    return open_pairs(str(small_world / "db/train"), str(small_world / "regions"), BoxOptions(), languages=["en"])


def test_starts_from_the_towers(pretrained, pairs):
    reranker, origin = build_reranker(RerankerModelOptions(init=str(pretrained / "last"), dropout=0.25), pairs)
    towers = LightningDOT.from_pretrained(pretrained / "last").state_dict()
    for name, tensor in reranker.bert.state_dict().items():
        tower = "img" if name.startswith("img_embeddings.") else "txt"
        assert torch.equal(tensor, towers[f"{tower}_model.bert.{name}"]), name
    assert reranker.training and reranker.bert.embeddings.dropout.p == 0.25 and "text tower" in origin


def test_starts_from_a_bert_folder_and_from_nothing(tmp_path, pairs):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    first, _ = build_reranker(RerankerModelOptions(max_position_embeddings=64, **sizes), pairs)
    bert = {n: t for n, t in first.bert.state_dict().items() if not n.startswith(("img_embeddings.", "pooler."))}
    (tmp_path / "bert").mkdir()
    torch.save({f"bert.{name}": tensor for name, tensor in bert.items()}, tmp_path / "bert/pytorch_model.bin")
    values = sizes | {"model_type": "bert", "max_position_embeddings": 64, "vocab_size": first.config.encoder.vocab_size}
    (tmp_path / "bert/config.json").write_text(json.dumps(values))
    second, origin = build_reranker(RerankerModelOptions(init=str(tmp_path / "bert")), pairs)
    assert all(torch.equal(second.bert.state_dict()[name], tensor) for name, tensor in bert.items())
    assert second.config.feature_dim == pairs.regions.feature_dim and "region embeddings and heads: random" in origin


def test_another_vocabulary_width_or_length_is_refused(tmp_path, pairs, small_world):
    sizes = EncoderConfig(600, 32, 1, 2, 48, max_position_embeddings=64)
    check_reranker(UniterConfig(sizes, 32, 11), "./reranker", pairs)
    with pytest.raises(BadInput, match=r"region features are 32 wide, but ./reranker was made for feature_dim 20"):
        check_reranker(UniterConfig(sizes, 20, 11), "./reranker", pairs)
    with pytest.raises(BadInput, match="reranker: vocab_size 150 is smaller than the captions' vocabulary"):
        check_reranker(UniterConfig(EncoderConfig(150, 32, 1, 2, 48), 32, 11), "./reranker", pairs)
    with pytest.raises(BadInput, match=r"captions are longer than the model's 4 positions .*long_captions truncate"):
        settle_long_captions(pairs, 4, "refuse")
    (tmp_path / "tokenizer").mkdir()
    text = (small_world / "db/train/tokenizer/tokenizer.json").read_text()
    words = json.loads(text)
    words["model"]["vocab"] = {word[::-1]: number for word, number in words["model"]["vocab"].items()}
    (tmp_path / "tokenizer/tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(BadInput, match=r"tokenizer is not the tokenizer of \S+: their vocabularies differ"):
        check_reranker(UniterConfig(sizes, 32, 11), str(tmp_path), pairs)


def test_model_uniter_on_the_command_line():
    import pretrain
    import train_itm
    from optim.tasks.reranking import RerankingConfig
    from optim.tasks.retrieval import RetrievalConfig

    fixed = ["--out", "x", "--train-captions", "x", "--train-regions", "x", "--val-captions", "x"]
    mining = ["--reranker.miner", "x", "--hard-negatives.count", "2", "--hard-negatives.from-epoch", "1"]

    def parse(*words):
        return cli.parse(train_itm.CONFIGS, [*fixed, *words])

    for words in (["--model", "uniter"], ["--model=uniter"], ["--model.kind", "uniter"]):
        config = parse(*words, *mining)
        assert isinstance(config, RerankingConfig) and config.model.kind == "uniter"
    assert isinstance(parse("--model", "lightningdot"), RetrievalConfig) and isinstance(parse(), RetrievalConfig)
    for words, message in (
        (["--model", "uniter"], "reranker.miner: give the LightningDOT checkpoint"),
        (mining, "unknown option --reranker.miner"),
        (["--reranker.margin", "0.3"], "unknown option --reranker.margin"),
        (["--model", "uniter", *mining[:2], "--hard-negatives.count", "0"], "model.kind uniter learns from hard negatives: give hard_negatives.count"),
        (["--model", "uniter", *mining, "--grad-cache", "4"], "unknown option --grad-cache"),
        (["--model", "uniter", *mining, "--siblings", "keep"], "unknown option --siblings"),
        (["--model", "uniter", *mining, "--model.project-dim", "7"], "unknown option --model.project-dim"),
        (["--model", "uniter", *mining, "--model.freeze-txt"], "unknown option --model.freeze-txt"),
        (["--model", "uniter", *mining, "--reranker.top", "0"], "reranker: top 0 must be at least 1"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            parse(*words)
    with pytest.raises(BadInput, match=r"model\.kind"):
        cli.parse(pretrain.PretrainConfig, ["--out", "x", "--model.kind", "uniter"])
