#!/usr/bin/env python
"""Average the weights of checkpoints of one beginning: a model that ranks better than each of them, and costs what one costs.

python scripts/average_checkpoints.py --checkpoints runs/photos-42/best runs/photos-43/best runs/photos-44/best --out runs/photos-averaged
python scripts/average_checkpoints.py --checkpoints user/flickr-42 user/flickr-43 --out checkpoints/flickr-averaged
python eval_itm.py --checkpoint runs/photos-averaged --captions db/val --regions regions
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before torch)
from data.storage.locks import claim_output
from model.averaging import average_checkpoints


@dataclass
class Options:
    """Write the mean of the weights of several LightningDOT checkpoints as a checkpoint of its own.

    Args:
        checkpoints: folders, or names on the Hugging Face hub, of runs from the same beginning that differ in their seed, say
        out: folder to write; it answers queries and can be trained on, with a loss that begins anew
    """

    checkpoints: list[str]
    out: str


def main(options: Options) -> None:
    claim_output(options.out)
    fingerprint = average_checkpoints(options.checkpoints, options.out)
    print(f"{options.out}: the mean of {len(options.checkpoints)} checkpoints, model {fingerprint}")


if __name__ == "__main__":
    cli.run(main, Options)
