#!/usr/bin/env python
"""Render the demo world: pictures of coloured shapes and their captions in English, German, French and Czech.

python scripts/make_scenes.py --out runs/world                                            # 2,700 pictures
python scripts/make_scenes.py --out runs/world --size 96 --seed 1                           # smaller ones, other scenes
python scripts/make_scenes.py --out runs/world --train 20 --val 10 --test 10 --workers 1       # a world for tests
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.progress import ProgressBar
from data.scenes import world as scenes
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output
from data.storage.processes import starting_workers, worker_pool

MOST_PICTURES = 1_000_000  # whose names have six digits


@dataclass
class Options:
    """Render the demo world into a folder: photos/*.jpg and captions.jsonl.

    Args:
        out: folder to write; pictures of an earlier world in it are replaced
        train: number of training pictures
        val: number of validation pictures
        test: number of test pictures
        seed: seed of the world; the same seed gives the same pictures and captions, whatever the number of workers
        size: side of a picture in pixels
        workers: processes that draw
    """

    out: str
    train: int = 2000
    val: int = 200
    test: int = 500
    seed: int = 0
    size: int = 192
    workers: int = 2


def write_picture(job: tuple[int, str], photos: Path, seed: int, size: int) -> str:
    """Render one picture into `photos` and return its line of captions.jsonl."""
    index, split = job
    scene = scenes.make_scene(seed, index)
    name = f"scene_{index:06d}.jpg"
    scenes.render(scene, size).save(photos / name, quality=92)
    return json.dumps({"image": name, "captions": scenes.captions(scene), "split": split}, ensure_ascii=False)


def render_in_workers(draw: Callable[[tuple[int, str]], str], jobs: list[tuple[int, str]], workers: int) -> list[str]:
    """`draw` of all jobs, in their order, in that many processes. Raises BadInput where one of them dies."""
    try:
        with worker_pool(workers, "fork") as pool:
            with starting_workers():
                found = pool.map(draw, jobs, chunksize=16)
            return list(ProgressBar(found, "rendering", len(jobs), unit="pictures"))
    except BrokenProcessPool:
        raise BadInput("a worker process died, perhaps out of memory; use fewer --workers, and start the same command again") from None


def main(options: Options) -> None:
    splits = {"train": options.train, "val": options.val, "test": options.test}
    for name, count in splits.items():
        if count < 0:
            raise BadInput(f"--{name}: found {count}, expected 0 or more pictures; give a count")
    if sum(splits.values()) > MOST_PICTURES:
        raise BadInput(f"--train, --val, --test: found {sum(splits.values()):,} pictures in all, expected at most {MOST_PICTURES:,}")
    if options.size < 32:
        raise BadInput(f"--size: found {options.size}, expected at least 32 pixels; shapes cannot be told below that")
    if options.seed < 0:
        raise BadInput(f"--seed: found {options.seed}, expected 0 or more; choose another seed")
    jobs = list(enumerate(split for split, count in splits.items() for _ in range(count)))

    claim_output(options.out)
    photos = Path(options.out) / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    final = Path(options.out) / "captions.jsonl"
    final.unlink(missing_ok=True)  # a run that stops half-way must not look complete
    for old in photos.glob("scene_*.jpg"):
        old.unlink()

    draw = partial(write_picture, photos=photos, seed=options.seed, size=options.size)
    if options.workers > 1:
        lines = render_in_workers(draw, jobs, options.workers)
    else:
        lines = [draw(job) for job in ProgressBar(jobs, "rendering", unit="pictures")]

    with atomic_file(final) as partial_file:
        partial_file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} pictures and {final}")


if __name__ == "__main__":
    cli.run(main, Options)
