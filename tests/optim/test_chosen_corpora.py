"""Ablations: pre-training on some of a recipe's corpora, with some of its objectives."""

import pytest

from data.errors import BadInput
from optim.tasks.pretraining import CorpusOptions, PretrainConfig


def config(**settings):
    first = CorpusOptions("first", "a", "b", {"cmr": 2, "vmlm": 1, "mrfr": 1})
    return PretrainConfig(out="x", data=[first, CorpusOptions("second", "c", "d", {"vmlm": 3})], **settings)


def test_objectives_and_corpora_are_chosen_with_their_ratios():
    def found(**settings):
        return {corpus.name: corpus.tasks for corpus in config(**settings).data}

    assert found() == {"first": {"cmr": 2, "vmlm": 1, "mrfr": 1}, "second": {"vmlm": 3}}
    assert found(objectives=["vmlm", "cmr"]) == {"first": {"cmr": 2, "vmlm": 1}, "second": {"vmlm": 3}}
    assert found(objectives=["cmr"]) == {"first": {"cmr": 2}}, "a corpus without any of them is left out"
    assert found(corpora=["second"]) == {"second": {"vmlm": 3}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ["cmr", "mrc"]}, "objectives: found mrc, data has cmr, vmlm, mrfr"),
        ({"corpora": ["third"]}, "corpora: found third, data has first, second"),
        ({"objectives": []}, "objectives: none is given"),
        ({"corpora": ["second"], "objectives": ["cmr"]}, "objectives: none of cmr is learnt from second"),
    ],
)
def test_what_nobody_has_is_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        config(**settings)
