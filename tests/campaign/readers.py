"""A command reads what another one replaces: what it makes is of what stood there before, or of what stands there now, never of both."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.canonical import canonical_outputs
from tests.campaign.children import Command
from tests.campaign.hostile import remove
from tests.campaign.outcomes import BAD, Result
from tests.campaign.rooms import Clean, Room, judge, wait_for
from tests.campaign.targets import CAPTIONS, EVALUATE, EXPORT, EXTRACT, INDEX, INSPECT
from tests.campaign.world import EVALUATED, SMALL


@dataclass(frozen=True)
class OneState:
    """A command that replaces something, and one that reads it meanwhile.

    Attributes:
        pair: names it
        writer, reader: script, and its words
        inputs: parts of the world that both need
        written, read: what they write
        weight: share of the cases
    """

    pair: str
    writer: list[str]
    reader: list[str]
    inputs: list[str]
    written: list[str]
    read: list[str]
    weight: float = 0.2

    @property
    def name(self) -> str:
        return f"one state: {self.pair}"

    def clean(self, room: Room) -> dict:
        """What the writer does; ``outputs`` has what the reader makes before it and behind it, too."""
        room.fill(self.inputs)
        found = {}
        for state in ("before", "now"):
            made = room.clean_run(self.reader, self.read)
            found |= {f"{state}/{name}": digest for name, digest in made["outputs"].items()}
            self._forget(room)
            if state == "before":
                writer = room.clean_run(self.writer, self.written)
        return writer | {"outputs": found, "lines": writer["lines"] + made["lines"], "peak": max(writer["peak"], made["peak"])}

    def run(self, room: Room, clean: Clean, number: int, chance: random.Random) -> Result:
        room.fill(self.inputs)
        states = [{name.removeprefix(f"{state}/"): each for name, each in clean.outputs.items() if name.startswith(f"{state}/")} for state in ("before", "now")]
        writer, after = Command(self.writer, room.box, room.folder / "log"), chance.random() * clean.seconds
        writer.has_ended(after)
        read = wait_for(Command(self.reader, room.box, room.folder / "log2"), max(60, 20 * clean.seconds))
        made = canonical_outputs(room.box, self.read)
        written = wait_for(writer, max(60, 20 * clean.seconds))
        done = f"the reader after {after:.3f} s: status {read.status}"
        for ended in (read, written):
            outcome, detail = judge(ended, clean, room, [], True, False)
            if outcome in BAD or (ended is written and ended.status):
                return Result(self.name, number, outcome if outcome in BAD else "broken", done, detail, self.writer)
        if read.status == 0 and made not in states:
            return Result(self.name, number, "broken", done, f"of neither state: {differing(made, states)}", self.reader)
        again = wait_for(Command(self.reader, room.box, room.folder / "log3"), max(60, 20 * clean.seconds))
        if again.status or (found := canonical_outputs(room.box, self.read)) != states[1]:
            detail = again.errors[-600:] if again.status else f"not of what stands there now: {differing(found, states[1:])}"
            return Result(self.name, number, "broken", f"{done}; again", detail, self.reader)
        return Result(self.name, number, "refused" if read.status else "identical", done, "", self.reader)

    def _forget(self, room: Room) -> None:
        for name in self.read:
            remove(room.box / Path(name).parts[0])


def differing(made: dict, states: list[dict]) -> str:
    return "; ".join(f"{name}: {[state.get(name) == digest for state in states]}" for name, digest in sorted(made.items()))


RETOLD = [*CAPTIONS[:-1], "db", "--annotations", "captions.jsonl", "--languages", "de"]
AGAIN = [*EXTRACT[:1], "--out", "regions", "--workers", "0", *SMALL[:-2], "--photos", "photo", "--overwrite"]
READ_WHILE_REPLACED = [
    OneState("build_captions, build_index", RETOLD, [*INDEX, "--captions", "db/test", "--out", "read"], ["fine", "db", "tokenizer", "captions.jsonl"], ["db"], ["read"]),
    OneState("build_captions, eval_itm", RETOLD, [*EVALUATE[:-1], "read"], ["fine", "db", "tokenizer", "captions.jsonl", "regions"], ["db"], ["read"]),
    OneState("build_captions, inspect_db", RETOLD, [*INSPECT[:-1], "read.json", "db/test"], ["db", "tokenizer", "captions.jsonl"], ["db"], ["read.json"]),
    OneState("build_index, export_index", [*INDEX, "--checkpoint", "other/best", "--regions", "regions", "--out", "img"], EXPORT, ["other", "fine", "regions", "img"], ["img"], ["out.db"]),
    OneState("build_index, inspect_db", [*INDEX, "--checkpoint", "other/best", "--regions", "regions", "--out", "img"], [*INSPECT[:-1], "read.json", "img"], ["other", "fine", "regions", "img"], ["img"], ["read.json"]),
    OneState("eval_itm, compare", ["eval_itm.py", *EVALUATED, "--checkpoint", "other/best", "--bootstrap", "20", "--output-dir", "eval"], ["scripts/compare.py", "eval", "eval_b", "--bootstrap", "20", "--json", "read.json"], ["other", "fine", "db/test", "regions", "eval", "eval_b"], ["eval"], ["read.json"]),
    OneState("extract_regions, build_index", AGAIN, [*INDEX, "--regions", "regions", "--out", "read"], ["fine", "photo", "regions"], ["regions"], ["read/data.mdb"]),
]  # fmt: skip
