"""The towers: against transformers' own models, and what an embedding must not depend on."""

import dataclasses
import json

import pytest
import torch
import transformers

from data.batches.ragged import Layout, pack_images, pack_texts
from data.errors import BadInput
from model import checkpoints
from model.attention import mean_of_sequences
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.transformer import Bert, EncoderConfig

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
KINDS = {
    "bert": (transformers.BertConfig, transformers.BertModel, {"vocab_size": 90}),
    "bert_tanh": (transformers.BertConfig, transformers.BertModel, {"vocab_size": 90, "hidden_act": "gelu_new"}),
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaModel,
        {"vocab_size": 70, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    ),
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaModel,
        {"vocab_size": 80, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    ),
}


def texts(vocab_size, pad, lengths=(7, 1, 12, 4), seed=0):
    """Random ids, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(pad + 1, vocab_size, mask.shape, generator=generator).masked_fill(~mask, pad)
    return ids, mask


def theirs(kind, dropout=0.1, seed=1):
    config_class, model_class, changes = KINDS[kind]
    torch.manual_seed(seed)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    # weights ten times BERT's, so that every part (positions, types, biases) weighs in the result
    model = model_class(config_class(**SIZES, **changes, **rates, initializer_range=0.2)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def ours(folder):
    config, tensors = checkpoints.read_bert(folder)
    model = Bert(config).eval()
    checkpoints.load_strict(model, tensors, str(folder), optional=r"^pooler\.")
    return model


# ---- the encoder is BERT's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_equals_transformers(tmp_path, kind):
    reference = theirs(kind)
    reference.save_pretrained(tmp_path)
    ids, mask = texts(reference.config.vocab_size, reference.config.pad_token_id)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        hidden = ours(tmp_path)(pack_texts(ids, mask))
    torch.testing.assert_close(hidden, expected[mask], atol=1e-5, rtol=1e-5)
    assert expected[mask].std() > 0.5  # else anything would agree


def test_gradients_equal_transformers(tmp_path):
    reference = theirs("bert", dropout=0.0)
    reference.save_pretrained(tmp_path)
    model = ours(tmp_path)
    ids, mask = texts(90, 0)
    weight = torch.randn(32, generator=torch.Generator().manual_seed(3))
    (reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0] @ weight).sum().backward()
    (model(pack_texts(ids, mask), first_only=True) @ weight).sum().backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    compared = 0
    for name, parameter in model.named_parameters():
        if not name.startswith("pooler."):
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4, msg=name)
            compared += 1
    assert compared == len(expected) - 2


def test_training_mode_drops_and_rate_0_does_not():
    sizes = EncoderConfig(vocab_size=50, **SIZES)
    ids, mask = texts(50, 0)
    for hidden, attention in ((0.5, 0.0), (0.0, 0.5), (0.0, 0.0)):
        config = dataclasses.replace(sizes, hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
        model, packed = Bert(config).train(), pack_texts(ids, mask)
        assert torch.equal(model(packed), model(packed)) == (hidden == attention == 0)
        model.eval()
        assert torch.equal(model(packed), model(packed))


def test_a_text_longer_than_the_position_table_is_refused():
    ids, mask = texts(50, 0, lengths=(25,))
    with pytest.raises(BadInput, match="text of 25 tokens does not fit the model's 24 positions; shorten it"):
        Bert(EncoderConfig(vocab_size=50, **SIZES))(pack_texts(ids, mask))
    offset = Bert(EncoderConfig(vocab_size=50, **SIZES, position_offset=2))
    assert offset(pack_texts(ids[:, :22], mask[:, :22])).shape == (22, 32)
    with pytest.raises(BadInput, match="text of 23 tokens does not fit the model's 22 positions"):
        offset(pack_texts(ids[:, :23], mask[:, :23]))


@pytest.mark.parametrize(
    "changes, message",
    [({"hidden_size": 30}, "hidden_size 30 .* num_attention_heads 4"), ({"hidden_act": "swish"}, "hidden_act 'swish'")],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        EncoderConfig(**SIZES | changes)


# ---- embeddings ------------------------------------------------------------------------------------------------------


def small_config(**changes):
    sizes = EncoderConfig(vocab_size=50, **SIZES, initializer_range=0.2)
    values = {"txt": sizes, "img": sizes, "project_dim": 20, "feature_dim": 12, "num_labels": 5, "cls_token_id": 3}
    return LightningDOTConfig(**values | changes)


def small_model(seed=0, **changes):
    torch.manual_seed(seed)
    return LightningDOT(small_config(**changes)).eval()


def images(counts=(6, 1, 10, 3), width=12, seed=0):
    """Random regions, padded on the right with zeros as the batches are."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    features = torch.randn(*mask.shape, width, generator=generator) * mask[..., None]
    positions = torch.rand(*mask.shape, 7, generator=generator) * mask[..., None]
    return features, positions, mask


def longer(tensor, extra, value):
    padding = tensor.new_full((len(tensor), extra, *tensor.shape[2:]), value)
    return torch.cat([tensor, padding], dim=1)


@torch.no_grad()
def test_text_embedding_does_not_depend_on_its_batch():
    model = small_model()
    ids, mask = texts(50, 0)
    together = model.encode_text(ids, mask)
    assert together.shape == (4, 20) and (together[0] - together[1]).abs().max() > 0.1
    for row in range(4):
        length = int(mask[row].sum())
        alone = model.encode_text(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)
    rubbish = longer(ids, 9, 17)  # what stands under the padding must not matter
    torch.testing.assert_close(model.encode_text(rubbish, longer(mask, 9, False)), together, atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model.encode_text(ids[order], mask[order]), together[order], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_image_embedding_depends_on_neither_batch_nor_region_order():
    model = small_model()
    features, positions, mask = images()
    together = model.encode_image(features, positions, mask)
    assert together.shape == (4, 20) and (together[0] - together[1]).abs().max() > 0.1
    for row in range(4):
        count = int(mask[row].sum())
        alone = model.encode_image(*(t[row : row + 1, :count] for t in (features, positions, mask)))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)
    padded = longer(features, 5, 9.0), longer(positions, 5, 9.0), longer(mask, 5, False)
    torch.testing.assert_close(model.encode_image(*padded), together, atol=1e-5, rtol=1e-5)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shuffled = model.encode_image(features[:, order], positions[:, order], mask[:, order])
    torch.testing.assert_close(shuffled, together, atol=1e-5, rtol=1e-5)
    moved = model.encode_image(features, positions[:, order], mask)  # which box a feature has does matter
    assert (moved - together).abs().max() > 0.01


@torch.no_grad()
def test_masks_of_integers_and_half_precision_features_are_taken():
    model = small_model()
    ids, mask = texts(50, 0)
    assert torch.equal(model.encode_text(ids, mask.long()), model.encode_text(ids, mask))
    features, positions, mask = images()
    expected = model.encode_image(features.half().float(), positions, mask)
    embedding = model.encode_image(features.half(), positions, mask.int())
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, expected)


@torch.no_grad()
def test_an_image_without_regions_is_its_cls_alone():
    model = small_model()
    features, positions, mask = images()
    none = model.encode_image(features, positions, torch.zeros_like(mask))
    assert torch.isfinite(none).all()
    torch.testing.assert_close(none[0], none[1])
    torch.testing.assert_close(model.encode_image(features[:, :0], positions[:, :0], mask[:, :0]), none)


@torch.no_grad()
def test_region_embedding_matches_its_formula():
    """LN(LN(W_f f) + LN(W_p p) + type_1), the mask embedding in the place of a masked (zeroed) feature."""
    model = small_model()
    features, positions, mask = images()
    bert = model.img_model.bert
    parts = bert.img_embeddings
    types = bert.embeddings.token_type_embeddings.weight
    masked = torch.zeros_like(mask)
    masked[0, 2] = masked[2, 7] = True
    features[masked] = 0
    hidden = parts(features.flatten(0, 1), positions.flatten(0, 1), types[1], masked.flatten()).unflatten(0, mask.shape)
    for row, column in [(0, 0), (0, 2), (2, 7)]:
        f = parts.mask_embedding.weight[1] if masked[row, column] else features[row, column]
        f = parts.img_layer_norm(parts.img_linear.weight @ f + parts.img_linear.bias)
        p = parts.pos_layer_norm(parts.pos_linear.weight @ positions[row, column] + parts.pos_linear.bias)
        torch.testing.assert_close(hidden[row, column], parts.LayerNorm(f + p + types[1]), atol=1e-5, rtol=1e-5)
    sequence = bert(pack_images(features, positions, mask), masked[mask])
    cls = bert.embeddings.of_tokens(torch.tensor([3]), torch.tensor([0]))
    each = [torch.cat([cls, hidden[row][mask[row]]]) for row in range(4)]
    expected = bert.encoder(torch.cat(each), Layout.of([len(x) for x in each]))
    torch.testing.assert_close(sequence, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_projection_the_embedding_is_position_0():
    model = small_model(project_dim=0)
    assert model.config.embedding_dim == 32
    assert not [name for name in model.state_dict() if "encode_proj" in name]
    ids, mask = texts(50, 0)
    torch.testing.assert_close(model.encode_text(ids, mask), model.txt_model.bert(pack_texts(ids, mask), first_only=True))
    assert small_model(project_dim=20).config.embedding_dim == 20
    with pytest.raises(BadInput, match=r"project_dim 0 .* text has hidden_size 16, image 32"):
        small_model(project_dim=0, txt=EncoderConfig(vocab_size=50, **SIZES | {"hidden_size": 16}))


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_position_0_alone_is_position_0_of_all(layers):
    model = small_model(txt=EncoderConfig(vocab_size=50, **SIZES | {"num_hidden_layers": layers}))
    ids, mask = texts(50, 0)
    packed = pack_texts(ids, mask)
    alone, whole = (model.txt_model.bert(packed, first_only=first) for first in (True, False))
    assert alone.shape == (len(ids), 32) and len(whole) == mask.sum()
    torch.testing.assert_close(alone, whole[packed.layout.firsts()], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_towers_may_differ_in_width():
    model = small_model(txt=EncoderConfig(vocab_size=50, **SIZES | {"hidden_size": 16}))
    ids, mask = texts(50, 0)
    assert model.encode_text(ids, mask).shape == model.encode_image(*images()).shape == (4, 20)


def test_scores_of_random_towers_have_unit_variance():
    base = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    scores = []
    for seed in range(6):
        torch.manual_seed(seed)
        sizes = EncoderConfig(vocab_size=50, **base)
        tower = LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, project_dim=16, feature_dim=12)).txt_model
        first, second = tower.embed(torch.randn(64, 128)), tower.embed(torch.randn(64, 128))
        other = LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, project_dim=16, feature_dim=12)).txt_model
        scores.append(first.detach() @ other.embed(torch.randn(64, 128)).detach().T)
        assert torch.isfinite(first @ second.T).all()
    spread = torch.stack(scores).std().item()
    assert 0.8 < spread < 1.25, spread


# ---- save and load ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_is_bit_identical(tmp_path):
    model = small_model()
    assert model.fingerprint is None
    model.save_pretrained(tmp_path / "a")
    again = LightningDOT.from_pretrained(tmp_path / "a")
    assert not again.training and again.config == model.config
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    ids, mask = texts(50, 0)
    assert torch.equal(again.encode_text(ids, mask), model.encode_text(ids, mask))
    assert torch.equal(again.encode_image(*images()), model.encode_image(*images()))
    assert again.fingerprint == model.fingerprint and len(model.fingerprint) == 16
    again.save_pretrained(str(tmp_path / "b"))
    assert again.fingerprint == model.fingerprint
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["config.json", "model.safetensors"]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_fingerprint_changes_with_one_weight(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "a")
    before = model.fingerprint
    with torch.no_grad():
        model.img_model.encode_proj[0].bias[3] += 1e-6
    model.save_pretrained(tmp_path / "b")
    assert model.fingerprint != before
    assert LightningDOT.from_pretrained(tmp_path / "b").fingerprint == model.fingerprint


def test_dropout_override_reaches_the_modules(tmp_path):
    model = small_model()
    assert model.config.txt.hidden_dropout_prob == 0.1
    model.save_pretrained(tmp_path)
    ids, mask = texts(50, 0)
    for rate in (None, 0.0, 0.4):
        loaded = LightningDOT.from_pretrained(tmp_path, dropout=rate).train()
        rates = {m.p for m in loaded.modules() if isinstance(m, torch.nn.Dropout)}
        rates |= {m.dropout_prob for m in loaded.modules() if hasattr(m, "dropout_prob")}
        assert rates == {0.1 if rate is None else rate}
        for encode, inputs in ((loaded.encode_text, (ids, mask)), (loaded.encode_image, images())):
            assert torch.equal(encode(*inputs), encode(*inputs)) == (rate == 0.0)


def test_loading_lists_every_key_that_does_not_fit(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    tensors = checkpoints.read_tensors(tmp_path / "model.safetensors")
    del tensors["txt_model.bert.embeddings.LayerNorm.bias"]
    del tensors["img_model.bert.img_embeddings.pos_linear.weight"]
    tensors["txt_model.bert.extra.weight"] = torch.zeros(2)
    tensors["img_model.encode_proj.3.weight"] = torch.zeros(20, 63)
    config = json.loads((tmp_path / "config.json").read_text())
    checkpoints.write(tmp_path, tensors, config)
    with pytest.raises(BadInput) as error:
        LightningDOT.from_pretrained(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}: 4 keys do not fit the model: ")
    for part in (
        "missing txt_model.bert.embeddings.LayerNorm.bias",
        "missing img_model.bert.img_embeddings.pos_linear.weight",
        "unexpected txt_model.bert.extra.weight",
        "img_model.encode_proj.3.weight has shape [20, 63], expected [20, 64]",
    ):
        assert part in message


def test_mean_pooling_is_the_mean_of_a_sequence_without_its_padding():
    model = small_model(pooling="mean").double()
    ids, mask = texts(50, 0)
    words, found = model.txt_model, model.encode_text(ids, mask)
    regions = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    features, positions = torch.randn(2, 5, 12, dtype=torch.double), torch.rand(2, 5, 7, dtype=torch.double)
    images = model.encode_image(features, positions, regions)
    for n, length in enumerate(mask.sum(1).tolist()):
        alone = words.bert(pack_texts(ids[n : n + 1, :length], mask[n : n + 1, :length]))
        torch.testing.assert_close(found[n], words.embed(alone.mean(0)), check_dtype=False)
    for n, length in enumerate(regions.sum(1).tolist()):
        alone = model.img_model.bert(pack_images(features[n : n + 1, :length], positions[n : n + 1, :length], regions[n : n + 1, :length]))
        assert len(alone) == 1 + length  # with [CLS]
        torch.testing.assert_close(images[n], model.img_model.embed(alone.mean(0)), check_dtype=False)
    with pytest.raises(BadInput, match="pooling 'max' is neither cls nor mean"):
        small_model(pooling="max")


def test_the_gradient_of_mean_pooling_is_that_of_the_loop():
    layout = Layout.of([3, 1, 4])
    x = torch.randn(8, 5, requires_grad=True)
    weight = torch.randn(3, 5)
    (mean_of_sequences(x, layout) * weight).sum().backward()
    expected = torch.cat([(weight[n] / length).expand(length, 5) for n, length in enumerate((3, 1, 4))])
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    "odd",
    [{"layer_norm_eps": float("nan")}, {"layer_norm_eps": -1.0}, {"initializer_range": float("nan")}, {"initializer_range": -0.1},
     {"initializer_range": float("inf")}, {"position_offset": -1}, {"position_offset": 80}],
)  # fmt: skip
def test_sizes_that_make_no_numbers_are_refused(odd):
    values = dataclasses.asdict(small_config().img) | {"max_position_embeddings": 80}
    EncoderConfig.from_dict(values)
    with pytest.raises(BadInput, match=rf"{next(iter(odd))} must be"):
        EncoderConfig.from_dict(values | odd)


def test_a_word_that_starts_images_and_is_none_is_refused():
    model = small_model(cls_token_id=small_config().img.vocab_size)
    with pytest.raises(BadInput, match=r"cls_token_id is .*, and the image tower has .* words"):
        model.encode_image(*images())
