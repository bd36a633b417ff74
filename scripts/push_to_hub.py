#!/usr/bin/env python
"""Publish a checkpoint on the Hugging Face hub: weights, tokenizer, and a card with its recall, data and command.

python scripts/push_to_hub.py runs/flickr30k/best user/lightningdot-flickr30k                 # HF_TOKEN, or hf auth login, says who you are
python scripts/push_to_hub.py runs/flickr30k/best user/lightningdot-flickr30k --dry-run       # says what would be sent, and the card
python scripts/push_to_hub.py runs/flickr30k/best user/lightningdot-flickr30k --out published # only writes the folder
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from configs.idle import refuse_idle
from data.downloads.hub import hub_name
from data.errors import BadInput, reason_of
from data.storage.atomic import atomic_folder
from data.storage.json_digest import with_digest
from data.storage.locks import claim_output
from data.storage.regular_files import is_there, real_path
from data.storage.text_files import read_json, write_json
from model.checkpoints import one_checkpoint
from model.made_from import check_tokenizer
from scripts.publishing.reading import read_card

WEIGHTS = ("model.safetensors", "config.json")
BESIDE_THEM = ("heads.safetensors", "data.json", "val.json", "original_extra.safetensors")
ADVICE = "a checkpoint of a run, as runs/flickr30k/best, or a converted one was expected"


@dataclass
class Options:
    """Publish a checkpoint on the Hugging Face hub; what is there under that name already becomes its history.

    Args:
        checkpoint: folder of a checkpoint, of towers or of a re-ranker
        name: on the hub, USER/NAME
        out: folder to write what would be sent; then nothing is sent
        dry_run: only say what would be sent, and show the card
        private: only you see it, where it is made anew
        license: of the weights, as the hub spells licences, for instance mit
        message: of the commit
    """

    checkpoint: str
    name: str
    out: str | None = None
    dry_run: bool = False
    private: bool = False
    license: str | None = None
    message: str = "Upload weights, tokenizer and card"

    def __post_init__(self):
        meant = hub_name(f"hf:{self.name}")
        if meant.revision or meant.inside or "/" not in meant.repo:
            raise BadInput(f"{self.name}: no name of a model of yours on the hub, expected USER/NAME")
        refuse_idle(self, (self.dry_run, "out", "with --dry-run"), (self.dry_run or self.out, "private message", "where nothing is sent"))


def main(options: Options) -> None:
    checkpoint = one_checkpoint(options.checkpoint)  # training may move its links meanwhile
    for name in WEIGHTS:
        if not (checkpoint / name).is_file():
            raise BadInput(f"{checkpoint / name}: no such file; {ADVICE}")
    check_tokenizer(checkpoint)
    card = read_card(checkpoint, options.name, options.license).to_markdown()
    if not (checkpoint / "tokenizer").is_dir():
        print(f"{checkpoint}: has no tokenizer, so that who gets it needs the one of its captions", file=sys.stderr)
    if options.dry_run:
        print("\n".join(f"{(checkpoint / path).stat().st_size / 1e6:10.1f} MB  {path}" for path in files_of(checkpoint)))
        print(f"{len(card.encode()) / 1e6:10.1f} MB  README.md\n\n{card}\n{options.name}: nothing was sent")
    elif options.out:
        claim_output(options.out)
        if Path(options.out).exists():
            raise BadInput(f"{options.out}: exists already; give another --out, or delete it")
        with atomic_folder(Path(options.out)) as folder:
            write_folder(checkpoint, card, folder)
        print(f"wrote {options.out}: nothing was sent")
    else:
        with tempfile.TemporaryDirectory(prefix="lightningdot-") as temporary:
            write_folder(checkpoint, card, Path(temporary), link=True)
            print(f"sent: {send(Path(temporary), options)}")


def files_of(checkpoint: Path) -> list[str]:
    """What is published of a checkpoint: not what only its training needs to go on."""
    tokenizer = [path for path in sorted((checkpoint / "tokenizer").rglob("*")) if path.is_file()]
    found = [name for name in (*WEIGHTS, *BESIDE_THEM) if is_there(checkpoint / name)]
    return [*found, *(str(path.relative_to(checkpoint)) for path in tokenizer)]


def write_folder(checkpoint: Path, card: str, folder: Path, link: bool = False) -> None:
    """Write weights, tokenizer and card into a folder; ``link``: large files as links to where they are."""
    for name in files_of(checkpoint):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if link and name.endswith(".safetensors"):
            (folder / name).symlink_to(real_path(checkpoint / name))
        else:
            shutil.copyfile(checkpoint / name, folder / name)
    if is_there(folder / "data.json"):
        write_json(folder / "data.json", with_digest(without_places(read_json(folder / "data.json"))))
    (folder / "README.md").write_text(card, encoding="utf-8")


def without_places(made_from: dict) -> dict:
    """``data.json`` without folders of this machine, where the extractor's weights were read from."""
    extractors = [each and each | {"source": None if Path(each.get("source") or "").is_absolute() else each.get("source")} for each in made_from["extractors"]]
    return made_from | {"extractors": extractors}


def send(folder: Path, options: Options) -> str:
    """Make the repository where there is none, and commit the folder to it → the commit's address.

    Raises:
        BadInput: the hub does not know who asks, refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, constants  # slow to import, and what is not sent does without

    try:
        api = HfApi()
        api.create_repo(options.name, private=options.private, exist_ok=True)
        return str(api.upload_folder(repo_id=options.name, folder_path=folder, commit_message=options.message).commit_url)
    except Exception as error:  # no token, no permission, no network: whatever httpx and the library raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "; log in: hf auth login, or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        raise BadInput(f"{options.name}: cannot be sent to {constants.ENDPOINT} ({type(error).__name__}: {reason_of(error)}){advice}") from None


if __name__ == "__main__":
    cli.run(main, Options, positional=("checkpoint", "name"))
