"""What the steps of a table cost, to be printed behind them."""

from __future__ import annotations

from pathlib import Path

from data.errors import BadInput
from data.storage.text_files import read_json
from model.evaluation.ingredients import Pantry
from model.evaluation.reproduction import Places, Step
from optim.planning import GPUS, DataSizes, Machine
from optim.training_cost import cost_of_training

SIZES = DataSizes(mean_words=16, mean_regions=36, captions=None, vocab_size=28996, feature_dim=2048, num_labels=1601)
EFFICIENCY = 0.35  # of the stated peak rate, as scripts/plan.py assumes


class Costs:
    """Hours and passes of trainings.

    Args:
        gpu, gpus: what they run on
        pantry: knows how many captions a text DB will have
        places: where text DBs are
        show: whether to say anything
    """

    def __init__(self, gpu: str, gpus: int, pantry: Pantry, places: Places, show: bool):
        if gpu not in GPUS:
            raise BadInput(f"--gpu: found {gpu}, expected one of {', '.join(GPUS)}")
        self._machine, self._show = Machine(gpu, gpus, gpus, EFFICIENCY), show
        self._expected, self._places = pantry.captions(), places
        self._hours: dict[Step, float] = {}
        self._assumes = False  # something about weights that are not here yet

    def of(self, step: Step) -> str:
        """What to print behind a step; nothing for one that is no training."""
        if not self._show or not step.is_training:
            return ""
        try:
            cost = cost_of_training(step.config, self._machine, SIZES, lambda name: self._captions(name, step))
        except BadInput as error:
            return f"\n     # cost unknown: {error}"
        self._hours[step] = cost.hours or 0.0
        self._assumes |= bool(cost.notes)
        return f"\n     # {cost}"

    def total(self) -> str:
        """A line about all steps that ``of`` was asked for, each counted once."""
        machine = f"{self._machine.count} x {self._machine.gpu}, on paper at {EFFICIENCY:.0%} of its peak rate"
        assumed = "; weights that are not here yet are reckoned to be of BERT-base's size" if self._assumes else ""
        return f"all trainings: about {sum(self._hours.values()):.3g} hours on {machine}{assumed}\n" if self._hours else ""

    def _captions(self, name: str, step: Step) -> int | None:
        table = Path(self._places.data_root or step.config.data_root, name, "id2len.json")
        return len(read_json(table)) if table.is_file() else self._expected.get(f"DATA/{name}")
