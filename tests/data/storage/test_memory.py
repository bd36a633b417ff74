"""What does not fit into this machine is refused before it is asked for; what is freed may be kept."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import BadInput
from data.storage import memory
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


CODE = """
import resource, sys
import torch
from data.storage.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(40):  # until what is kept has settled
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(memory._mallopt is None, reason="another C library than GNU's")
def test_a_tensor_takes_the_place_of_one_that_was_freed():
    root, faults = Path(__file__).parents[3], {}
    for word in ("keep", "free"):
        done = subprocess.run([sys.executable, "-c", CODE, word], cwd=root, capture_output=True, text=True, check=True)
        faults[word] = int(done.stdout)
    pages = (1 << 26) // 4096
    assert faults["keep"] < pages // 10 and faults["free"] > pages, faults
