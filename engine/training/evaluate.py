"""Loss and accuracy of a model on whole splits, per class and per example."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
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
# Passes on the first image of each batch.
Watch = Callable[[Sequence[int]], Iterator[int]]


def chance(classes: int) -> float:
    """Return the accuracy in % of a random guess, which is reported for a diverged run."""
    return 100.0 / classes


@dataclass(frozen=True)
class Evaluated:
    """The result of evaluating a model on one split.

    Attributes:
        loss: mean loss over the examples.
        accuracy: accuracy in %.
        per_class_accuracy: accuracy of each class in %; None for a class without examples.
        losses: loss of each example, float32 [N], on the CPU.
        predictions: predicted class of each example, int64 [N], on the CPU.

    """

    loss: float
    accuracy: float
    per_class_accuracy: list[float | None]
    losses: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class Evaluations:
    """The evaluations after one epoch.

    Attributes:
        test: result on the test split; None if there is none.
        holdout: result on the hold-out split; None if there is none.
        raw: results of the weights themselves, if `test` and `holdout` are those of their average.

    """

    test: Evaluated | None
    holdout: Evaluated | None
    raw: "Evaluations | None" = None

    @property
    def finite(self) -> bool:
        """Return True if the losses are finite; after the last epoch, False is a divergence.

        Before that, a healthy run can have an infinite loss while its running statistics lag.
        """
        return all(math.isfinite(split.loss) for split in (self.test, self.holdout) if split)


def evaluate_splits(setup: Setup, state: State, watch: Watch = iter) -> Evaluations:
    """Evaluate on the test split and the hold-out split, if they exist.

    The model is neither compiled nor distributed, so val.py gives bit-identical results. If the run
    keeps a weight average, the average is evaluated, and the weights themselves are in `raw`.

    Args:
        setup: parts of the run that training does not change.
        state: parts of the run that training changes.
        watch: passes on the batches of a split and shows how many are done.

    """
    raw = _evaluate_splits(setup, state.model, watch)
    if state.ema is None:
        return raw
    return dataclasses.replace(_evaluate_splits(setup, state.ema.module, watch), raw=raw)


def _evaluate_splits(setup: Setup, model: nn.Module, watch: Watch) -> Evaluations:
    data, classes = setup.data, len(setup.data.classes)
    test = held = None
    if len(data.test):
        test = evaluate(model, data.test, setup.normalization, classes, setup.runtime, watch)
    if data.holdout is not None:
        held = evaluate(model, data.holdout, setup.normalization, classes, setup.runtime, watch)
    return Evaluations(test, held)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    normalization: Normalization,
    classes: int,
    runtime: Runtime,
    watch: Watch = iter,
) -> Evaluated:
    """Return loss and accuracy on a whole split, evaluated in batches of `EVALUATION_BATCH`.

    The ranks take turns at the batches that one process would evaluate, so the result of each image
    does not depend on the number of ranks.

    Args:
        model: the model on the run's device; it is switched to evaluation mode.
        split: images and labels, at least one.
        normalization: mean and standard deviation of the training split.
        classes: number of classes.
        runtime: device, precision and ranks.
        watch: passes on the batches and shows how many are done.

    """
    model.eval()
    loss = torch.zeros((), device=runtime.device)
    # Examples of each class, and correctly classified examples of each class.
    counts = torch.zeros(2, classes, dtype=torch.int64, device=runtime.device)
    losses = torch.zeros(len(split), device=runtime.device)
    predictions = torch.zeros(len(split), dtype=torch.int64, device=runtime.device)
    starts = range(0, len(split), EVALUATION_BATCH)
    for start in watch(starts[runtime.rank :: runtime.world_size]):
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
