"""What is typed, and what the environment says: words that no command expects."""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
from dataclasses import dataclass

from tests.campaign.commands import TYPED
from tests.campaign.outcomes import Result
from tests.campaign.rooms import Clean, Room, judge
from tests.campaign.values import NUMBERS, TEXTS, short

PLACES = ["pipe", "zero", "full", "closed", "loop", "nowhere/x", "empty", "file", "file/x", ".", "..", "photos", "fine/best", "captions.jsonl", "a" * 300, "a/" * 600]
VARIABLES = [
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "HOROVOD_SIZE", "HOROVOD_RANK", "HOROVOD_LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT",
    "XDG_CACHE_HOME", "HOME", "TMPDIR", "LIGHTNINGDOT_DOWNLOADS", "COLUMNS", "LINES", "TERM", "LANG", "PATH", "OMP_NUM_THREADS", "SLURM_JOB_ID",
    "HF_HOME", "MPLBACKEND", "MPLCONFIGDIR", "CUDA_VISIBLE_DEVICES", "TQDM_DISABLE", "TQDM_MININTERVAL", "NO_COLOR", "LIGHTNINGDOT_X",
]  # fmt: skip


def odd_word(chance: random.Random) -> str:
    kind = chance.randrange(4)
    if kind == 0:
        return str(chance.choice(NUMBERS))
    if kind == 1:
        return chance.choice(PLACES)
    text = chance.choice(TEXTS)
    return text.replace("\0", "0").replace("\ud800", "\udc80")


@dataclass(frozen=True)
class Words:
    """A command with one or two of its words changed, or with an option more.

    Attributes:
        command: its key in `TYPED`
        weight: share of the cases
    """

    command: str
    weight: float = 0.8

    @property
    def name(self) -> str:
        return f"words: {self.command}"

    def clean(self, room: Room) -> dict:
        words, inputs = TYPED[self.command]
        room.fill(inputs)
        return room.clean_run(words, [])

    def run(self, room: Room, clean: Clean, number: int, chance: random.Random) -> Result:
        words, inputs = TYPED[self.command]
        room.fill(inputs)
        put_odd_places(room)
        for _ in range(chance.choice([1, 1, 2])):
            words = self.changed(words, chance)
        words = [word for word in words if isinstance(word, str)]
        ended = room.run(words, max(20, 10 * clean.seconds))
        outcome, detail = judge(ended, clean, room, [], True, True)
        return Result(self.name, number, outcome, short(words[1:]) if len(str(words)) < 50 else f"{ascii(words[1:])[:300]}", detail, words, ended.seconds)

    def changed(self, words: list[str], chance: random.Random) -> list[str]:
        words, how = list(words), chance.randrange(8)
        at = chance.randrange(1, len(words))
        if how == 0:
            del words[at]
        elif how == 1:
            words.insert(at, words[at])
        elif how <= 3:
            words[at] = odd_word(chance)
        else:
            option = chance.choice(options_of(words[0]))
            value = odd_word(chance)
            words += chance.choice([[f"--{option}", value], [f"--{option}={value}"], [f"--{option}"], [f"--no-{option}"], [f"--{option}", value, value]])
        return words


@dataclass(frozen=True)
class Environment(Words):
    """A command with odd variables in its environment."""

    weight: float = 0.4

    @property
    def name(self) -> str:
        return f"environment: {self.command}"

    def run(self, room: Room, clean: Clean, number: int, chance: random.Random) -> Result:
        words, inputs = TYPED[self.command]
        room.fill(inputs)
        put_odd_places(room)
        variables = {name: odd_word(chance) for name in chance.sample(VARIABLES, chance.choice([1, 2]))}
        if "WORLD_SIZE" in variables or "HOROVOD_SIZE" in variables:
            variables |= {"MASTER_ADDR": "127.0.0.1"}
        ended = room.run(words, max(20, 10 * clean.seconds), variables)
        outcome, detail = judge(ended, clean, room, [], True, True)
        return Result(self.name, number, outcome, ascii(variables)[:300], detail, words, ended.seconds)


def options_of(script: str) -> list[str]:
    """Names of the options of a command, inner ones with their dots."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    config = next(getattr(module, name) for name in ("Options", "EvalConfig", "PretrainConfig", "RetrievalConfig") if hasattr(module, name))

    def names(kind, prefix=""):
        for setting in dataclasses.fields(kind):
            inner = setting.default_factory if dataclasses.is_dataclass(setting.default_factory) else None
            yield from names(inner, f"{prefix}{setting.name}.") if inner else (f"{prefix}{setting.name}".replace("_", "-"),)

    return [*names(config), "config", "help-me"]


def put_odd_places(room: Room) -> None:
    """A pipe, endless and full devices, a closed file, a link to itself, an empty folder and an empty file, for words to name."""
    box = room.box
    os.mkfifo(box / "pipe")
    for name, target in (("zero", "/dev/zero"), ("full", "/dev/full"), ("loop", "loop")):
        (box / name).symlink_to(target)
    (box / "closed").touch(mode=0)
    (box / "empty").mkdir()
    (box / "file").touch()


WORDS = [Words(command) for command in TYPED]
ENVIRONMENTS = [Environment(command) for command in ("search", "inspect_db", "build_captions", "pretrain", "train_itm", "eval_itm", "build_index", "extract_regions", "download", "plot_runs")]
