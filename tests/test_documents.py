"""README.md and docs/: every command is run as it is printed, on a small demo world and with small recipes in the places of the large
ones; what cannot run here is parsed; tables are as the code is; links and options are there.

The pages say that their commands run after ``make demo``. Here `world` stands for what that makes.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from data.errors import BadInput
from scripts import demo
from scripts.documenting.pages import with_tables
from tests.page_blocks import PAGES, ROOT, RUN, SHOWN, Block, blocks_of, text_of, without_tables
from tests.warm_python import warm_python

TUTORIAL = "docs/tutorial.md"
SCRIPT = re.compile(r"(?:scripts/)?\w+\.py$")
LAUNCHERS = ("python", "torchrun", "horovodrun", "sbatch")
OTHERS = ("make", "mkdir", "rsync", "source", "echo", "curl", "pip")  # not ours
BACKGROUND = "python scripts/serve.py "
SMALL_MODEL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "project_dim": 24,
    "max_position_embeddings": 80,
}  # fmt: skip
SMALL = {"num_steps": 4, "valid_every": 4, "tokens_per_batch": 700, "batch_size": 32, "log_every": 1, "epochs": 1, "precision": "fp32"}
SMALL_SPEED = SMALL_MODEL | {
    "galleries": [20, 40], "rerank_top": [4], "encoded": 8, "regions": 4, "vocab_size": 300, "feature_dim": 16, "dim": 24, "rounds": 1,
    "seconds": 0.01, "backends": ["exact"],
}  # fmt: skip
SMALL_RECIPES = {
    "pretrain/demo.yaml": SMALL, "finetune/demo.yaml": SMALL, "finetune/own_small.yaml": SMALL, "finetune/uniter_demo.yaml": SMALL,
    "finetune/uniter_own_small.yaml": SMALL,
    "eval/demo.yaml": {}, "speed/demo.yaml": SMALL_SPEED,
}  # fmt: skip
OFFLINE = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
OLD_CONFIG = {
    "train_txt_dbs": ["/db/itm_flickr30k_train_base-cased.db"], "train_img_dbs": ["/img/flickr30k/"],
    "val_txt_db": "/db/itm_flickr30k_val_base-cased.db", "val_img_db": "/img/flickr30k/", "test_txt_db": "/db/test.db",
    "test_img_db": "/img/flickr30k/", "img_model_config": "bert-base-cased", "txt_model_config": "bert-base-cased",
    "num_train_epochs": 15, "learning_rate": 5e-5, "hard_negatives_sampling": "none", "num_hard_negatives": 0, "output_dir": "/storage/x",
}  # fmt: skip


def small_recipe(path: Path, small: dict) -> str:
    """A recipe with few steps and small towers."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values |= {name: value for name, value in small.items() if name in values}
    if "hidden_size" in values.get("model", {}):
        values["model"] |= SMALL_MODEL
    if "warmup_steps" in values.get("optim", {}):
        values["optim"]["warmup_steps"] = 1
    return yaml.safe_dump(values)


class World:
    """A folder that looks like the repository's after ``make demo``, and a shell in it."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self._environment = folder, environment
        self._services: list[subprocess.Popen] = []
        self._port = None

    def run(self, block: Block) -> list[str]:
        """What the commands of a block print."""
        if block.language == "python":
            return [self._finish(["python", "-c", block.text], block)]
        return [self.command(command, block) for command in block.commands]

    def command(self, command: str, block: Block | None = None) -> str:
        """What a command prints; a service goes on, at a port of its own, which later commands then ask."""
        if command.startswith(BACKGROUND):
            words = [*shlex.split(command), "--port", "0"]
            service = subprocess.Popen(words, cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self._services.append(service)
            shown = []
            while not (line := service.stdout.readline()).startswith("http://127.0.0.1:"):
                shown.append(line)
                assert line, f"{block and block.place}: {command}\n{''.join(shown)}"
            self._port = line.split("/")[2].split(":")[1]
            return urllib.request.urlopen(f"http://127.0.0.1:{self._port}/", timeout=60).read().decode()
        if self._port:
            command = command.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
        return self._finish(["bash", "-c", command], block)

    def _finish(self, words: list[str], block: Block | None) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block and block.place}: {words[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def parse(self, commands: list[list[str]]) -> str:
        """What is wrong with the options of commands, which are read and not run."""
        return self._finish(["python", "-c", PARSE, json.dumps(commands)], None)

    def stop_services(self) -> None:
        for service in self._services:
            service.send_signal(signal.SIGTERM)
            service.wait(240)
            service.stdout.close()
        self._services, self._port = [], None


# Reads options as the command would, in one process for all.
PARSE = """
import json, runpy, sys
from configs import cli
from data.errors import BadInput

class Parsed(Exception):
    pass

def read_options(main, config, positional=(), **more):
    cli.parse(config, sys.argv[1:], positional)
    raise Parsed

cli.run = read_options
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Parsed:
        pass
    except BadInput as error:
        print(*words, ":", error)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`World` with runs/demo as the demo's own commands make it, smaller; small recipes, own photographs, and whatever else the pages
    name."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("scripts", "data", "model", "optim", "pretrain.py", "train_itm.py", "eval_itm.py"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for name, small in SMALL_RECIPES.items():
        (folder / "configs" / name).write_text(small_recipe(ROOT / "configs" / name, small))
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    (folder / "old.json").write_text(json.dumps(OLD_CONFIG))
    (folder / "other").symlink_to(ROOT)
    shell = tmp_path_factory.mktemp("shell")
    with warm_python(shell) as environment:
        (shell / "torchrun").write_text('#!/bin/sh\nexec python -m torch.distributed.run "$@"\n')
        (shell / "torchrun").chmod(0o755)
        made = World(folder, environment | OFFLINE | {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / ".cache")})
        for line in (demo.PREPARE + demo.TRAIN + demo.EVALUATE).split("\n"):
            if line and "contact_sheet" not in line:
                made.command(f"python {small_command(line)}")
        place_own_photographs(folder)
        yield made
        made.stop_services()


def small_command(line: str) -> str:
    """A command of the demo with few and small pictures."""
    for name, value in {"train": 24, "val": 8, "test": 8, "size": 64, "feature-dim": 32, "vocab-size": 300, "workers": 1}.items():
        line = re.sub(rf"(--{name}) \d+", rf"\1 {value}", line)
    return line


def place_own_photographs(folder: Path) -> None:
    """photos/ and captions.jsonl of one's own, in English and without splits."""
    (folder / "photos").symlink_to(folder / "runs/demo/photos")
    with open(folder / "captions.jsonl", "w") as file:
        for line in (folder / "runs/demo/captions.jsonl").read_text().splitlines():
            record = json.loads(line)
            file.write(json.dumps({"image": Path(record["image"]).name, "captions": {"en": record["captions"]["en"]}}) + "\n")


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL])  # that one has a test of its own
def test_the_commands_of_a_page_run_as_printed(world, page):
    try:
        for block in blocks_of(page):
            if block.language in RUN and block.reason is None:
                world.run(block)
    finally:
        world.stop_services()


def our_words(command: str) -> list[str] | None:
    """The words of a command of ours, from the script on; None for another program's."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words = words[1:]  # environment
    if words[0] == "sbatch":
        at = next(n for n, word in enumerate(words) if word.endswith(".sh"))
        return ["pretrain.py", *words[at + 1 :]]
    script = next((n for n, word in enumerate(words) if SCRIPT.match(word)), None)
    assert script is None or words[0] in LAUNCHERS, command
    if script is None and words[0] == "python" and words[1].startswith("tests/"):  # reads its options by itself
        assert all(f'"{word}"' in (ROOT / words[1]).read_text() for word in words if word.startswith("--")), command
    return None if script is None else words[script:]


def test_commands_that_are_not_run_have_options_that_are_there(world):
    unrun = [command for page in PAGES for block in blocks_of(page) if block.reason for command in block.commands]
    for command in unrun:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    parts = [part for command in unrun for part in re.split(r" && | \| ", command)]
    ours = [words for part in parts if (words := our_words(part))]
    assert len(ours) > 10
    assert world.parse(ours) == ""
    wrong = ["pretrain.py", "--config", "configs/pretrain/paper.yaml", "--no-such", "1"]
    assert "unknown option --no-such" in world.parse([wrong, ours[0]])


def test_the_words_of_commands():
    assert our_words("torchrun --nproc-per-node 8 pretrain.py --config a.yaml  # eight") == ["pretrain.py", "--config", "a.yaml"]
    assert our_words("horovodrun -np 8 python pretrain.py --out x") == ["pretrain.py", "--out", "x"]
    assert our_words("sbatch --nodes 4 scripts/slurm_pretrain.sh --out x") == ["pretrain.py", "--out", "x"]
    assert our_words("OMP_NUM_THREADS=2 python scripts/plan.py") == ["scripts/plan.py"] and our_words("mkdir x") is None


def test_blocks_are_found():
    text = "# a\n```bash\npython a.py \\\n    --b\n\n# c\nd\n```\n\n<!-- not run: too long -->\n```bash\ne\n```\n"
    first, second = blocks_of("x", text)
    assert first.commands == ["python a.py      --b", "d"] and first.reason is None and first.place == "x:3"
    assert second.reason == "too long" and second.commands == ["e"]
    with pytest.raises(ValueError, match="x:1: the block does not end"):
        list(blocks_of("x", "```bash\na"))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_stands_in_a_block(page):
    """A line that one would type and that no test sees."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    typed = re.compile(rf"^(?: {{4}}|\$ )(?:{'|'.join((*LAUNCHERS, *OTHERS))}) ")
    assert not [line for line in text.splitlines() if typed.match(line)]
    assert {block.language for block in blocks_of(page)} <= {*RUN, *SHOWN}


# ---- the tutorial ----------------------------------------------------------------------------------------------------


def test_the_tutorial_leads_to_a_search_by_the_commands_that_prepare_prints(world):
    walked = [(command, world.command(command, block)) for block in blocks_of(TUTORIAL) for command in block.commands]
    _, (_, prepared), (_, inspected), (train, _), (evaluate, recall), _, (_, found), (rerank, _), (_, reranked) = walked
    told = {name: re.search(rf"^{name}: +(python .*)$", prepared, re.MULTILINE)[1] for name in ("train", "evaluate", "re-rank")}
    assert (train, evaluate, rerank) == (told["train"] + " --epochs 2", told["evaluate"], told["re-rank"])
    assert "nothing is wrong" in inspected and "TR@1" in recall and "scene_" in found and "re-ranked" in reranked
    assert (world.folder / "tutorial/found.png").stat().st_size > 1000
    for path in set(re.findall(r"`((?:tutorial|configs|tests|scripts)/[\w./]+)`", text_of(TUTORIAL))):
        assert (world.folder / path).exists() or (ROOT / path).exists(), path
    report = json.loads((world.folder / "tutorial/data/report.json").read_text())
    assert {Path(name).name: found["records"] for name, found in report["checks"].items() if "/db/" in name} == {
        "train": 96 * 5, "val": 12 * 5, "test": 12 * 5,
    }  # fmt: skip


# ---- tables, links, options, lengths ---------------------------------------------------------------------------------


def test_tables_are_as_the_code_is(world):
    assert "all tables are as the code is" in world.command(f"cd {ROOT} && python scripts/write_tables.py --check")


def test_a_table_that_is_stale_is_written_anew(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("x\n<!-- scripts/write_tables.py t -->\nold\n<!-- end -->\ny <!-- end -->\n")
    _, filled = with_tables(page, {"t": lambda: ["| a |", "|---|"]})
    assert filled == "x\n<!-- scripts/write_tables.py t -->\n\n| a |\n|---|\n\n<!-- end -->\ny <!-- end -->\n"
    page.write_text(filled)
    assert with_tables(page, {"t": lambda: ["| a |", "|---|"]}) == (filled, filled)
    with pytest.raises(BadInput, match=r"a\.md: there is no table t, there are u"):
        with_tables(page, {"u": list})
    page.write_text("<!-- scripts/write_tables.py t -->\n")
    with pytest.raises(BadInput, match="needs an <!-- end -->"):
        with_tables(page, {"t": list})


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page):
    """Two pages are little but tables that are generated: the rest of them is short."""
    text = without_tables(text_of(page)) if page in ("docs/settings.md", "docs/from-original-settings.md") else text_of(page)
    assert len(text.splitlines()) <= (150 if page == "README.md" else 129)


def anchors_of(text: str) -> set[str]:
    """The names of a page's titles, as they stand behind ``#`` in a link."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors_of(file.read_text(encoding="utf-8")), target


def test_options_that_a_text_names_are_there():
    """Against the page of all settings, which is generated."""
    defaults = re.findall(r"^\| `([\w.]+)` \| (\S+)", text_of("docs/settings.md"), re.MULTILINE)
    known = {name for name, _ in defaults} | {f"no_{name}" for name, default in defaults if default in ("`true`", "none")}
    known |= {"help", "help_all", "config", "model", "no_NAME", "model.kind"}
    foreign = {"nproc_per_node", "max_restarts", "nnodes", "logdir", "ntasks_per_node", "sync_tensorboard",
               "shutdown_timeout", "signals_to_handle"}  # fmt: skip
    assert {"optim.lr", "batch_size", "captions_index"} <= known
    for page in PAGES:
        if page not in ("docs/settings.md", "docs/from-original-settings.md"):
            for span in re.findall(r"`([^`\n]+)`", text_of(page)):
                for name in re.findall(r"(?<![\w-])--([A-Za-z][\w.-]*)", span):
                    name = name.replace("-", "_").rstrip(".")
                    assert name in known | foreign, f"{page}: --{name} in `{span}`"


def test_the_readme_names_every_page():
    links = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", text_of("README.md")))
    assert links == {page for page in PAGES if page != "README.md"}


def test_the_citation_can_be_read():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in cited["authors"]]
    assert (cited["start"], cited["end"], len(names)) == (982, 997, 6)
    assert " and ".join(names) in text_of("README.md")
    assert "MIT License" in (ROOT / "LICENSE").read_text() and os.path.getsize(ROOT / "CHANGELOG.md") > 1000
