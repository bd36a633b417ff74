"""Which extractor to take for photographs where nobody says it: the best of the usual ones that can run on this machine."""

from __future__ import annotations

import importlib.util
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from data.errors import BadInput
from model.extractors.butd.faster_rcnn import PUBLISHED
from model.extractors.random_conv import RandomConv

DINO = "facebook/dinov2-base"
DETECTOR = "fasterrcnn_resnet50_fpn_v2"
DETECTOR_FILE = "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"  # of torchvision's newest weights
DETECTOR_URL = f"https://download.pytorch.org/models/{DETECTOR_FILE}"
SECONDS = 5  # to wait for a hub


@dataclass(frozen=True)
class Candidate:
    """An extractor that could be taken.

    Args:
        name: as --extractor takes it
        needs, gives: for the user, in a few words
        obstacle: why it cannot run here; None when it can
    """

    name: str
    needs: str
    gives: str
    obstacle: Callable[[], str | None]


def usual_extractors() -> list[Candidate]:
    """The extractors that need nothing but a download, the best for photographs first."""
    return [
        Candidate(
            "butd", f"a GPU (a CPU takes half a minute a photo) and {PUBLISHED} (250 MB)",
            "boxes, features and soft labels of 1,600 classes, as in the paper", _obstacle_of_butd,
        ),
        Candidate(
            f"hf:{DINO}", f"the weights of {DINO} (350 MB)", "features of patches; no soft labels, so of SMRM only mrfr",
            lambda: _obstacle_of_hub(DINO, "config.json"),
        ),
        Candidate(
            f"torchvision:{DETECTOR}", "torchvision and its weights (170 MB)", "boxes, features and soft labels of COCO's classes",
            _obstacle_of_torchvision,
        ),
        Candidate(
            "random-conv", "nothing", "colours and shapes: it is for the demo only, photographs are hardly found by it",
            lambda: None,
        ),
    ]  # fmt: skip


def choose_extractor(options: Iterable[str], candidates: list[Candidate] | None = None) -> str:
    """Explain the choice on the screen, a line each, and make it.

    Args:
        options: NAME=VALUE, that are given to the extractor; one that only random-conv reads chooses it
        candidates: the best first; None: the usual ones

    Raises:
        BadInput: `weights` is given, which does not say whose they are.
    """
    given = [word.partition("=")[0].replace("-", "_") for word in options]
    if "weights" in given:
        raise BadInput("--extract weights=...: say whose weights they are: --extractor butd or torchvision:NAME")
    of_demo = [name for name in given if name in RandomConv.feature_options]
    if of_demo:
        print(f"extractor: random-conv, since {of_demo[0].replace('_', '-')} is an option of it alone; it is for the demo only")
        return "random-conv"
    print("--extractor is not given; there are:")
    chosen = None
    for candidate in candidates or usual_extractors():
        obstacle = candidate.obstacle()
        if obstacle is None and chosen is None:
            chosen = candidate
        state = f"cannot run here: {obstacle}" if obstacle else "taken" if candidate is chosen else "can run here"
        print(f"  {candidate.name}: needs {candidate.needs}; gives {candidate.gives}; {state}", flush=True)
    return chosen.name


# ---- what can run here -----------------------------------------------------------------------------------------------


def _obstacle_of_butd() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU"
    return _obstacle_of_hub(PUBLISHED, "config.yaml")


def _obstacle_of_hub(name: str, file: str) -> str | None:
    """Why a model of Hugging Face's hub cannot be loaded: it is neither in the cache nor in reach."""
    from huggingface_hub import constants, try_to_load_from_cache  # slow, and a given extractor does without

    if isinstance(try_to_load_from_cache(name, file), str):
        return None
    if constants.HF_HUB_OFFLINE:
        return "its weights are not in the cache, and HF_HUB_OFFLINE is set"
    return _obstacle_of_url(f"{constants.ENDPOINT}/{name}/resolve/main/{file}")


def _obstacle_of_torchvision() -> str | None:
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    if Path(torch.hub.get_dir(), "checkpoints", DETECTOR_FILE).is_file():
        return None
    return _obstacle_of_url(DETECTOR_URL)


def _obstacle_of_url(url: str) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS):
            return None
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code}"
    except (OSError, HTTPException, ValueError) as error:  # an odd proxy in the environment among them
        reason = str(getattr(error, "reason", error))
    return f"its weights are not here, and {url.split('/')[2]} cannot be reached ({reason})"
