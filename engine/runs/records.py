"""Runs as they are read back: directories, summaries and histories, published or on this disk.

A group's runs are its directories under results/runs/<group>, and the lines of a published
results/<group>/runs.jsonl whose runs are not on this machine. A run that was claimed and left no
summary is `missing`; no run that was asked for is left out.
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

from engine.config.optimizers import TITLES
from engine.config.schema import Config, check_group_name
from engine.errors import UserError, key_error
from engine.system.files import read_json_lines

RESULTS = Path("results")
COMPLETED, DIVERGED = "completed", "diverged"
FAILED, INTERRUPTED, MISSING = "failed", "interrupted", "missing"
# Outcomes that training again would only repeat.
FINISHED = (COMPLETED, DIVERGED)
CHECKPOINT = "checkpoint.pt"
# Marks a directory that resume=false has cleared.
CLEARED = ".afresh"
# What reports and sweeps use of every summary, and so of every line of a published runs.jsonl.
NEEDED = {
    "status", "run", "model", "data", "optimizer", "batch", "seed", "epochs", "steps", "choices",
    "test_accuracy", "train_seconds", "images_per_second",
}  # fmt: skip


def runs_directory(group: str) -> Path:
    """Return where a group's runs lie."""
    return RESULTS / "runs" / group


def name_of(config: Config) -> str:
    """Name a run by its choices; one that was begun under the text as typed keeps that name."""
    name, typed = config.run_name(), config.run_name(as_typed=True)
    if typed == name:
        return name
    begun = os.path.lexists(runs_directory(config.group) / typed)
    return typed if begun or typed in published_runs(config.group) else name


def check_inside(group: str, run: str = "") -> None:
    """Raise UserError where links lead a group's folders, or a run's, out of results."""
    # Each may be a link itself, to a larger disk.
    for parent in (RESULTS, RESULTS / "runs"):
        place, end = parent / group / run, Path(os.path.realpath(parent / group / run))
        if not end.is_relative_to(os.path.realpath(parent)):
            raise key_error("group", group, f"{place} is a link that leads out of {parent}")


def cannot_write(path: Path, error: OSError) -> UserError:
    """Word that a run's directory, or a report's folder or file, cannot be written."""
    reason = error.strerror
    for place in (path, *path.parents):
        # Such a link, to a disk that is not mounted for one, is "File exists" to the system.
        if place.is_symlink() and not place.exists():
            reason = f"{place} is a link to {os.readlink(place)}, which is not there"
    allowed = f"cannot be written ({reason}); needs a folder you may write to"
    return key_error("results", path, allowed)


def command_of(arguments: Sequence[str]) -> str:
    """Write the command that trains a run."""
    return shlex.join(["python", "train.py", *arguments])


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Read a run's summary.json; None where there is none, or something else."""
    try:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(summary, dict) and summary.keys() >= NEEDED
    return summary if known else None


def published_runs(group: str) -> dict[str, dict[str, Any]]:
    """Read a group's runs.jsonl: the runs that are finished here or on another machine, by name."""
    path = (RESULTS / group / "runs.jsonl").absolute()
    try:
        status = path.stat()
    except OSError:
        return {}
    return _read_published(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read_published(path: Path, _modified: int, _size: int) -> dict[str, dict[str, Any]]:
    # A sweep asks for each of its runs; the file is read again only once it has changed.
    lines = list(read_json_lines(path))
    for number, line in enumerate(lines, 1):
        if absent := {*NEEDED, "history"} - line.keys():
            raise UserError(f"{path}: line {number} has no {min(absent)}; mend or remove it")
    return {line["run"]: line for line in lines}


def begun_afresh(directory: Path) -> bool:
    """Tell whether resume=false has begun a run again here, and it has no new outcome yet.

    Until then what was published of it before is no outcome, and the same command goes on.
    """
    if not (directory / CLEARED).exists():
        return False
    summary = read_summary(directory)
    return summary is None or summary["status"] not in FINISHED


@dataclass(frozen=True)
class Record:
    """One run as the report sees it; `status` missing: it was planned and has no summary."""

    summary: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def status(self) -> str:
        """Return completed, diverged, failed, interrupted or missing."""
        return str(self.summary["status"])

    @property
    def choices(self) -> dict[str, Any]:
        """Return what was chosen for the run, by dotted key."""
        return dict(self.summary["choices"])

    @property
    def counted(self) -> bool:
        """Tell whether the run has an accuracy that enters a mean."""
        return self.status in FINISHED

    def accuracy(self, split: str) -> float | None:
        """Return the final accuracy on `split`, %: of a diverged run chance, None if not known."""
        # Chance stands under the test split, whether or not that was to be evaluated.
        key = "test" if self.status == DIVERGED else split
        value = self.summary.get(f"{key}_accuracy") if self.counted else None
        return None if value is None else float(value)

    def first_at(self, split: str, target: float) -> tuple[int, float] | None:
        """Return epoch and training seconds of the first evaluation at or above `target` %."""
        seconds = 0.0
        for row in self.history:
            seconds += row["train_seconds"]
            accuracy = row[f"{split}_accuracy"]
            if accuracy is not None and accuracy >= target:
                return row["epoch"], seconds
        return None

    def curve(self, split: str) -> tuple[list[int], list[float], list[float]]:
        """Return epochs, wall seconds since the start and accuracies, where evaluated."""
        epochs, seconds, accuracies, passed = [], [], [], 0.0
        for row in self.history:
            passed += row["wall_seconds"]
            if row[f"{split}_accuracy"] is not None:
                epochs.append(row["epoch"])
                seconds.append(passed)
                accuracies.append(row[f"{split}_accuracy"])
        return epochs, seconds, accuracies


def load_records(group: str) -> list[Record]:
    """Read every run of a group, sorted by optimizer, batch, rate, seed and name."""
    check_group_name(group)
    check_inside(group)
    records = {}
    for name, line in published_runs(group).items():
        summary = {key: value for key, value in line.items() if key != "history"}
        records[name] = Record(summary, line["history"])
    for directory in sorted(runs_directory(group).glob("*/.hydra/config.yaml")):
        record = _load_record(directory.parent.parent)
        # A run that this machine has only planned may be published by another.
        name = record.summary["run"]
        if record.counted or name not in records or begun_afresh(directory.parent.parent):
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
            "optimizer": config.optimizer.name,
            "batch": config.batch,
            "seed": config.seed,
            "epochs": config.epochs,
            "target_accuracy": config.target_accuracy,
            "command": _command(directory),
            "choices": config.choices(),
        }
    return Record(summary, list(read_json_lines(directory / "metrics.jsonl")))


def _command(directory: Path) -> str | None:
    """Return the command of a run that left no summary; None where it was killed before that."""
    try:
        overrides = yaml.safe_load(
            (directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
        )
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return command_of([str(o) for o in overrides]) if isinstance(overrides, list) else None


def optimizer_order(name: str) -> tuple[int, str]:
    """Return the place of an optimizer in tables: the baseline's first, unknown ones last."""
    known = list(TITLES)
    return (known.index(name) if name in known else len(known), name)
