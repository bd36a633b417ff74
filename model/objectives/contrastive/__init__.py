"""The registry of contrastive losses, by the names that ``loss.name`` takes.

A loss is a file of its own and a line here.
"""

from model.objectives.contrastive.base import ContrastiveLoss
from model.objectives.contrastive.sigmoid import SigmoidLoss
from model.objectives.contrastive.softmax import SoftmaxLoss

LOSSES: dict[str, type[ContrastiveLoss]] = {
    "softmax": SoftmaxLoss,
    "sigmoid": SigmoidLoss,
}
