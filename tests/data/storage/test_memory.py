"""What does not fit into this machine is refused before it is asked for; what is freed is kept when that is asked for."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import BadInput
from data.storage.memory import check_memory, machine_memory
from model.transformer import Bert, EncoderConfig, empty_weights


def test_what_fits_and_what_does_not():
    check_memory(machine_memory(), "all")
    with pytest.raises(BadInput, match=r"^more: [\d,.]+ GiB, and this machine has [\d,.]+ of memory$"):
        check_memory(machine_memory() + 1, "more")


def test_an_encoder_is_built_when_it_fits_and_planned_in_any_case():
    rows = machine_memory() // 4 // 8
    sizes = EncoderConfig(rows, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    assert sizes.num_parameters > machine_memory() // 4
    with pytest.raises(BadInput, match="weights of the encoder: "):
        Bert(sizes)
    with empty_weights():
        assert sum(p.numel() for p in Bert(sizes).parameters()) > machine_memory() // 4


ROOT = Path(__file__).resolve().parents[3]
PIECES_AGAIN_AND_AGAIN = """
import resource
from data.storage.memory import keep_freed_memory

def pages_made(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        piece = b"1" * (64 << 20)
        del piece
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

of_one = pages_made(1)
kept = keep_freed_memory()
pages_made(1)
print(kept, pages_made(4) < of_one)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems have no such setting")
@pytest.mark.parametrize(("said", "expected"), [({}, "True True"), ({"MALLOC_MMAP_MAX_": "65536"}, "False False")])
def test_freed_memory_is_kept_for_the_next_piece_unless_the_environment_says_otherwise(said, expected):
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", PIECES_AGAIN_AND_AGAIN]
    done = subprocess.run(command, env=others | said, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
