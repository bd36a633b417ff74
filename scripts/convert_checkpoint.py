#!/usr/bin/env python
"""Turn a checkpoint of the original LightningDOT, of UNITER or of Hugging Face into a folder of ours, and back.

python scripts/convert_checkpoint.py flickr-ft.pt checkpoints/flickr --tokenizer bert-base-cased/
python scripts/convert_checkpoint.py uniter-base.pt checkpoints/uniter --image-config uniter-base.json
python scripts/convert_checkpoint.py checkpoints/flickr flickr-again.pt --to original
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.locks import claim_output


@dataclass
class Options:
    """Turn a checkpoint of the original LightningDOT, of UNITER or of Hugging Face into a folder of ours, and back.

    Both towers become a LightningDOT folder (for eval_itm.py, build_index.py, search.py and model.init), one encoder
    becomes an encoder folder (for model.img_init and model.txt_init). The kind is seen from the names. Every name and
    shape must be as expected; what is not is listed, and the exit status is 2.

    Args:
        src: .pt file, or Hugging Face BERT-family folder; with --to original a folder of ours
        dst: folder to write; with --to original a .pt file, or a folder if src was made from a Hugging Face folder
        to: ours, or original: what src was made from (a run of ours: pretrained where it has heads, else finetuned)
        text_config: JSON of the text encoder (Hugging Face's config.json) with num_attention_heads, hidden_act and
            layer_norm_eps; none: hidden_size / 64 heads, gelu, 1e-12
        image_config: the same of the image encoder (UNITER's JSON)
        cls_token_id: the word that starts an image sequence; default 101
        tokenizer: folder, hub name or vocab.txt of the tokenizer that the model was trained with; copied, so that search.py works
    """

    src: str
    dst: str
    to: Literal["ours", "original"] = "ours"
    text_config: str | None = None
    image_config: str | None = None
    cls_token_id: int | None = None
    tokenizer: str | None = None


def main(options: Options) -> None:
    from model.original import files as conversion  # torch is slow to import

    claim_output(options.dst)
    settings = (options.text_config, options.image_config, options.cls_token_id, options.tokenizer)
    if options.to == "ours":
        notes = conversion.to_ours(options.src, options.dst, *settings)
    elif any(value is not None for value in settings):
        raise BadInput("--to original takes all it needs from the folder; leave the other options out")
    else:
        notes = conversion.to_original(options.src, options.dst)
    print("\n".join(notes))


if __name__ == "__main__":
    cli.run(main, Options, positional=("src", "dst"))
