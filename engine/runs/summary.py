"""Make a run's summary.json from its configuration and history."""

from typing import Any

from engine.config.schema import Config
from engine.runs.history import History, best_evaluations, first_at, target_split
from engine.system.sharing import combine

# Facts about the run and its machine; null in the summary of a run that ended before it had them.
FACTS = (
    "peak_memory_bytes", "parameters", "device", "world_size", "threads", "runs_at_once",
    "precision", "torch", "commit",
)  # fmt: skip


def summarize(
    config: Config, name: str, status: str, history: History, command: str
) -> dict[str, Any]:
    """Return a run's summary from its history; `test_accuracy` is that of the final model.

    Args:
        config: the run's configuration.
        name: the run's name.
        status: completed, diverged, failed or interrupted.
        history: one row per finished epoch, as in metrics.jsonl.
        command: the shell command that trains the run.

    """
    last = history[-1] if history else {}
    best = next(reversed(best_evaluations(history, config.batch, "test")), None)
    first, target = None, config.target_accuracy
    if target is not None:
        first = first_at(history, config.batch, target_split(config.choices()), target)
    train_seconds = sum(row["train_seconds"] for row in history)
    images = sum(row["images"] for row in history)
    extra = {}
    if config.ema.decay is not None:
        extra = {key: last.get(key) for key in ("raw_test_accuracy", "raw_holdout_accuracy")}
    if config.noise_scale:
        extra["noise_scale"] = last.get("noise_scale")
    return {
        "status": status,
        "run": name,
        "group": config.group,
        "model": config.model.name,
        "data": config.data.name,
        "optimizer": config.optimizer.label,
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
        "best_test_accuracy": best and best.row["test_accuracy"],
        "best_epoch": best and best.epoch,
        "holdout_accuracy": last.get("holdout_accuracy"),
        "train_loss": last.get("train_loss"),
        "train_seconds": train_seconds,
        "startup_seconds": sum(row.get("startup_seconds", 0.0) for row in history),
        "shared_machine": combine(row.get("shared_machine") for row in history),
        "wall_seconds": sum(row["wall_seconds"] for row in history),
        "images_per_second": images / train_seconds if train_seconds else None,
        "target_accuracy": config.target_accuracy,
        "steps_to_target": first and first.step,
        "examples_to_target": first and first.examples,
        "seconds_to_target": first and first.train_seconds,
        **dict.fromkeys(FACTS),
        "command": command,
        "choices": config.choices(),
        **extra,
    }
