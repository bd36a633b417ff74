"""Checkpoints of the original LightningDOT, of UNITER and of Hugging Face, turned into folders of ours and back.

    finetuned    {model_dict, optimizer_dict, scheduler_dict, offset, epoch, encoder_params}, or model_dict alone: the towers
    pretrained   a bare state dict: the towers with the prefix bert., and the heads
    uniter       a bare state dict: one encoder with the prefix uniter. (pre-training) or bert. (fine-tuning), and heads
    huggingface  a folder

Towers become a LightningDOT folder, one encoder becomes an encoder folder, which ``model.img_init`` and ``model.txt_init``
take. What our models have no use for goes to ``original_extra.safetensors``, and how the file was laid out to
``config.json``, so that the way back gives the same names, shapes, types and values.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.atomic import atomic_file, atomic_folder
from data.captions import load_tokenizer
from data.errors import BadInput
from model import checkpoints
from model.bi_encoder import ImageBert, LightningDOT, LightningDOTConfig
from model.objectives import PretrainingHeads
from model.transformer import Bert, EncoderConfig

EXTRA = "original_extra.safetensors"
_BESIDE_MODEL = ("optimizer_dict", "scheduler_dict", "offset", "epoch", "encoder_params")
_BUFFER = re.compile(r"\.position_ids$")  # constants that some versions of transformers stored
# Where an encoder's sizes can be read: name of a tensor, and its axis.
_SIZES = {
    "vocab_size": (r"embeddings\.word_embeddings\.weight", 0),
    "hidden_size": (r".*\.LayerNorm\.(weight|bias)", 0),
    "intermediate_size": (r"encoder\.layer\.\d+\.intermediate\.dense\.(weight|bias)", 0),
    "max_position_embeddings": (r"embeddings\.position_embeddings\.weight", 0),
    "type_vocab_size": (r"embeddings\.token_type_embeddings\.weight", 0),
}
_FEATURE_DIM = (r".*\.img_embeddings\.(img_linear|mask_embedding)\.weight", 1)
_NUM_LABELS = (r"region_classifier\.net\.3\.(weight|bias)", 0)
# What tensors cannot tell.
_UNSEEN = ("num_attention_heads", "hidden_act", "layer_norm_eps")


@dataclass
class Folder:
    """What a folder of ours will hold.

    Attributes:
        config: content of config.json
        tensors, heads, extra: content of model.safetensors, heads.safetensors and original_extra.safetensors
        vocab_size: words that a tokenizer beside it may have
        notes: lines for the user: what was found, assumed, and left out
    """

    config: dict
    tensors: dict[str, Tensor]
    heads: dict[str, Tensor]
    extra: dict[str, Tensor]
    vocab_size: int
    notes: list[str] = field(default_factory=list)


@dataclass
class File:
    """A .pt file of the original.

    Attributes:
        kind: finetuned, pretrained or uniter
        module: "module." where DataParallel put it before every name, else ""
        prefix: of encoders and towers: "", "bert." or "uniter."
        tensors: by their names without ``module``
        beside: what stood beside ``model_dict``; None for a bare state dict
    """

    kind: str
    module: str
    prefix: str
    tensors: dict[str, Tensor]
    beside: dict[str, Any] | None


def to_ours(
    source: str | Path,
    destination: str | Path,
    text_config: str | Path | None = None,
    image_config: str | Path | None = None,
    cls_token_id: int | None = None,
    tokenizer: str | Path | None = None,
) -> list[str]:
    """Write the folder ``destination`` from a .pt file of the original, or from a Hugging Face folder.

    Args:
        text_config, image_config: JSON files with what tensors cannot tell: heads, activation, epsilon
        cls_token_id: the word that starts an image sequence; BERT's 101 by default
        tokenizer: folder or vocab.txt to put beside the weights

    Returns: lines that say what was found, assumed, and left out.

    Raises:
        BadInput: a file with more than tensors and plain values in it; a key missing, unexpected, mis-shaped, or not
            equal to what it is tied to (all are listed); sizes that contradict a JSON file.
    """
    source, destination = Path(source), Path(destination)
    text, image = (Path(path) if path else None for path in (text_config, image_config))
    _must_be_new(destination)
    if source.is_dir():
        _refuse(source, "a Hugging Face folder", text_config, image_config, cls_token_id)
        result = _from_huggingface(source)
    else:
        file = _read(source)
        if file.kind == "uniter":
            _refuse(source, "one encoder, of UNITER", text_config, None, cls_token_id)
            result = _from_uniter(file, source, image)
        else:
            cls = 101 if cls_token_id is None else cls_token_id
            result = _from_towers(file, source, text, image, cls)
    words = load_tokenizer(tokenizer) if tokenizer else None
    if words is not None and len(words) > result.vocab_size:
        raise BadInput(
            f"{tokenizer}: has {len(words)} words, the word embeddings in {source} are for {result.vocab_size}; give the "
            "tokenizer that the model was trained with"
        )
    with atomic_folder(destination) as folder:
        checkpoints.write(folder, _separate(result.tensors), result.config)
        for name, tensors in (("heads.safetensors", result.heads), (EXTRA, result.extra)):
            if tensors:
                checkpoints.save_tensors(_separate(tensors), folder / name)
        if words is not None:
            words.save_pretrained(folder / "tokenizer")
    return result.notes


def to_original(source: str | Path, destination: str | Path) -> list[str]:
    """Write what ``to_ours`` made the folder ``source`` from, or the format of the original that a training run of ours
    corresponds to: pretrained where there are heads, else finetuned.

    Returns and raises: as ``to_ours``.
    """
    source, destination = Path(source), Path(destination)
    _must_be_new(destination)
    values = checkpoints.read_json(source / "config.json")
    record = values.get("original", {})
    own = checkpoints.read_tensors(source / "model.safetensors")
    extra = checkpoints.read_tensors(source / EXTRA) if (source / EXTRA).is_file() else {}
    if "txt" not in values and "kind" not in record:
        raise BadInput(f"{source}/config.json: neither a LightningDOT checkpoint nor a converted encoder")
    if record.get("kind") == "huggingface":
        config = checkpoints.bert_config(values, f"{source}/config.json")
        checkpoints.check_keys(_bert_keys(config), own, str(source), optional=r"^pooler\.")
        with atomic_folder(destination) as folder:
            checkpoints.write(folder, {record["prefix"] + n: t for n, t in own.items()} | extra, record["config"])
        return [f"{destination}: a Hugging Face folder"]

    notes = []
    if "txt" in values:
        config = LightningDOTConfig.from_dict(values)
        heads = source / "heads.safetensors"
        kind, prefix = ("pretrained", "bert.") if heads.is_file() else ("finetuned", "")
        if kind == "pretrained":
            extra = checkpoints.read_tensors(heads) | extra
            if not config.num_labels:
                raise BadInput(
                    f"{source}: pre-trained without soft labels; the original's format always has a region classifier. "
                    "Without heads.safetensors the towers alone are written"
                )
            if "itm_output.weight" not in extra:
                extra |= {name: torch.zeros(t.shape) for name, t in _linear("itm_output", 2, config.img).items()}
                notes.append(
                    "itm_output: zeros; the original's file has this head, and none of our objectives trains it"
                )
    else:
        kind, prefix = "uniter", record["prefix"]
        sizes = checkpoints.bert_config(values, f"{source}/config.json")
        config = LightningDOTConfig(sizes, sizes, 0, values["feature_dim"], values["num_labels"])
    tensors = {prefix + name: tensor for name, tensor in own.items()} | extra
    tensors |= {name: tensors[owner] for name, owner in _tied(kind, prefix, tensors).items() if owner in tensors}
    _check(kind, prefix, tensors, config, source)
    tensors = {record.get("module", "") + name: tensor for name, tensor in tensors.items()}
    beside = record.get("beside", {name: {} for name in _BESIDE_MODEL} if kind == "finetuned" else None)
    content = tensors if beside is None else {"model_dict": tensors, **beside}
    with atomic_file(destination) as path:
        try:
            torch.save(content, path)
        except RuntimeError as error:  # what torch makes of a full disk
            raise BadInput(f"{destination}: cannot be written: {error}; is the disk full?") from error
    return [f"{destination}: {kind}, {len(tensors)} tensors", *notes]


def _must_be_new(path: Path) -> None:
    if path.exists():
        raise BadInput(f"{path}: already there; choose another destination, or remove it")


def _refuse(source: Path, what: str, *settings) -> None:
    names = ("--text-config", "--image-config", "--cls-token-id")
    given = [name for name, value in zip(names, settings) if value is not None]
    if given:
        raise BadInput(f"{source} is {what}, where {' and '.join(given)} has no place; leave it out")


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors takes no tensors that share memory, as the tied ones of a .pt file do."""
    seen, apart = set(), {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return apart


# ---- the original's files --------------------------------------------------------------------------------------------


def _read(path: Path) -> File:
    content, beside = checkpoints.read_pickle(path), None
    if isinstance(content, dict) and "model_dict" in content:
        beside = {name: value for name, value in content.items() if name != "model_dict"}
        content = content["model_dict"]
        unknown = [name for name in beside if name not in _BESIDE_MODEL]
        if unknown:
            raise BadInput(f"{path}: unexpected beside model_dict: {', '.join(map(str, unknown))}")
    if not isinstance(content, dict) or not content:
        raise BadInput(f"{path}: expected a state dict (names to tensors), found {type(content).__name__}")
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise BadInput(f"{path}: expected a state dict (names to tensors); no tensors are {', '.join(others)}")
    module = "module." if all(name.startswith("module.") for name in content) else ""
    tensors = {name[len(module) :]: tensor for name, tensor in content.items()}
    third = [name for name in tensors if re.match(r"(bert\.)?(?!img_|txt_)\w+_model\.", name)]
    if third:
        raise BadInput(
            f"{path}: has a third tower ({third[0]}, ...), of seperate_caption_encoder; here captions of images go through "
            "the text tower, so that it cannot be converted"
        )
    for kind, prefix, parts in (
        ("finetuned", "", ("img_model.", "txt_model.")),
        ("pretrained", "bert.", ("img_model.", "txt_model.")),
        ("uniter", "uniter.", ("embeddings.", "img_embeddings.", "encoder.", "pooler.")),
        ("uniter", "bert.", ("embeddings.", "img_embeddings.", "encoder.", "pooler.")),
    ):
        if any(name.startswith(tuple(prefix + part for part in parts)) for name in tensors):
            return File(kind, module, prefix, tensors, beside)
    raise BadInput(
        f"{path}: neither LightningDOT's nor UNITER's: no name starts with img_model., bert.img_model., uniter. or bert.; "
        f"the first is {next(iter(tensors))}"
    )


def _linear(name: str, rows: int, config: EncoderConfig) -> dict[str, Tensor]:
    shapes = {"weight": (rows, config.hidden_size), "bias": (rows,)}
    return {f"{name}.{part}": torch.empty(shape, device="meta") for part, shape in shapes.items()}


def _bert_keys(config: EncoderConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Bert(config).state_dict()


def _tied(kind: str, prefix: str, names) -> dict[str, str]:
    """Second names of one tensor in a file with pre-training heads, and whose they are."""
    tower = f"{prefix}img_model.bert." if kind == "pretrained" else prefix
    if not any(name.startswith(("cls.", "feat_regress.", "region_classifier.")) for name in names):
        return {}
    return {
        "cls.predictions.decoder.weight": f"{tower}embeddings.word_embeddings.weight",
        "feat_regress.weight": f"{tower}img_embeddings.img_linear.weight",
    }


def _check(kind: str, prefix: str, tensors: dict[str, Tensor], config: LightningDOTConfig, source: Path) -> None:
    """Every name and shape of a file of this kind and size, and that tied tensors are equal."""
    tied = _tied(kind, prefix, tensors)
    try:
        with torch.device("meta"):
            model = ImageBert(config) if kind == "uniter" else LightningDOT(config)
            expected = {prefix + name: tensor for name, tensor in model.state_dict().items()}
            if kind == "pretrained" or tied:
                expected |= PretrainingHeads(config, "none").state_dict() | _linear("itm_output", 2, config.img)
            elif kind == "uniter" and any(name.startswith(("itm_output.", "rank_output.")) for name in tensors):
                expected |= _linear("itm_output", 2, config.img) | _linear("rank_output", 1, config.img)
    except BadInput as error:  # towers that do not go together
        raise BadInput(f"{source}: {error}") from None
    expected |= {name: expected[owner] for name, owner in tied.items()}
    checkpoints.check_keys(expected, {n: t for n, t in tensors.items() if not _BUFFER.search(n)}, str(source))
    differ = [f"{name} from {owner}" for name, owner in tied.items() if not torch.equal(tensors[name], tensors[owner])]
    if differ:
        raise BadInput(f"{source}: tensors that are tied to each other differ: {'; '.join(differ)}")


# ---- sizes -----------------------------------------------------------------------------------------------------------


def _size(tensors: dict[str, Tensor], pattern: str, axis: int) -> int | None:
    """What most tensors of that name say, so that one of a wrong shape is listed and not the others."""
    sizes = [t.shape[axis] for name, t in tensors.items() if re.fullmatch(pattern, name) and t.ndim > axis]
    return Counter(sizes).most_common(1)[0][0] if sizes else None


def _encoder_config(
    tensors: dict[str, Tensor], source: Path, side: str, path: Path | None, notes: list[str]
) -> EncoderConfig:
    """Sizes from shapes; what shapes cannot tell from the JSON file ``path``, or BERT's habits."""
    found = {name: size for name, where in _SIZES.items() if (size := _size(tensors, *where)) is not None}
    layers = [int(m[1]) for name in tensors if (m := re.match(r"encoder\.layer\.(\d+)\.", name))]
    if layers:
        found["num_hidden_layers"] = max(layers) + 1
    values = checkpoints.read_json(path) if path else {}
    wrong = [f"{n} is {values[n]}, in {source} {size}" for n, size in found.items() if values.get(n, size) != size]
    if wrong:
        raise BadInput(f"{path}: contradicts the shapes of the {side} encoder: {'; '.join(wrong)}")
    assumed = [name for name in _UNSEEN if name not in values]
    hidden_size = found.get("hidden_size", values.get("hidden_size", EncoderConfig.hidden_size))
    if "num_attention_heads" in assumed:
        if hidden_size % 64:
            raise BadInput(
                f"{source}: the number of heads of the {side} encoder cannot be seen, and width {hidden_size} is no "
                f"multiple of BERT's 64 a head; give num_attention_heads in a JSON file: --{side}-config"
            )
        values["num_attention_heads"] = hidden_size // 64
    config = checkpoints.bert_config(values | found, str(path or source))
    notes.append(f"{side} encoder: {', '.join(f'{name} {getattr(config, name)}' for name in (*found, *_UNSEEN))}")
    if assumed:
        notes.append(f"{side} encoder: {', '.join(assumed)} assumed as in BERT; otherwise give --{side}-config")
    return config


# ---- the folders -----------------------------------------------------------------------------------------------------


def _from_towers(file: File, source: Path, text: Path | None, image: Path | None, cls_token_id: int) -> Folder:
    notes = [f"{source}: {file.kind}, {len(file.tensors)} tensors"]
    sizes = {}
    for side, word, path in (("txt", "text", text), ("img", "image", image)):
        start = f"{file.prefix}{side}_model.bert."
        tower = {n.removeprefix(start): t for n, t in file.tensors.items() if n.startswith(start)}
        sizes[side] = _encoder_config(tower, source, word, path, notes)
    config = LightningDOTConfig(
        **sizes,
        project_dim=_size(file.tensors, r".*\.encode_proj\.3\.bias", 0) or 0,
        feature_dim=_size(file.tensors, *_FEATURE_DIM) or LightningDOTConfig.feature_dim,
        num_labels=_size(file.tensors, *_NUM_LABELS) or LightningDOTConfig.num_labels,
        cls_token_id=cls_token_id,
    )
    notes.append(f"project_dim {config.project_dim}, feature_dim {config.feature_dim}, cls_token_id {cls_token_id}")
    _check(file.kind, file.prefix, file.tensors, config, source)
    if not 0 <= cls_token_id < sizes["img"].vocab_size:
        raise BadInput(
            f"{source}: no [CLS] {cls_token_id} in the image tower's vocabulary of {sizes['img'].vocab_size}"
        )
    own, rest = _split(file)
    extra = {name: rest.pop(name) for name in [*rest] if _BUFFER.search(name) or name.startswith("itm_output.")}
    values = dataclasses.asdict(config) | {
        "model_type": "lightningdot",
        "fingerprint": checkpoints.fingerprint(own),
        "original": _record(file, notes),
    }
    return Folder(values, own, rest, extra, sizes["txt"].vocab_size, notes)


def _from_uniter(file: File, source: Path, image: Path | None) -> Folder:
    notes = [f"{source}: UNITER, prefix {file.prefix}, {len(file.tensors)} tensors"]
    own, rest = _split(file)
    sizes = _encoder_config(own, source, "image", image, notes)
    feature_dim = _size(file.tensors, *_FEATURE_DIM) or LightningDOTConfig.feature_dim
    num_labels = _size(file.tensors, *_NUM_LABELS) or LightningDOTConfig.num_labels
    _check("uniter", file.prefix, file.tensors, LightningDOTConfig(sizes, sizes, 0, feature_dim, num_labels), source)
    values = dataclasses.asdict(sizes) | {
        "model_type": "uniter",
        "feature_dim": feature_dim,
        "num_labels": num_labels,
        "original": _record(file, notes),
    }
    return Folder(values, own, {}, rest, sizes.vocab_size, notes)


def _split(file: File) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The towers or the encoder, without prefix; and the rest, less what is tied."""
    tied = _tied(file.kind, file.prefix, file.tensors)
    own, rest = {}, {}
    for name, tensor in file.tensors.items():
        if name.startswith(file.prefix) and not _BUFFER.search(name):
            own[name.removeprefix(file.prefix)] = tensor
        elif name not in tied:
            rest[name] = tensor
    return own, rest


def _record(file: File, notes: list[str]) -> dict:
    """How the file was laid out, for the way back; of what stood beside the weights only what JSON holds."""
    beside = None if file.beside is None else {}
    for name, value in (file.beside or {}).items():
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        beside[name] = value if same else {}
        if not same:
            notes.append(f"{name}: left out, and empty on the way back")
    return {"kind": file.kind, "module": file.module, "prefix": file.prefix, "beside": beside}


def _from_huggingface(source: Path) -> Folder:
    values = checkpoints.read_json(source / "config.json")
    if "txt" in values or "original" in values:
        raise BadInput(f"{source}: is a folder of ours already; --to original converts it back")
    config = checkpoints.bert_config(values, f"{source}/config.json")
    tensors = checkpoints.read_bert_tensors(source)
    prefix = next((match[0] for name in tensors if (match := re.match(r"(bert|roberta)\.", name))), "")
    own = {n: t for name, t in tensors.items() if not checkpoints.NOT_ENCODER.search(n := name.removeprefix(prefix))}
    extra = {name: t for name, t in tensors.items() if checkpoints.NOT_ENCODER.search(name.removeprefix(prefix))}
    checkpoints.check_keys(_bert_keys(config), own, str(source), optional=r"^pooler\.")
    record = {"kind": "huggingface", "prefix": prefix, "config": values}
    notes = [f"{source}: Hugging Face {values.get('model_type', 'bert')}, {len(tensors)} tensors"]
    return Folder(values | dataclasses.asdict(config) | {"original": record}, own, {}, extra, config.vocab_size, notes)
