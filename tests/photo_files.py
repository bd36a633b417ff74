"""Photos that tests draw."""

from pathlib import Path

import lmdb
from PIL import Image, ImageDraw

SMALL = {"feature_dim": 64, "num_labels": 21, "workers": 0}


def picture(width=160, height=120, colour=(200, 40, 30)) -> Image.Image:
    result = Image.new("RGB", (width, height), (180, 185, 170))
    ImageDraw.Draw(result).rectangle((20, 30, 59, 89), fill=colour)
    return result


def stored(img_db: Path) -> dict[bytes, bytes]:
    folder = next(p for p in img_db.iterdir() if p.is_dir())
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())
