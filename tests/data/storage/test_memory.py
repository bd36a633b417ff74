"""What does not fit into this machine is refused before it is asked for."""

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
