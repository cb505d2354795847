"""Read from a run's history how many steps and examples it took to reach a target accuracy.

The target is measured on the hold-out split if the run evaluates it, otherwise on the test split. A
run reaches it at its first evaluation at or above it, at the end of an epoch or inside it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from engine.runs import history
from engine.runs.history import Evaluation
from engine.runs.records import DIVERGED, Record


@dataclass(frozen=True)
class Passage:
    """A finished run on its way to the target.

    Attributes:
        record: the run.
        reached: True if it reached the target and did not diverge.
        steps: optimizer steps to the target; all steps of the run if it did not reach it.
        examples: training examples to the target, or of the whole run.
        before: step of the evaluation before that; 0 if there is none.

    """

    record: Record
    reached: bool
    steps: int
    examples: int
    before: int

    @property
    def diverged(self) -> bool:
        """Return True if the run diverged."""
        return self.record.status == DIVERGED

    @property
    def noise_scale(self) -> float | None:
        """Return the mean gradient noise scale in examples up to the target; None if unknown.

        It is that of the epochs up to the one in which the run reached the target. An epoch whose
        estimate is not positive has none.
        """
        found, last = [], 0
        for row in self.record.history:
            if last < self.steps and (row.get("noise_scale") or 0.0) > 0:
                found.append(row["noise_scale"])
            last = row["step"]
        return statistics.fmean(found) if found else None


def has_holdout(records: Sequence[Record]) -> bool:
    """Return True if a run has an accuracy on the hold-out split."""
    return any(evaluations(record, "holdout") for record in records)


def evaluations(record: Record, split: str) -> list[Evaluation]:
    """Return a run's evaluations on a split in order of their steps."""
    found = history.evaluations(record.history, record.summary["batch"])
    return [evaluation for evaluation in found if evaluation.accuracy(split) is not None]


def passage_of(record: Record, split: str, target: float) -> Passage | None:
    """Return how a run got to the target; None if it cannot say.

    It cannot if it has not finished, has no evaluation on the split, or stopped at a lower target.
    A run that diverges does not reach the target, even if it was there before.
    """
    summary, found = record.summary, evaluations(record, split)
    stopped, lost = stop_of(record), record.status == DIVERGED
    if not record.counted or (not found and not lost) or (stopped or target) < target:
        return None
    # A run that stops at this very target has its own count.
    steps = summary.get("steps_to_target") if stopped == target else None
    examples = None if steps is None else summary.get("examples_to_target")
    if steps is None and (first := record.first_at(split, target)) is not None:
        steps, examples = first.step, first.examples
    if steps is None or lost:
        steps, examples = summary["steps"], sum(row.get("images") or 0 for row in record.history)
        reached = False
    else:
        reached = True
    before = max((at.step for at in found if at.step < steps), default=0)
    return Passage(record, reached, steps, examples or steps * summary["batch"], before)


def stop_of(record: Record) -> float | None:
    """Return the accuracy in % at which a run was to stop; None if it was to train to its end."""
    choices = record.summary["choices"]
    return choices.get("target_accuracy") if choices.get("stop_at_target") else None
