"""Where a case happens: a folder with copies of what it needs, which no other case sees, and what the command makes without damage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.campaign import hostile
from tests.campaign.canonical import canonical_outputs, lasting_lines
from tests.campaign.children import Command, Ended
from tests.campaign.outcomes import Result

EXTRA_MEMORY = 400 << 20  # bytes above the undamaged run's
IDLE = 6.0  # seconds without work after which a command hangs


@dataclass
class Clean:
    """What a command does with undamaged inputs.

    Attributes:
        outputs: name of a file → digest of its content
        lines: of stderr
        seconds, peak: time and memory
        grown: bytes that it takes on the disk
    """

    outputs: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0
    grown: int = 0


class Room:
    """A folder for one case at a time.

    Args:
        folder: that nobody may write to; ``box`` in it is where commands run, always under this name, since paths are part of what
            they write
        world: what is copied into it
    """

    def __init__(self, folder: Path, world: Path):
        self.folder, self.world, self.box, self.log = folder, world, folder / "box", folder / "log"

    def fill(self, inputs: Iterable[str]) -> None:
        """Empty the box, and put copies of these parts of the world there, with their times."""
        self.empty()
        self.copy(inputs)

    def copy(self, inputs: Iterable[str]) -> None:
        for name in inputs:
            source, target = self.world / name, self.box / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)

    def fill_from(self, template: Path) -> None:
        self.empty()
        shutil.copytree(template, self.box, symlinks=True, dirs_exist_ok=True)

    def empty(self) -> None:
        for path in list(self.folder.iterdir()):
            if path.name != "templates":
                hostile.remove(path)
        (self.box / "tmp").mkdir(parents=True)

    def template(self, name: str) -> Path:
        return self.folder / "templates" / name.replace("/", "-").replace(" ", "_")

    def run(self, words: Iterable[str], limit: float, environment: dict[str, str] | None = None, **more) -> Ended:
        self.log.unlink(missing_ok=True)
        return wait_for(Command(words, self.box, self.log, environment, **more), limit)

    def escaped(self) -> str:
        """What is there that must not be; empty if nothing is."""
        strange = [path.name for path in self.folder.iterdir() if path.name not in ("box", "log", "log.out", "templates", ".box.lock")]
        programs = [str(path) for path in self.folder.rglob(hostile.ESCAPED)]
        return ", ".join(strange + programs)

    def clean_run(self, words: list[str], outputs: Iterable[str], environment: dict[str, str] | None = None) -> dict:
        """Run a command on what is in the box. Raises RuntimeError unless it ends well."""
        ended = self.run(words, 300, environment)
        if ended.status:
            raise RuntimeError(f"{' '.join(words)}: status {ended.status} without any damage\n{ended.errors[-3000:]}")
        return asdict(Clean(canonical_outputs(self.box, outputs), lasting_lines(ended.errors), ended.seconds, ended.peak))


def wait_for(command: Command, limit: float) -> Ended:
    """Until it ends, works for longer than the limit, or does no work."""
    until, idle_since, work = time.monotonic() + limit, time.monotonic(), -1
    while not command.has_ended(1.0):
        now, done = time.monotonic(), command.work()
        if done != work:
            work, idle_since = done, now
        if now > until or now - idle_since > IDLE:
            return command.wait(0)
    return command.wait(0)


def judge(ended: Ended, clean: Clean, room: Room, outputs: Iterable[str], may_differ: bool, may_take_long: bool) -> tuple[str, str]:
    """Outcome and detail of a command that ran on damaged inputs."""
    last = "\n".join(ended.errors.rstrip().splitlines()[-12:])
    if ended.timed_out:
        return ("other", "still at work") if may_take_long and ended.was_busy else ("hang", last)
    if ended.status < 0:
        return "crash", f"signal {-ended.status}\n{last}"
    if "Traceback (most recent call last)" in ended.errors or "Exception ignored" in ended.errors:
        return "traceback", last
    if ended.peak > clean.peak + EXTRA_MEMORY:
        return "memory", f"{(ended.peak - clean.peak) >> 20} MB more than undamaged\n{last}"
    if ended.status == 2:
        said = [line for line in ended.errors.splitlines() if line.startswith("error: ") or "\rerror: " in line]
        if len(said) == 2 and said[1].startswith("error: stopped at: "):  # a command that starts others; the first line is that one's
            said = said[1:]
        return ("refused", last) if len(said) == 1 and ended.errors.splitlines()[-1] == said[0] else ("untidy", last)
    if ended.status in (75, 130):
        return "noticed", last
    if ended.status:
        return "untidy", f"status {ended.status}\n{last}"
    found = canonical_outputs(room.box, outputs)
    if found == clean.outputs:
        return "identical", ""
    if new := [line for line in lasting_lines(ended.errors) if line not in clean.lines]:
        return "noticed", "\n".join(new[:5])
    changed = sorted(name for name in found.keys() | clean.outputs.keys() if found.get(name) != clean.outputs.get(name))
    text = "; ".join(f"{name}: {found.get(name, 'absent')}" for name in changed[:6])
    return ("other" if may_differ else "silent"), f"differ: {text}"


def room_of(number: int, base: Path) -> Path:
    folder = base / f"room{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "templates").mkdir(exist_ok=True)
    return folder


Case = Callable[[Room, Clean, int], Result]
