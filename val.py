"""Evaluate a checkpoint on its test split; write no file.

python val.py checkpoint=results/runs/default/RUN
python val.py checkpoint=FILE data.root=DIR json=true
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from engine.cli import exit_status, read_command_line
from engine.config.schema import EvaluationConfig
from engine.errors import UserError, key_error
from engine.runs.history import best_evaluations
from engine.runs.records import CHECKPOINT
from engine.system.files import json_line
from engine.system.text import shown

# Runs that are listed if a checkpoint does not exist.
NEAR = 3


def validate(config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate a checkpoint as its run did; return the values that `json=true` prints.

    Raises UserError if the checkpoint cannot be read, the data has other classes, or there is no
    test split.
    """
    from engine.data.dataset import load_data
    from engine.data.folder import differences
    from engine.system.runtime import choose_device
    from engine.training.build import build_model
    from engine.training.checkpoint import load_checkpoint
    from engine.training.evaluate import chance, evaluate
    from engine.training.setup import runtime_of

    path = Path(config.checkpoint or "")
    try:
        near = "" if path.exists() else checkpoints_near(path)
        path = path / CHECKPOINT if path.is_dir() else path
    except OSError as error:
        raise key_error("checkpoint", path, f"cannot be read ({error.strerror})") from error
    if near:
        raise key_error("checkpoint", path, f"there is no such file; {near}")
    saved = load_checkpoint(path, choose_device(config.device))
    place = {key: value for key, value in dataclasses.asdict(config.data).items() if value}
    run = dataclasses.replace(
        saved.config,
        device=config.device,
        threads=config.threads or saved.config.threads,
        data=dataclasses.replace(saved.config.data, **place),
    )
    runtime = runtime_of(run)
    data = load_data(run.data, keep=False)
    if data.classes != saved.classes:
        differ = differences("it", data.classes, "the checkpoint", saved.classes)
        allowed = f"must hold the checkpoint's classes; {differ}"
        raise key_error("data.root", run.data.root, allowed)
    model = build_model(run.model, len(data.classes))
    saved.restore_evaluated(model)
    runtime.place(model)
    result: dict[str, Any] = {
        "checkpoint": str(path),
        "epoch": saved.epoch,
        "epochs": run.epochs,
        "saved": saved.describe(),
        "diverged": saved.diverged,
        "ema_decay": run.ema.decay,
        "precision": runtime.precision,
        "test_accuracy": chance(len(data.classes)),
        "test_loss": None,
        "per_class_accuracy": None,
        "history": best_epochs(saved.history, run.batch),
    }
    if not len(data.test):
        raise key_error("data.test_size", 0, "the checkpoint's run had no test split")
    if not saved.diverged:
        measured = evaluate(model, data.test, saved.normalization, len(data.classes), runtime)
        result["test_accuracy"] = measured.accuracy
        result["test_loss"] = measured.loss
        result["per_class_accuracy"] = dict(
            zip(data.classes, measured.per_class_accuracy, strict=True)
        )
    return result


def checkpoints_near(path: Path) -> str:
    """Return which run directories could be meant by a path that does not exist; may be empty."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    runs = sorted(found.parent for found in folder.glob(f"*/{CHECKPOINT}"))
    if not runs:
        return ""
    more = f" and {len(runs) - NEAR} more" if len(runs) > NEAR else ""
    return f"runs with a checkpoint there: {', '.join(map(str, runs[:NEAR]))}{more}"


def best_epochs(history: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Return the evaluations whose test accuracy exceeds that of every earlier one.

    Each has its epoch and accuracy; one inside an epoch also has its step.
    """
    return [
        {"epoch": found.epoch, "test_accuracy": found.accuracy("test")}
        | ({"step": found.step} if found.inside else {})
        for found in best_evaluations(history, batch, "test")
    ]


def describe(result: dict[str, Any]) -> str:
    """Return the result of `validate` as text."""
    lines = [f"{result['checkpoint']}: {result['saved']}"]
    if result["diverged"]:
        chance_text = f"{result['test_accuracy']:.2f} %"
        lines.append(f"diverged: its accuracy counts as chance level, {chance_text}")
    else:
        decay = result["ema_decay"]
        note = "" if decay is None else f" (weights averaged, ema.decay={decay:g})"
        lines.append(f"test accuracy  {result['test_accuracy']:.2f} %{note}")
        lines.append(f"test loss      {result['test_loss']:.4f}")
        lines.append(f"precision      {result['precision']}")
        names = [shown(name) for name in result["per_class_accuracy"]]
        width = max(map(len, names))
        for name, accuracy in zip(names, result["per_class_accuracy"].values(), strict=True):
            figure = "no examples" if accuracy is None else f"{accuracy:6.2f} %"
            lines.append(f"  {name:<{width}}  {figure}")
    lines.append("each epoch that was the best so far (test accuracy, %):")
    best = []
    for row in result["history"]:
        step = f" (step {row['step']})" if "step" in row else ""
        best.append(f"{row['epoch']}{step}: {row['test_accuracy']:.2f}")
    lines.append("  " + (", ".join(best) or "none was evaluated"))
    return "\n".join(lines)


def main() -> int:
    """Run the command in `sys.argv`; return the exit status."""
    command = read_command_line(sys.argv[1:], "val", EvaluationConfig, __doc__)
    if command.answer is not None:
        command.answer()
        return 0
    if command.multirun:
        raise UserError("-m: val.py evaluates one checkpoint at a time")
    result = validate(command.jobs[0].config)
    if command.jobs[0].config.json:
        print(json_line(result), end="")
    else:
        print(describe(result))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
