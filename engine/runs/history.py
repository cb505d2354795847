"""Read the evaluations in a run's history, after its epochs and inside them.

A history is the rows of metrics.jsonl, one per epoch. With `eval_every=50steps` a row has the
evaluations inside its epoch as a list, `evaluations`. The last row of a run that ended inside an
epoch is that of the steps done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Attributes:
        epoch: the epoch in which it was made, counted from 1.
        inside: True if it was made inside the epoch, not after its last step.
        step: number of optimizer steps before it.
        examples: number of training examples before it.
        train_seconds: duration of the training steps before it.
        epochs: number of epochs before it, with the fraction of the last one.
        wall_seconds: wall seconds since the start of the run; inside an epoch, the epoch's wall
            time is divided in proportion to the steps.
        row: losses and accuracies in %, by column of metrics.jsonl.

    """

    epoch: int
    inside: bool
    step: int
    examples: int
    train_seconds: float
    epochs: float
    wall_seconds: float
    row: Mapping[str, Any]

    def accuracy(self, split: str) -> float | None:
        """Return the accuracy on `split` in %; None if it was not measured."""
        value = self.row.get(f"{split}_accuracy")
        return None if value is None else float(value)


def evaluations(history: History, batch: int) -> Iterator[Evaluation]:
    """Yield a run's evaluations in order.

    Args:
        history: the run's rows of metrics.jsonl.
        batch: examples per optimizer step; only an epoch's last step may have fewer.

    """
    steps = examples = 0
    seconds = wall = 0.0
    for row in history:
        for inner in row.get("evaluations", ()):
            done = inner["step"] - steps
            yield Evaluation(
                epoch=row["epoch"],
                inside=True,
                step=inner["step"],
                examples=examples + done * batch,
                train_seconds=seconds + inner["train_seconds"],
                epochs=row["epoch"] - 1 + done / _steps_per_epoch(history),
                wall_seconds=wall + row["wall_seconds"] * done / (row["step"] - steps),
                row=inner,
            )
        epochs = row["epoch"] - 1 + (row["step"] - steps) / _steps_per_epoch(history)
        examples += row.get("images") or (row["step"] - steps) * batch
        steps = row["step"]
        seconds, wall = seconds + row["train_seconds"], wall + row["wall_seconds"]
        yield Evaluation(row["epoch"], False, steps, examples, seconds, epochs, wall, row)


def _steps_per_epoch(history: History) -> int:
    # A run that ended inside its first epoch does not show how long an epoch is.
    return int(history[0]["step"])


def first_at(history: History, batch: int, split: str, target: float) -> Evaluation | None:
    """Return the first evaluation on `split` at or above `target` %; None if there is none."""
    reached = (e for e in evaluations(history, batch) if (e.accuracy(split) or 0.0) >= target)
    return next(reached, None)


def best_evaluations(history: History, batch: int, split: str) -> list[Evaluation]:
    """Return the evaluations whose accuracy on `split` exceeds that of every earlier one."""
    best, found = -1.0, []
    for evaluation in evaluations(history, batch):
        accuracy = evaluation.accuracy(split)
        if accuracy is not None and accuracy > best:
            best = accuracy
            found.append(evaluation)
    return found


def target_split(choices: Mapping[str, Any]) -> str:
    """Return the split on which a run's target counts: `test` or `holdout`.

    A run that stops at its target does so on the hold-out split. Other runs have the split of their
    reported accuracy.

    Args:
        choices: the run's choices by dotted key.

    """
    stops, untested = choices.get("stop_at_target"), choices.get("data.test_size") == 0
    return "holdout" if stops or untested else "test"
