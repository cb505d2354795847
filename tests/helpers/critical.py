"""Made-up groups whose runs stop at a target accuracy, with a known critical batch size."""

import math

from tests.helpers.report import put
from tests.helpers.runs import config

STOP = {"stop_at_target": True, "target_accuracy": 70.0}
EIGHT = tuple(64 * 2**k for k in range(8))


def history(steps, split="holdout", accuracies=(50.0, 69.9, 71.0), **extra):
    """Return rows of metrics.jsonl: evaluations at a third, two thirds and the end of the steps."""
    other = {"holdout": "test", "test": "holdout"}[split]
    return [
        {
            "epoch": number,
            "step": math.ceil(steps * number / len(accuracies)),
            f"{split}_accuracy": accuracy,
            f"{other}_accuracy": None,
            "train_accuracy": 60.0,
            "train_seconds": 10.0,
            "wall_seconds": 12.0,
            **extra,
        }
        for number, accuracy in enumerate(accuracies, 1)
    ]


def put_run(work, batch, steps, *overrides, accuracies=(50.0, 69.9, 71.0), stop=STOP, **changes):
    """Write the directory of a run of group `g` that reaches 70 % after some steps.

    Args:
        work: the working directory.
        batch: examples per step.
        steps: optimizer steps of the run.
        overrides: other overrides.
        accuracies: hold-out accuracies in %, the last one at the end of the run.
        stop: choices that the configuration of this version may not have.
        changes: entries of the summary, or the run's history.

    """
    words = [f"batch={batch}", "data.holdout=5000", *overrides]
    rows = history(steps, accuracies=accuracies)
    put(
        work, *words,
        **{
            "steps": rows[-1]["step"],
            "choices": config(*words).choices() | stop,
            "target_accuracy": 70.0,
            "holdout_accuracy": accuracies[-1],
            "history": rows,
        } | changes,
    )  # fmt: skip


def put_group(work, b_crit, batches=EIGHT, optimizer="sgd", seeds=(0,), s_min=3000.0):
    """Write runs whose steps to 70 % follow a critical batch size without noise."""
    for batch in batches:
        rate = 0.1 * math.sqrt(batch / batches[0])
        for seed in seeds:
            steps = round(s_min * (1 + b_crit / batch))
            put_run(
                work, batch, steps, f"optimizer={optimizer}", f"seed={seed}",
                base_lr=0.1, peak_lr=rate,
            )  # fmt: skip
