"""Checkpoints of the original LightningDOT, of UNITER and of Hugging Face, turned into folders of ours and back.

Towers become a LightningDOT folder, one encoder becomes an encoder folder, which ``model.img_init`` and ``model.txt_init``
take. What our models have no use for goes to ``original_extra.safetensors``, and how the file was laid out to
``config.json``, so that the way back gives the same names, shapes, types and values.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data.captions.tokenizers import CaptionTokenizer
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.storage.atomic import atomic_file, atomic_folder
from data.storage.regular_files import is_there
from model import checkpoints
from model.bi_encoder import LightningDOTConfig
from model.objectives.heads import is_of_loss
from model.original import weights as original
from model.transformer import Bert, EncoderConfig, empty_weights

EXTRA = "original_extra.safetensors"
ORIGINAL_CLS = 101  # [CLS] of BERT's vocabularies, which the original's code puts before every image


@dataclass
class Folder:
    """What a folder of ours will hold.

    Attributes:
        config: content of config.json
        tensors, heads, extra: of model.safetensors, heads.safetensors and original_extra.safetensors
        vocab_size: words that a tokenizer beside it may have
        notes: lines for the user
    """

    config: dict
    tensors: dict[str, Tensor]
    heads: dict[str, Tensor]
    extra: dict[str, Tensor]
    vocab_size: int
    notes: list[str] = field(default_factory=list)


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
    source, destination = local_folder(source), Path(destination)
    text, image = (Path(path) if path else None for path in (text_config, image_config))
    _must_be_new(destination)
    if source.is_dir():
        _refuse(source, "a Hugging Face folder", text_config, image_config, cls_token_id)
        result = _from_huggingface(source)
    else:
        file = original.read(source)
        if file.kind == "uniter":
            _refuse(source, "one encoder, of UNITER", text_config, None, cls_token_id)
            result = _from_uniter(file, source, image)
        else:
            cls = ORIGINAL_CLS if cls_token_id is None else cls_token_id
            result = _from_towers(file, source, text, image, cls)
    words = CaptionTokenizer.from_pretrained(tokenizer) if tokenizer else None
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


def _from_towers(file: original.File, source: Path, text: Path | None, image: Path | None, cls_token_id: int) -> Folder:
    notes = [f"{source}: {file.kind}, {len(file.tensors)} tensors"]
    sizes = {}
    for side, word, path in (("txt", "text", text), ("img", "image", image)):
        start = f"{file.prefix}{side}_model.bert."
        tower = {n.removeprefix(start): t for n, t in file.tensors.items() if n.startswith(start)}
        sizes[side] = original.encoder_config(tower, source, word, path, notes)
    config = LightningDOTConfig(
        **sizes,
        project_dim=original.common_size(file.tensors, r".*\.encode_proj\.3\.bias", 0) or 0,
        feature_dim=original.common_size(file.tensors, *original.FEATURE_DIM) or LightningDOTConfig.feature_dim,
        num_labels=original.common_size(file.tensors, *original.NUM_LABELS) or LightningDOTConfig.num_labels,
        cls_token_id=cls_token_id,
    )
    notes.append(f"project_dim {config.project_dim}, feature_dim {config.feature_dim}, cls_token_id {cls_token_id}")
    original.check_file(file.kind, file.prefix, file.tensors, config, source)
    if not 0 <= cls_token_id < sizes["img"].vocab_size:
        raise BadInput(
            f"{source}: no [CLS] {cls_token_id} in the image tower's vocabulary of {sizes['img'].vocab_size}"
        )
    own, rest = original.split(file)
    extra = {name: rest.pop(name) for name in [*rest] if original.BUFFER.search(name) or name.startswith("itm_output.")}
    values = dataclasses.asdict(config) | {
        "model_type": "lightningdot",
        "fingerprint": checkpoints.fingerprint(own),
        "original": original.record_of(file, notes),
    }
    return Folder(values, own, rest, extra, sizes["txt"].vocab_size, notes)


def _from_uniter(file: original.File, source: Path, image: Path | None) -> Folder:
    notes = [f"{source}: UNITER, prefix {file.prefix}, {len(file.tensors)} tensors"]
    own, rest = original.split(file)
    sizes = original.encoder_config(own, source, "image", image, notes)
    feature_dim = original.common_size(file.tensors, *original.FEATURE_DIM) or LightningDOTConfig.feature_dim
    num_labels = original.common_size(file.tensors, *original.NUM_LABELS) or LightningDOTConfig.num_labels
    original.check_file(
        "uniter", file.prefix, file.tensors, LightningDOTConfig(sizes, sizes, 0, feature_dim, num_labels), source
    )
    if "rank_output.weight" in rest:
        notes.append("rank_output: scores pairs as a re-ranker (eval_itm.py --reranker)")
    elif "itm_output.weight" in rest:
        notes.append("itm_output: scores pairs zero-shot as a re-ranker (eval_itm.py --reranker); no rank_output of a fine-tuning")
    values = dataclasses.asdict(sizes) | {
        "model_type": "uniter",
        "feature_dim": feature_dim,
        "num_labels": num_labels,
        "original": original.record_of(file, notes),
    }
    return Folder(values, own, {}, rest, sizes.vocab_size, notes)


def _from_huggingface(source: Path) -> Folder:
    values = checkpoints.read_settings(source / "config.json")
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


def to_original(source: str | Path, destination: str | Path) -> list[str]:
    """Write what ``to_ours`` made the folder ``source`` from, or the format of the original that a training run of ours
    corresponds to: pretrained where there are heads, else finetuned.

    Returns and raises: as ``to_ours``.
    """
    source, destination = local_folder(source), Path(destination)
    _must_be_new(destination)
    values = checkpoints.read_settings(source / "config.json")
    own = checkpoints.read_tensors(source / "model.safetensors")
    extra = checkpoints.read_tensors(source / EXTRA) if is_there(source / EXTRA) else {}
    record = values.get("original", {})
    if "txt" in values:
        checkpoints.checked_fingerprint(source, own, values)
        return _towers_to_file(source, destination, values, own, extra)
    needed = {"huggingface": ("prefix", "config"), "uniter": ("prefix", "module", "beside")}.get(record.get("kind"))
    if needed is None or not all(name in record for name in needed):
        raise BadInput(f"{source}/config.json: neither a LightningDOT checkpoint nor a converted encoder")
    sizes = checkpoints.bert_config(values, f"{source}/config.json")
    if record["kind"] == "uniter":
        config = LightningDOTConfig(sizes, sizes, 0, values.get("feature_dim", 2048), values.get("num_labels", 1601))
        return _to_file("uniter", own, extra, config, record, source, destination)
    checkpoints.check_keys(_bert_keys(sizes), own, str(source), optional=r"^pooler\.")
    with atomic_folder(destination) as folder:
        checkpoints.write(folder, {record["prefix"] + n: t for n, t in own.items()} | extra, record["config"])
    return [f"{destination}: a Hugging Face folder"]


def _towers_to_file(source: Path, destination: Path, values: dict, own: dict, extra: dict) -> list[str]:
    config, notes = LightningDOTConfig.from_dict(values, source / "config.json"), []
    if not isinstance(config.txt, EncoderConfig):
        raise BadInput(f"{source}: its text tower is not of the BERT family; the original's files have no place for it")
    heads = source / "heads.safetensors"
    trained = checkpoints.read_tensors(heads) if is_there(heads) else {}
    of_loss = [name for name in trained if is_of_loss(name)]
    if of_loss:
        trained = {name: tensor for name, tensor in trained.items() if name not in of_loss}
        notes.append(f"{', '.join(of_loss)}: left out, the original's loss learns nothing itself")
    if config.similarity != "dot":
        notes.append("similarity cosine: the original compares by dot product, so that scores will be others there")
    if config.pooling != "cls":
        notes.append("warning: pooling mean: the original reads [CLS] alone, so that its embeddings, and its recall, will be others than ours")
    if config.cls_token_id != ORIGINAL_CLS:
        notes.append(
            f"warning: cls_token_id {config.cls_token_id}: the original begins every image sequence with word {ORIGINAL_CLS}, whatever "
            "the vocabulary; its embeddings of images, and so its recall, will be others than ours"
        )
    kind, prefix = ("pretrained", "bert.") if trained else ("finetuned", "")  # as the original names them
    record = values.get("original", {})
    if record.get("kind") != kind or not {"module", "beside"} <= record.keys():  # a run of ours, or heads that were taken away
        beside = {name: {} for name in original.BESIDE_MODEL} if kind == "finetuned" else None
        record, extra = {"module": "", "prefix": prefix, "beside": beside}, {}
    if kind == "pretrained":
        extra = trained | extra
        if not config.num_labels:
            raise BadInput(
                f"{source}: pre-trained without soft labels; the original's format always has a region classifier. "
                "Without heads.safetensors the towers alone are written"
            )
        if "itm_output.weight" not in extra:
            extra |= {
                name: torch.zeros(t.shape) for name, t in original.linear_head("itm_output", 2, config.img).items()
            }
            notes.append("itm_output: zeros; the original's file has this head, none of our objectives trains it")
    return _to_file(kind, own, extra, config, record, source, destination) + notes


def _to_file(
    kind: str, own: dict, extra: dict, config: LightningDOTConfig, record: dict, source: Path, destination: Path
) -> list[str]:
    prefix = record["prefix"]
    tensors = {prefix + name: tensor for name, tensor in own.items()} | extra
    tied = original.tied_names(kind, prefix, tensors)
    tensors |= {name: tensors[owner] for name, owner in tied.items() if owner in tensors}
    original.check_file(kind, prefix, tensors, config, source)
    tensors = {record["module"] + name: tensor for name, tensor in tensors.items()}
    with atomic_file(destination) as path:
        try:
            torch.save(tensors if record["beside"] is None else {"model_dict": tensors, **record["beside"]}, path)
        except RuntimeError as error:  # what torch makes of a full disk
            raise BadInput(f"{destination}: cannot be written: {error}; is the disk full?") from error
    return [f"{destination}: {kind}, {len(tensors)} tensors"]


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


def _bert_keys(config: EncoderConfig) -> dict[str, Tensor]:
    with empty_weights():
        return Bert(config).state_dict()
