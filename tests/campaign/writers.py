"""Commands that write: killed, started twice, or on a disk that is full. What they come to in the end is what they come to undisturbed."""

from __future__ import annotations

import os
import random
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.canonical import canonical_outputs, lasting_lines
from tests.campaign.children import Command, Ended
from tests.campaign.commands import WRITING, Writing
from tests.campaign.isolation import become_nobody, give_to_nobody, mount_small, resize
from tests.campaign.outcomes import BAD, Result
from tests.campaign.rooms import Clean, Room, judge, wait_for
from tests.campaign.serving_files import FileServer
from tests.campaign.targets import INSPECT as INSPECTED
from tests.campaign.targets import SEARCH


@dataclass(frozen=True)
class Disturbed:
    """A command that writes, and what disturbs it; each kind is a subclass.

    Attributes:
        command: its key in `WRITING`
        weight: share of the cases
    """

    command: str
    weight: float = 0.15
    kind = ""
    as_root = False

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.command}"

    @property
    def writing(self) -> Writing:
        return WRITING[self.command]

    def clean(self, room: Room) -> dict:
        with self.filled(room):
            before = disk_usage(room.box)
            found = room.clean_run(self.writing.words, self.writing.outputs)
            return found | {"grown": disk_usage(room.box) - before}

    @contextmanager
    def filled(self, room: Room):
        room.fill(self.writing.inputs)
        give_to_nobody(room.box)
        with ExitStack() as stack:
            if self.writing.served:
                stack.enter_context(FileServer(room.box))
            yield

    def run(self, room: Room, clean: Clean, number: int, chance: random.Random) -> Result:
        if not self.as_root:
            become_nobody()
        with self.filled(room):
            outcome, done, detail = self.disturb(room, clean, chance)
        return Result(self.name, number, outcome, done, detail, self.writing.words)

    def disturb(self, room: Room, clean: Clean, chance: random.Random) -> tuple[str, str, str]:
        raise NotImplementedError

    def start(self, room: Room, name: str = "log", **more) -> Command:
        log = room.folder / name
        log.unlink(missing_ok=True)
        return Command(self.writing.words, room.box, log, **more)

    def to_the_end(self, room: Room, clean: Clean) -> tuple[str, str]:
        """Give the command again: it ends as the undisturbed one does."""
        ended = wait_for(self.start(room), max(60, 20 * clean.seconds))
        found = canonical_outputs(room.box, self.writing.outputs)
        if ended.status == 2 and self.writing.again and found == clean.outputs:
            return "identical", ""
        if ended.status == 2:
            return "broken", f"the same command does not go on:\n{last_lines(ended)}"
        outcome, detail = judge(ended, clean, room, self.writing.outputs, False, False)
        if outcome == "noticed" and found != clean.outputs:
            outcome, detail = "silent", f"another end than undisturbed, with: {detail}"
        if outcome in ("identical", "noticed") and (left := left_over(room.box)):
            return "broken", f"left over: {', '.join(left)}"
        return ("identical", "") if outcome == "noticed" else (outcome, detail)


class Killed(Disturbed):
    kind = "kill"

    def disturb(self, room, clean, chance):
        done = []
        for _ in range(chance.randrange(1, 4)):
            command = self.start(room)
            after = chance.random() * clean.seconds * 1.1
            command.has_ended(after)
            whom = chance.choice(["it and its workers", "it", "one of its workers"])
            if whom == "one of its workers":
                kill_a_worker(command.pid, chance)
            else:
                command.kill(group=whom == "it and its workers")
            ended = command.wait(60, end_group=False)
            done.append(f"{whom} after {after:.3f} s: {ended.status}")
            if ended.timed_out:
                return "hang", "; ".join(done), last_lines(ended)
            if "Traceback" in ended.errors and whom != "it and its workers":
                return "traceback", "; ".join(done), last_lines(ended)
            if not command.group_ends(10):
                command.kill()
                return "broken", "; ".join(done), "its workers are still there after ten seconds"
        outcome, detail = self.to_the_end(room, clean)
        return outcome, "; ".join(done), detail


class Interrupted(Disturbed):
    """Told to stop: by Ctrl-C, which all of its processes hear, or by SIGTERM, which it alone hears."""

    kind = "interrupt"

    def disturb(self, room, clean, chance):
        done = []
        for _ in range(chance.randrange(1, 3)):
            command, after = self.start(room), max(chance.random() * clean.seconds * 1.1, 0.1)  # before, it is not the command yet
            command.has_ended(after)
            number = chance.choice([signal.SIGINT, signal.SIGTERM])
            command.kill(number, group=number == signal.SIGINT)
            ended = command.wait(60, end_group=False)
            done.append(f"{number.name} after {after:.3f} s: {ended.status}")
            if not command.group_ends(10):
                command.kill()
                return "broken", "; ".join(done), "its workers are still there after ten seconds"
            outcome, detail = told_to_stop(ended, number, clean)
            if outcome in BAD and not (self.writing.again and ended.status == 2):
                return outcome, "; ".join(done), detail
        outcome, detail = self.to_the_end(room, clean)
        return outcome, "; ".join(done), detail


class FullDisk(Disturbed):
    kind = "full disk"
    as_root = True

    def disturb(self, room, clean, chance):
        share = chance.random()
        room_left = int(share * (clean.grown or 100_000)) // 4096 * 4096
        done = f"{room_left} of {clean.grown} bytes left"
        if mounted := mount_small(room.box, disk_usage(room.box) + room_left):
            self._fill_again(room)
            ended = wait_for(self.start(room), max(60, 20 * clean.seconds))
        else:
            become_nobody()
            done += ", by a limit on the size of a file: nothing can be mounted here"
            ended = wait_for(self.start(room, file_size=max(room_left // 2, 4096)), max(60, 20 * clean.seconds))
        outcome, detail = judge(ended, clean, room, self.writing.outputs, False, False)
        if outcome in ("identical", "noticed"):
            return outcome, done, detail
        if outcome != "refused":
            return outcome, done, detail
        if mounted:
            resize(room.box, 1 << 30)
        outcome, more = self.to_the_end(room, clean)
        return ("refused" if outcome == "identical" else outcome), done, f"{detail}\nthen: {more}"

    def _fill_again(self, room: Room) -> None:
        room.copy(self.writing.inputs)
        (room.box / "tmp").mkdir()
        give_to_nobody(room.box)
        if self.writing.served:
            FileServer.current.describe(room.box)


class Pair(Disturbed):
    kind = "two at once"

    def disturb(self, room, clean, chance):
        first = self.start(room)
        after = chance.random() * clean.seconds
        first.has_ended(after)
        second = self.start(room, "log2")
        ends = [wait_for(command, max(60, 20 * clean.seconds)) for command in (second, first)]
        done = f"the second after {after:.3f} s; statuses {ends[1].status} and {ends[0].status}"
        for ended in ends:
            if ended.status != 2:
                outcome, detail = judge(ended, clean, room, self.writing.outputs, False, False)
                if outcome not in ("identical", "noticed"):
                    return outcome, done, detail
        refused = [ended for ended in ends if ended.status == 2]
        if len(refused) == 2:
            return "broken", done, f"both were refused:\n{last_lines(ends[0])}\n{last_lines(ends[1])}"
        if refused and "is writing there" not in refused[0].errors and not self.writing.again:
            return "broken", done, f"the second is not told who writes there:\n{last_lines(refused[0])}"
        outcome, detail = self.to_the_end(room, clean)
        return ("refused" if refused and outcome == "identical" else outcome), done, detail


class Read(Disturbed):
    """Somebody reads what is being written: as it was before or as it is now, or is told that this cannot be; the writer does not care."""

    kind = "read while written"

    def disturb(self, room, clean, chance):
        command, reader, after = self.start(room), READERS[self.command], chance.random() * clean.seconds
        command.has_ended(after)
        read = wait_for(Command(reader, room.box, room.folder / "log2"), 60)
        done = f"{reader[0]} after {after:.3f} s: status {read.status}"
        outcome, detail = judge(read, clean, room, [], True, False)
        if outcome in BAD:
            command.kill()
            command.wait(10)
            return outcome, done, detail
        ended = wait_for(command, max(60, 20 * clean.seconds))
        outcome, detail = judge(ended, clean, room, self.writing.outputs, False, False)
        return outcome, done, detail


READERS = {
    "build_index --update": SEARCH,
    "build_index --delete": SEARCH,
    "build_index again": SEARCH,
    "extract_regions again": [*INSPECTED, "regions"],
    "train_itm": ["scripts/plot_runs.py", "out", "--out", "read.png"],
}


STOPPED_WITH = {signal.SIGINT: (0, 75, 130, -signal.SIGINT), signal.SIGTERM: (0, 2, 75, -signal.SIGTERM)}  # 130 of a shell is -SIGINT


def told_to_stop(ended: Ended, number: int, clean: Clean) -> tuple[str, str]:
    """Outcome and detail of a command that was told to stop: it says so in one line, or came to its end."""
    if ended.timed_out:
        return "hang", last_lines(ended)
    if "Traceback (most recent call last)" in ended.errors or "Exception ignored" in ended.errors:
        return "traceback", last_lines(ended)
    of_python = [line for line in ended.errors.splitlines() if "resource_tracker" in line]  # it tells of names that it clears away itself
    new = [line for line in lasting_lines(ended.errors) if line not in clean.lines and line not in lasting_lines("\n".join(of_python))]
    if ended.status not in STOPPED_WITH[number]:
        return "untidy", f"status {ended.status}\n{last_lines(ended)}"
    if ended.status and len(new) > 1:
        return "untidy", f"{len(new)} lines:\n" + "\n".join(new[:5])
    return "noticed", "\n".join(new)


def last_lines(ended: Ended) -> str:
    return "\n".join(ended.errors.rstrip().splitlines()[-12:])


def left_over(box: Path) -> list[str]:
    """What an interrupted command leaves, and the next one clears away."""
    return sorted(str(path.relative_to(box)) for path in box.rglob("*") if path.name.endswith((".partial", ".replaced", ".content")))


def disk_usage(folder: Path) -> int:
    """Bytes in whole pages, folders and links counted as one."""
    return sum(max(-(-path.lstat().st_size // 4096), 1) * 4096 for path in folder.rglob("*"))


def kill_a_worker(pid: int, chance: random.Random) -> None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # Python's own tracker of shared names is no worker: killed, the next one prints tracebacks and the command is whole
        children = [child for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(int(chance.choice(children)) if children else pid, 9)
    except (OSError, ProcessLookupError):
        pass


DISTURBED = [kind(command, weight * WRITING[command].weight) for kind, weight in ((Killed, 0.2), (Interrupted, 0.12), (FullDisk, 0.12), (Pair, 0.12)) for command in WRITING if not command.endswith("again")] + [
    Read(command) for command in READERS
]
