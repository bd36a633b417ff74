"""Commands that refuse, and words that run them."""

import sys

import pytest

import pretrain
import train_itm
from configs import cli
from scripts import search
from tests.refusals import CONFIGS, the_error


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command's main as its last line does → the error line; it must end with status 2."""

    def run(module, *words) -> str:
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(module.main, CONFIGS[module], ("query",) if module is search else ())
        assert stop.value.code == 2
        return the_error(capsys.readouterr().err)

    return run


@pytest.fixture(scope="module")
def recipes(small_world, pretrained):
    """Words that run each training command, but for the output folder."""
    return {
        pretrain: ["--config", small_world / "pretrain.yaml"],
        train_itm: ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last"],
    }
