"""Loss and accuracy of a model on whole splits, and of each of their examples."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.data.augment import Normalization
from engine.data.dataset import Split
from engine.system.distributed import add_over_ranks
from engine.system.runtime import Runtime
from engine.training.setup import Setup
from engine.training.state import State

EVALUATION_BATCH = 1000


def chance(classes: int) -> float:
    """Return the accuracy in % of a guess, which counts for a run that diverged."""
    return 100.0 / classes


@dataclass(frozen=True)
class Evaluated:
    """An evaluation's outcome: mean loss; accuracy in %; accuracy of each class in %.

    losses, predictions: of each example, float32 and int64 [N], on the CPU.
    """

    loss: float
    accuracy: float
    per_class_accuracy: list[float | None]
    losses: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class Evaluations:
    """What one epoch measured; `raw` is the weights' own where `test` is their average's."""

    test: Evaluated | None
    holdout: Evaluated | None
    raw: "Evaluations | None" = None

    @property
    def finite(self) -> bool:
        """Tell whether the losses are: after the last epoch, one that is not is a divergence.

        Before it, running statistics that lag behind may give one in a run that is well.
        """
        return all(math.isfinite(split.loss) for split in (self.test, self.holdout) if split)


def evaluate_splits(setup: Setup, state: State) -> Evaluations:
    """Evaluate on the test split and the hold-out, where there are any.

    The network is neither compiled nor distributed, so that val.py finds the same to the last bit.
    With an average of the weights, that is what counts, and the weights are measured beside it.
    """
    raw = _evaluate_splits(setup, state.model)
    if state.ema is None:
        return raw
    return dataclasses.replace(_evaluate_splits(setup, state.ema.module), raw=raw)


def _evaluate_splits(setup: Setup, model: nn.Module) -> Evaluations:
    data, classes = setup.data, len(setup.data.classes)
    test = held = None
    if len(data.test):
        test = evaluate(model, data.test, setup.normalization, classes, setup.runtime)
    if data.holdout is not None:
        held = evaluate(model, data.holdout, setup.normalization, classes, setup.runtime)
    return Evaluations(test, held)


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, normalization: Normalization, classes: int, runtime: Runtime
) -> Evaluated:
    """Measure loss and accuracy on a whole split, in batches of `EVALUATION_BATCH`.

    The ranks take turns at the batches of one process, so that each picture's outcome is the same.
    """
    model.eval()
    loss = torch.zeros((), device=runtime.device)
    # One row a class: examples, and those of them classified right.
    counts = torch.zeros(2, classes, dtype=torch.int64, device=runtime.device)
    losses = torch.zeros(len(split), device=runtime.device)
    predictions = torch.zeros(len(split), dtype=torch.int64, device=runtime.device)
    starts = range(0, len(split), EVALUATION_BATCH)
    for start in starts[runtime.rank :: runtime.world_size]:
        here = slice(start, start + EVALUATION_BATCH)
        labels = split.labels[here].to(runtime.device)
        with runtime.autocast():
            logits = model(normalization.apply(split.images[here].to(runtime.device))).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        predictions[here] = logits.argmax(dim=1)
        losses[here] = F.cross_entropy(logits, labels, reduction="none")
        counts[0] += torch.bincount(labels, minlength=classes)
        counts[1] += torch.bincount(labels[predictions[here] == labels], minlength=classes)
    add_over_ranks(loss, counts, losses, predictions)
    total, right = counts.tolist()
    return Evaluated(
        loss=float(loss) / len(split),
        accuracy=100.0 * sum(right) / len(split),
        per_class_accuracy=[
            100.0 * r / t if t else None for r, t in zip(right, total, strict=True)
        ],
        losses=losses.cpu(),
        predictions=predictions.cpu(),
    )
