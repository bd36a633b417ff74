"""Names on the Hugging Face hub, taken wherever a folder is.

    local_folder("runs/x/best")                                   # is there: itself
    local_folder("user/lightningdot-flickr30k")                   # a repository of the hub → its copy in the hub's cache
    local_folder("bert-base-cased@main", TOKENIZER)               # a revision: branch, tag or commit; what a tokenizer needs
    local_folder("hf:user/photos@v2/db/test", DATASET)            # hf: a name of the hub whatever is here, and a folder within it
    folder_under("user/photos", "db/test")                        # a database of a recipe, below its data_root

What is there is taken as it is, without the hub. `huggingface_hub` downloads, and keeps what it has in its cache (``HF_HOME``): with
``HF_HUB_OFFLINE=1`` nothing else is asked. ``HF_ENDPOINT`` is another server that speaks as the hub does, ``HF_TOKEN`` opens what is private.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data.errors import BadInput, reason_of
from data.notices import say_once

PREFIX = "hf:"
_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_PLAIN = re.compile(rf"(?P<repo>(?:{_PART}/)?{_PART})(?:@(?P<revision>[^@\s]+))?")
_EXPLICIT = re.compile(rf"(?P<repo>(?:{_PART}/)?{_PART})(?:@(?P<revision>[^@/\s]+))?(?P<inside>(?:/[^/]+)*)/?")
_FILE = re.compile(r"\.(txt|json|jsonl|tsv|csv|yaml|pt|pth|bin|safetensors|npz|tar|mdb|db|zip|gz)$", re.IGNORECASE)
_ENTRIES = 10_000  # of a folder, among which a name like the one that is missing is looked for


@dataclass(frozen=True)
class Needed:
    """What is downloaded of a repository.

    Args:
        what: for messages
        patterns: names of files, with ``*``; empty: all
        repo_type: "model" or "dataset", as the hub tells them apart
        weights: whether there must be weights: ``pytorch_model.bin`` is downloaded where there are no safetensors
    """

    what: str
    patterns: tuple[str, ...] = ()
    repo_type: str = "model"
    weights: bool = False


_WORDS = ("tokenizer*", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json", "config.json")
TOKENIZER = Needed("tokenizer", _WORDS)
TENSORS = ("model*.safetensors", "model.safetensors.index.json")
WEIGHTS = Needed("model", (*_WORDS, *TENSORS, "heads.safetensors", "data.json", "val.json"), weights=True)
SIZES = Needed("model", ("config.json",))
DATASET = Needed("dataset", repo_type="dataset")


@dataclass(frozen=True)
class HubName:
    """A name on the hub, taken apart.

    Args:
        repo: ``name`` or ``user/name``
        revision: branch, tag or commit; None: the newest of the main branch
        inside: folder within the repository; "" for all of it
    """

    repo: str
    revision: str | None = None
    inside: str = ""


def hub_name(word: str) -> HubName | None:
    """What a word means on the hub; None where it can only be a path: it has the form of one, or its first folder is here."""
    if word.startswith(PREFIX):
        match = _EXPLICIT.fullmatch(word.removeprefix(PREFIX))
        if match is None:
            raise BadInput(f"{word}: no name of the hub, expected hf:NAME or hf:USER/NAME, with @REVISION and /FOLDER behind it where one is meant")
        return HubName(match["repo"], match["revision"], match["inside"].strip("/"))
    match = _PLAIN.fullmatch(word)
    if match is None or _FILE.search(match["repo"]) or "--" in word or ".." in word:
        return None
    first, slash, _ = match["repo"].partition("/")
    return None if slash and Path(first).is_dir() else HubName(match["repo"], match["revision"])


def local_folder(name: str | Path, needed: Needed = WEIGHTS) -> Path:
    """The folder that a word means: the one (or the file) of this path where it is there, else the copy of the repository that has
    this name on the Hugging Face hub, downloaded where the cache lacks it.

    A path that is not there, that can be no name of the hub, and that no folder is like, comes back as it is: its reader says best
    what it expected there.

    Raises:
        BadInput: a path that is not there but for a letter or two, with what is there; a name that the hub does not know, or whose
            files can be had neither from the cache nor from the hub.
    """
    if os.path.lexists(name):
        return Path(name)
    word = str(name)
    meant = hub_name(word)
    if meant is not None:
        return _downloaded(word, meant, needed)
    if near := near_folders(word):
        raise BadInput(f"{word}: no such folder; did you mean {' or '.join(near)}?")
    return Path(name)


def folder_under(root: str | Path, name: str | Path, needed: Needed = DATASET) -> Path:
    """As `local_folder`, of a name in a recipe: a relative one starts at ``root``, which may be a name on the hub itself; one with
    ``hf:`` in front starts nowhere."""
    return local_folder(name if str(name).startswith(PREFIX) else Path(local_folder(root, needed), name), needed)


def repository_of(word: str) -> str | None:
    """``hf:USER/NAME``, with its revision and folder, where a word is no folder here and means a repository of a user on the hub."""
    meant = None if os.path.lexists(word) else hub_name(word)
    if meant is None or "/" not in meant.repo:
        return None
    return PREFIX + meant.repo + (f"@{meant.revision}" if meant.revision else "") + (f"/{meant.inside}" if meant.inside else "")


def is_on_hub(word: str, needed: Needed = DATASET) -> bool:
    """Whether a word that is no folder is a name on the hub; what it names is downloaded then."""
    try:
        return hub_name(word) is not None and local_folder(word, needed).is_dir()
    except BadInput:
        return False


def near_folders(word: str) -> list[str]:
    """Paths that are here and whose one part differs a little from that of a path that is not, the most like first; two at most."""
    path, tail = Path(word), Path()
    while path.parent != path and not path.parent.is_dir():
        path, tail = path.parent, path.name / tail
    if path.name in ("", "..") or not path.parent.is_dir() or path.exists():
        return []
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in islice(entries, _ENTRIES)]
    near = difflib.get_close_matches(path.name, names, 4, 0.7)
    found = [path.parent / name / tail for name in near]
    return [str(each) for each in found if each.is_dir()][:2]


# ---- the hub ---------------------------------------------------------------------------------------------------------

_unreachable: dict[str, BaseException] = {}  # server → why: a process that could not reach it does not wait for it again


class NotInRepository(BadInput):
    """A repository of the hub is there, and has no such folder."""


@functools.cache
def _downloaded(word: str, meant: HubName, needed: Needed) -> Path:
    """The copy in the cache; asked for once a process, so that all that read it read one revision."""
    patterns = list(needed.patterns) if not meant.inside else [f"{meant.inside}/{each}" for each in needed.patterns or ("*",)]
    snapshot = _snapshot(word, meant, needed, patterns)
    folder = snapshot / meant.inside
    if not folder.is_dir():
        raise NotInRepository(f"{word}: the hub's {needed.what} {meant.repo} has no folder {meant.inside}")
    if needed.weights and not any(folder.glob("*.safetensors")):
        folder = _snapshot(word, meant, needed, [str(Path(meant.inside, "pytorch_model.bin"))]) / meant.inside
        if not (folder / "pytorch_model.bin").is_file():
            raise BadInput(f"{word}: {meant.repo} of the hub holds neither model.safetensors nor pytorch_model.bin")
    say_once(f"{word}: {folder}")
    return folder


def _snapshot(word: str, meant: HubName, needed: Needed, patterns: list[str]) -> Path:
    """The hub's files of these names, in its cache."""
    # slow to import, and folders do without
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # they are for a terminal
    try:
        return Path(snapshot_download(
            meant.repo, revision=meant.revision, repo_type=needed.repo_type, allow_patterns=patterns or None,
            local_files_only=constants.ENDPOINT in _unreachable,
        ))  # fmt: skip
    except errors.GatedRepoError:
        reason = f"{meant.repo} is given only to those who ask for it: ask on its page, then give HF_TOKEN, or run hf auth login"
    except errors.RepositoryNotFoundError:
        reason = f"the hub has no {needed.what} {meant.repo} (one that is private needs HF_TOKEN, or hf auth login)"
    except errors.RevisionNotFoundError:
        raise BadInput(f"{word}: {meant.repo} of the hub has no revision {meant.revision or 'main'}") from None
    except errors.HFValidationError as error:
        reason = f"no name of the hub ({reason_of(error)})"
    except errors.LocalEntryNotFoundError as error:
        reason = f"the hub's cache {constants.HF_HUB_CACHE} does not have all of it, and "
        if constants.HF_HUB_OFFLINE:
            reason += "HF_HUB_OFFLINE is set; download it once without"
        else:
            cause = _unreachable.setdefault(constants.ENDPOINT, error.__cause__ or error)
            reason += f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__}: {reason_of(cause)})"
    except Exception as error:  # a broken transfer, a full disk: whatever httpx and the file system raise
        reason = f"it cannot be had from the hub ({type(error).__name__}: {reason_of(error)})"
    near = near_folders(word)
    raise BadInput(f"{word}: no such folder, and {reason}{f'; did you mean {near[0]}?' if near else ''}") from None
