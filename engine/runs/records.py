"""Read runs back: directories, summaries and histories, published or on this disk.

A group's runs are the directories under results/runs/<group>, and the lines of a published
results/<group>/runs.jsonl whose runs are not on this machine. A claimed run without a summary is
`missing`, so that reports list every run that was requested.
"""

import functools
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config.compose import sets
from engine.config.optimizers import TITLES
from engine.config.schema import Config, check_group_name
from engine.errors import UserError, key_error
from engine.runs.history import Evaluation, evaluations, first_at
from engine.system.files import read_json_lines

RESULTS = Path("results")
COMPLETED, DIVERGED = "completed", "diverged"
FAILED, INTERRUPTED, MISSING = "failed", "interrupted", "missing"
# Training a run with one of these again would only repeat its outcome.
FINISHED = (COMPLETED, DIVERGED)
CHECKPOINT = "checkpoint.pt"
# Marker file in a directory that resume=false has cleared.
CLEARED = ".afresh"
# Keys that reports and sweeps read from every summary, and from every line of runs.jsonl.
NEEDED = {
    "status", "run", "model", "data", "optimizer", "batch", "seed", "epochs", "steps", "choices",
    "test_accuracy", "train_seconds", "images_per_second",
}  # fmt: skip


def runs_directory(group: str) -> Path:
    """Return the directory of a group's runs."""
    return RESULTS / "runs" / group


def name_of(config: Config) -> str:
    """Return the name of a run's directory, which depends on the run's choices alone.

    Earlier versions used the text of data.root as typed. A run that exists under such a name keeps
    it.
    """
    name, typed = config.run_name(), config.run_name(as_typed=True)
    if typed == name:
        return name
    begun = os.path.lexists(runs_directory(config.group) / typed)
    return typed if begun or typed in published_runs(config.group) else name


def check_inside(group: str, run: str = "") -> None:
    """Raise UserError if a link leads a folder of the group, or of the run, out of results."""
    # Each parent may itself be a link, such as one to a larger disk.
    for parent in (RESULTS, RESULTS / "runs"):
        place, end = parent / group / run, Path(os.path.realpath(parent / group / run))
        if not end.is_relative_to(os.path.realpath(parent)):
            raise key_error("group", group, f"{place} is a link that leads out of {parent}")


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error if a run's directory, or a report's file or folder, cannot be written."""
    reason = error.strerror
    for place in (path, *path.parents):
        # The system reports a dangling link, such as one to an unmounted disk, as "File exists".
        if place.is_symlink() and not place.exists():
            reason = f"{place} is a link to {os.readlink(place)}, which does not exist"
    allowed = f"cannot be written ({reason}); needs a folder you may write to"
    return key_error("results", path, allowed)


def command_of(arguments: Sequence[str]) -> str:
    """Return the shell command that trains a run; it leaves out what only the terminal shows."""
    kept = [argument for argument in arguments if not sets("progress", argument)]
    return shlex.join(["python", "train.py", *kept])


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Return a run's summary.json; None if it cannot be read or lacks a key of `NEEDED`."""
    try:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(summary, dict) and summary.keys() >= NEEDED
    return summary if known else None


def published_runs(group: str) -> dict[str, dict[str, Any]]:
    """Return the finished runs in a group's runs.jsonl by name, from this machine and others.

    Raises UserError if a line is damaged.
    """
    path = (RESULTS / group / "runs.jsonl").absolute()
    try:
        status = path.stat()
    except OSError:
        return {}
    return _read_published(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read_published(path: Path, _modified: int, _size: int) -> dict[str, dict[str, Any]]:
    # A sweep looks up each of its runs. The file is read again only after it has changed.
    lines = list(read_json_lines(path))
    for number, line in enumerate(lines, 1):
        if absent := {*NEEDED, "history"} - line.keys():
            raise UserError(f"{path}: line {number} has no {min(absent)}; fix or remove it")
    return {line["run"]: line for line in lines}


def restarted(directory: Path) -> bool:
    """Return True if resume=false has restarted the run here and it has no new outcome yet.

    Until then its published outcome does not count, and the same command resumes the new run.
    """
    if not (directory / CLEARED).exists():
        return False
    summary = read_summary(directory)
    return summary is None or summary["status"] not in FINISHED


@dataclass(frozen=True)
class Record:
    """One run as reports see it.

    Attributes:
        summary: the content of summary.json; with status missing, a part of it from the run's
            configuration.
        history: one row per finished epoch, as in metrics.jsonl.

    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def status(self) -> str:
        """Return completed, diverged, failed, interrupted or missing."""
        return str(self.summary["status"])

    @property
    def choices(self) -> dict[str, Any]:
        """Return the run's choices by dotted key."""
        return dict(self.summary["choices"])

    @property
    def counted(self) -> bool:
        """Return True if the run has an accuracy that counts in means."""
        return self.status in FINISHED

    def accuracy(self, split: str) -> float | None:
        """Return the final accuracy on `split` in %; None if it is not known.

        A diverged run has the accuracy of chance on each split.
        """
        # The summary holds chance as the test accuracy, even if the run evaluates no test split.
        key = "test" if self.status == DIVERGED else split
        value = self.summary.get(f"{key}_accuracy") if self.counted else None
        return None if value is None else float(value)

    def first_at(self, split: str, target: float) -> Evaluation | None:
        """Return the first evaluation on `split` at or above `target` %; None if there is none."""
        return first_at(self.history, self.summary["batch"], split, target)

    def curve(self, split: str) -> tuple[list[float], list[float], list[float]]:
        """Return epochs, wall seconds since the start and accuracies in % of all evaluations."""
        epochs, seconds, accuracies = [], [], []
        for evaluation in evaluations(self.history, self.summary["batch"]):
            accuracy = evaluation.accuracy(split)
            if accuracy is not None:
                epochs.append(evaluation.epochs)
                seconds.append(evaluation.wall_seconds)
                accuracies.append(accuracy)
        return epochs, seconds, accuracies


def load_records(group: str) -> list[Record]:
    """Return all runs of a group, sorted by optimizer, batch, base rate, seed and name.

    Raises UserError if the group's name is not allowed or one of its files is damaged.
    """
    check_group_name(group)
    check_inside(group)
    records = {}
    for name, line in published_runs(group).items():
        summary = {key: value for key, value in line.items() if key != "history"}
        records[name] = Record(summary, line["history"])
    for directory in sorted(runs_directory(group).glob("*/.hydra/config.yaml")):
        record = _load_record(directory.parent.parent)
        # Another machine may have published a run that this one has only claimed.
        name = record.summary["run"]
        if record.counted or name not in records or restarted(directory.parent.parent):
            records[name] = record

    def place(record: Record) -> tuple[tuple[int, str], int, float, int, str]:
        s, rate = record.summary, record.choices.get("optimizer.base_lr", 0.0)
        return (optimizer_order(s["optimizer"]), s["batch"], rate, s["seed"], s["run"])

    return sorted(records.values(), key=place)


def _load_record(directory: Path) -> Record:
    summary = read_summary(directory)
    if summary is None:
        try:
            raw = yaml.safe_load((directory / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
            config = Config.from_hydra(raw)
        except (OSError, ValueError, yaml.YAMLError, UserError, AttributeError) as error:
            raise UserError(f"{directory}: its .hydra/config.yaml cannot be read") from error
        summary = {
            "status": MISSING,
            "run": directory.name,
            "model": config.model.name,
            "data": config.data.name,
            "optimizer": config.optimizer.label,
            "batch": config.batch,
            "seed": config.seed,
            "epochs": config.epochs,
            "target_accuracy": config.target_accuracy,
            "command": _command(directory),
            "choices": config.choices(),
        }
    return Record(summary, list(read_json_lines(directory / "metrics.jsonl")))


def _command(directory: Path) -> str | None:
    """Return the command of a run without a summary; None if its overrides cannot be read."""
    try:
        overrides = yaml.safe_load(
            (directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
        )
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return command_of([str(o) for o in overrides]) if isinstance(overrides, list) else None


def optimizer_order(name: str) -> tuple[int, str]:
    """Return the sort key of an optimizer: the baseline's comes first, unknown ones last."""
    known, own = list(TITLES), name.partition("-")[0]
    return (known.index(own) if own in known else len(known), name)
