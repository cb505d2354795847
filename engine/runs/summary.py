"""What is written of a run, as plain values: an epoch's row, the summary, JSON without NaN.

Where and when they are written is record.py's.
"""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.runs.record import Run
    from engine.training.evaluate import Evaluations
    from engine.training.loop import TrainedEpoch

# What reports and sweeps use of every summary, and so of every line of a published runs.jsonl.
NEEDED = {
    "status", "run", "model", "data", "optimizer", "batch", "seed", "epochs", "steps", "choices",
    "test_accuracy", "train_seconds", "images_per_second",
}  # fmt: skip
# What a run finds out of itself and its machine; null where it ended before it did.
FACTS = (
    "peak_memory_bytes", "parameters", "device", "world_size", "threads", "precision", "torch",
    "commit",
)  # fmt: skip


def epoch_row(
    epoch: int,
    trained: "TrainedEpoch",
    measured: "Evaluations | None",
    wall_seconds: float,
) -> dict[str, Any]:
    """Make an epoch's line of metrics.jsonl; what was not measured is null.

    Where an average of the weights is evaluated, the weights' own figures are beside it as raw_*.
    """
    tested = measured.test if measured else None
    held = measured.holdout if measured else None
    row = {
        "epoch": epoch,
        "step": trained.last_step,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "test_loss": tested.loss if tested else None,
        "test_accuracy": tested.accuracy if tested else None,
        "holdout_loss": held.loss if held else None,
        "holdout_accuracy": held.accuracy if held else None,
        "learning_rate": trained.rates[-1],
        "gradient_norm": trained.gradient_norms[-1],
        "images": trained.images,
        "train_seconds": trained.seconds,
        "wall_seconds": wall_seconds,
        "images_per_second": trained.images / trained.seconds,
    }
    if measured is not None and (raw := measured.raw) is not None:
        for name, split in (("test", raw.test), ("holdout", raw.holdout)):
            row[f"raw_{name}_loss"] = split.loss if split else None
            row[f"raw_{name}_accuracy"] = split.accuracy if split else None
    if trained.noise:
        row |= dataclasses.asdict(trained.noise[-1]) | {
            "noise_scale": trained.noise[-1].noise_scale
        }
    return row


def summarize(run: "Run", status: str) -> dict[str, Any]:
    """Gather a run's outcome from its history; the headline is the final model's accuracy."""
    config, history = run.config, run.history
    last = history[-1] if history else {}
    tested = [row for row in history if row["test_accuracy"] is not None]
    best = max(tested, key=lambda row: row["test_accuracy"], default={})
    train_seconds = sum(row["train_seconds"] for row in history)
    images = sum(row["images"] for row in history)
    extra = {}
    if config.ema.decay is not None:
        extra = {key: last.get(key) for key in ("raw_test_accuracy", "raw_holdout_accuracy")}
    if config.noise_scale:
        extra["noise_scale"] = last.get("noise_scale")
    return {
        "status": status,
        "run": run.name,
        "group": config.group,
        "model": config.model.name,
        "data": config.data.name,
        "optimizer": config.optimizer.name,
        "batch": config.batch,
        "micro_batch": config.micro_batch,
        "seed": config.seed,
        "epochs": config.epochs,
        "steps": last.get("step", 0),
        "base_lr": None,
        "peak_lr": None,
        "final_lr": None,
        "test_accuracy": last.get("test_accuracy"),
        "test_loss": last.get("test_loss"),
        "best_test_accuracy": best.get("test_accuracy"),
        "best_epoch": best.get("epoch"),
        "holdout_accuracy": last.get("holdout_accuracy"),
        "train_loss": last.get("train_loss"),
        "train_seconds": train_seconds,
        "wall_seconds": sum(row["wall_seconds"] for row in history),
        "images_per_second": images / train_seconds if train_seconds else None,
        "target_accuracy": config.target_accuracy,
        **dict.fromkeys(FACTS),
        "command": command_of(run.arguments),
        "choices": config.choices(),
        **extra,
    } | run.found


def command_of(arguments: Sequence[str]) -> str:
    """Write the command that trains a run."""
    return shlex.join(["python", "train.py", *arguments])


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Read a run's summary.json; None where there is none, or something else."""
    try:
        summary = json.loads((directory / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(summary, dict) and summary.keys() >= NEEDED
    return summary if known else None
