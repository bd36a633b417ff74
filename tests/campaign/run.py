#!/usr/bin/env python
"""Damage what the commands read, kill them, fill their disk: and say what became of each case.

python tests/campaign/run.py --cases 10000                        # as make campaign CASES=10000
python tests/campaign/run.py --cases 500 --only 'index'           # targets in whose name this regular expression is found
python tests/campaign/run.py --target 'hnsw, search' --case 17    # one case again; its folder stays

Status 1 when there is a finding. OUT.json has every case, OUT.md the table of targets and outcomes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["OMP_NUM_THREADS"] = "1"  # before torch

from tqdm import tqdm

from tests.campaign.children import Child, import_commands
from tests.campaign.isolation import ROOT, become_nobody, give_to_nobody, isolate
from tests.campaign.outcomes import BAD, Result, markdown, write_results
from tests.campaign.rooms import Clean, Room


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--only", default="", help="targets in whose name this regular expression is found")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/campaign/results", help="files to write, without .json and .md")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so long; 0: after all cases")
    parser.add_argument("--target", help="with --case: run this one alone, and keep its folder")
    parser.add_argument("--case", type=int)
    return parser.parse_args()


class Campaign:
    """The cases of a seed, in rooms below a folder that goes at the end.

    Args:
        seed: of everything that is drawn
        jobs: rooms, so many cases at a time
        base: folder to work in
    """

    def __init__(self, seed: int, jobs: int, base: Path):
        self.seed, self.base, self.jobs = seed, base, jobs
        self.world = base / "world"
        for folder in (base, self.world):
            folder.mkdir(exist_ok=True, mode=0o755)
        base.chmod(0o755)
        self.rooms = [Room(base / f"room{number}", self.world) for number in range(jobs)]
        for room in self.rooms:
            (room.folder / "templates").mkdir(parents=True, exist_ok=True)
        give_to_nobody(self.world, *(room.folder for room in self.rooms))
        self.results: list[Result] = []
        self._clean: dict[tuple[str, int], Clean] = {}

    def make_world(self, say) -> None:
        from tests.campaign.world import make_world

        make_world(self.world, self.base / "room0" / "log", say)

    def clean(self, target, number: int) -> Clean:
        """What the target's command does without damage, in this room; asked when its first case runs there."""
        key = (target.name, number)
        if key not in self._clean:
            found = Child(lambda: (become_nobody(), target.clean(self.rooms[number]))[1]).result()
            self._clean[key] = Clean(**found)
        return self._clean[key]

    def start(self, target, case: int, number: int) -> Child:
        room, clean = self.rooms[number], self.clean(target, number)
        chance = random.Random(f"{self.seed}:{target.name}:{case}")

        def in_child() -> dict:
            if not getattr(target, "as_root", False):
                become_nobody()
            return vars(target.run(room, clean, case, chance))

        return Child(in_child)

    def run(self, cases: list[tuple], until: float) -> None:
        """Run cases, (target, number) each, with a progress bar; those are left out that would start later than ``until``."""
        waiting, running, results, counts = list(reversed(cases)), {}, self.results, Counter()
        with tqdm(total=len(cases), unit="case", dynamic_ncols=True) as bar:
            while waiting or running:
                free = [n for n in range(self.jobs) if n not in {number for number, *_ in running.values()}]
                while waiting and free and time.monotonic() < until:
                    target, case = waiting.pop()
                    try:
                        child = self.start(target, case, free[-1])
                        running[child.pipe] = free.pop(), target, case, child
                    except RuntimeError as error:  # without damage it fails too
                        waiting = [each for each in waiting if each[0] is not target]
                        results.append(Result(target.name, case, "broken", "nothing", str(error)[-1500:]))
                        bar.write(f"{target.name}: {str(error)[-1500:]}")
                if not running:
                    break
                for pipe in select.select(list(running), [], [])[0]:
                    _, target, case, child = running.pop(pipe)
                    try:
                        result = Result(**child.result())
                    except RuntimeError as error:
                        result = Result(target.name, case, "broken", "the campaign's own process failed", str(error)[-1500:])
                    results.append(result)
                    counts[result.outcome] += 1
                    bar.update()
                    bar.set_postfix_str(", ".join(f"{name} {count}" for name, count in counts.most_common()), refresh=False)
                    if result.outcome in BAD:
                        bar.write(f"{result.outcome}: {result.target}, case {result.number}: {result.done[:150]}")


def shared_out(targets: list, cases: int) -> list[tuple]:
    """(target, number) of so many cases, by the targets' weights, all mixed; a prefix has all targets too."""
    given = Counter()
    order = []
    for _ in range(cases):
        target = min(targets, key=lambda each: (given[each.name] + 1) / each.weight)
        order.append((target, given[target.name]))
        given[target.name] += 1
    return order


def main() -> int:
    options = arguments()
    from tests.campaign.all_targets import TARGETS

    targets = [target for target in TARGETS if re.search(options.only, target.name) and (options.target or target.name) == target.name]
    if not targets:
        sys.exit(f"no such target; there are: {', '.join(target.name for target in TARGETS)}")
    import_commands()
    tqdm.set_lock(threading.RLock())  # its own is shared with children, of whom one that is killed may hold it
    tqdm.monitor_interval = 0  # a thread that could hold it while a child is forked
    is_nobody = isolate()
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="campaign-", dir=memory if os.access(memory, os.W_OK) else None))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    campaign, keep = Campaign(options.seed, options.jobs, base), False
    try:
        started = time.monotonic()
        campaign.make_world(lambda step: print(f"  {time.monotonic() - started:5.1f} s  {step}", file=sys.stderr, flush=True))
        if options.case is not None:
            result = Result(**campaign.start(targets[0], options.case, 0).result())
            print(markdown([result], options.seed, {}), f"\n{' '.join(result.words)}\nin {campaign.rooms[0].box}")
            keep = True
            return int(result.outcome in BAD)
        until = started + 60 * options.minutes if options.minutes else float("inf")
        try:
            campaign.run(shared_out(targets, options.cases), until)
        finally:
            facts = {"minutes": round((time.monotonic() - started) / 60, 1), "children are nobody": is_nobody}
            write_results(results := campaign.results, options.seed, facts, options.out)
        print(markdown(results, options.seed, facts))
        bad = sum(result.outcome in BAD for result in results)
        print(f"{len(results) - bad} passed, {bad} failed")
        return int(bad > 0)
    finally:
        if not keep:
            shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
