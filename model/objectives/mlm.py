"""Masked language modelling from the text alone: what VMLM is compared with in the ablation (Sun et al., NAACL 2021)."""

from __future__ import annotations

import dataclasses

from model.objectives.base import PAPER_OPTIONS, ObjectiveOptions
from model.objectives.vmlm import MaskedWords


class MaskedWordsOfText(MaskedWords):
    """Predict masked words from h_word alone. Masks, head and accuracy are VMLM's; SMRM goes on as ``fusion`` says."""

    name = "mlm"

    def __init__(self, options: ObjectiveOptions = PAPER_OPTIONS):
        super().__init__(dataclasses.replace(options, fusion="none"))
