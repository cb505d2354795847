"""A group's runs, gathered into the rows of its table: each number is read from the runs.

A group's runs are its directories under results/runs/<group>, and the lines of a published
results/<group>/runs.jsonl whose runs are not on this machine. A run that was claimed and left no
summary is `missing`; no run that was asked for is left out.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config.schema import Config, check_group_name
from engine.errors import UserError
from engine.report.titles import KIND, apart, differences, mixed, shared, told
from engine.runs.record import begun_afresh, check_inside, published_runs, runs_directory
from engine.runs.summary import command_of, read_summary
from engine.system.files import read_json_lines


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
        return self.status in ("completed", "diverged")

    def accuracy(self, split: str) -> float | None:
        """Return the final accuracy on `split`, %: of a diverged run chance, None if not known."""
        # Chance stands under the test split, whether or not that was to be evaluated.
        key = "test" if self.status == "diverged" else split
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


@dataclass(frozen=True)
class Row:
    """The runs that differ in nothing but the seed.

    kind: model and data where the group has several; length: epochs, likewise; told: other choices
    that differ from those of its optimizer and batch; shared: such choices as it has in common with
    the rows of its line through batches or epochs; apart: those in which rows of other batches,
    kinds or lengths alone differ; mixed: a note where its runs should not be averaged lightly;
    split: whose accuracies are told, test, or holdout where no run of the group evaluates the test
    split.
    """

    optimizer: str
    batch: int
    kind: str
    length: str
    told: str
    shared: str
    apart: str
    mixed: str
    split: str
    records: Sequence[Record]

    @property
    def settings(self) -> str:
        """Return the column of table.csv: what no other column says."""
        return _joined(self.told, self.apart, self.mixed)

    @property
    def epochs(self) -> int:
        """Return the epochs of each of its runs."""
        return int(self.records[0].summary["epochs"])

    @property
    def line(self) -> str:
        """Return what the rows have in common that a line through the batches joins."""
        return _joined(self.optimizer.upper(), self.kind, self.length, self.shared)

    @property
    def scope(self) -> tuple[str, str]:
        """Return what rows have in common that differ in optimizer, batch and settings."""
        return self.kind, self.length

    @property
    def series(self) -> tuple[str, str, str]:
        """Return what rows have in common that differ in batch and settings."""
        return self.optimizer, *self.scope

    @property
    def length_line(self) -> str:
        """Return what rows have in common that differ in the epochs alone."""
        return _joined(self.optimizer.upper(), str(self.batch), self.kind, self.shared)

    @property
    def title(self) -> str:
        """Return what a table of one optimizer calls the row."""
        return _joined(str(self.batch), self.kind, self.length, self.told, self.mixed)

    def of(self, *statuses: str) -> list[Record]:
        """Return the row's runs of the given statuses."""
        return [record for record in self.records if record.status in statuses]

    def mean(self, key: str) -> float | None:
        """Return the mean of a summary's figure over the completed runs, else the diverged ones."""
        ended = self.of("completed") or self.of("diverged")
        return _mean(record.summary.get(key) for record in ended)

    def accuracies(self) -> list[float]:
        """Return the final accuracies, % each; a diverged run's is chance."""
        return [value for _, value in self.results()]

    def accuracy(self) -> float | None:
        """Return the mean of the final accuracies, %."""
        return _mean(self.accuracies())

    def train_accuracy(self) -> float | None:
        """Return the mean training accuracy of the last epoch, %, over the runs that completed."""
        ended = self.of("completed")
        return _mean(r.history[-1].get("train_accuracy") for r in ended if r.history)

    def results(self) -> list[tuple[str, float]]:
        """Return status and final accuracy, %, for each run that has one."""
        found = [(r.status, r.accuracy(self.split)) for r in self.records]
        return [(status, value) for status, value in found if value is not None]

    def spread(self) -> float | None:
        """Return the sample standard deviation of the accuracies, given two or more."""
        accuracies = self.accuracies()
        return statistics.stdev(accuracies) if len(accuracies) > 1 else None

    def figures(self, key: str) -> list[tuple[str, float]]:
        """Return status and a summary's figure for each run that counts and has it."""
        found = [(r.status, r.summary.get(key)) for r in self.records if r.counted]
        return [(status, value) for status, value in found if value is not None]

    def times_to(self, target: float | None) -> list[tuple[str, float]]:
        """Return status and seconds to the target for each run that reaches it."""
        if target is None:
            return []
        found = [(r.status, r.first_at(self.split, target)) for r in self.records if r.counted]
        return [(status, first[1]) for status, first in found if first is not None]

    def first_at(self, target: float | None) -> tuple[float, float] | None:
        """Return mean epoch and training seconds to the target; None if any run misses it."""
        if target is None or not self.accuracies():
            return None
        firsts = [r.first_at(self.split, target) for r in self.records if r.counted]
        reached = [first for first in firsts if first is not None]
        if len(reached) < len(firsts):
            return None
        epochs, seconds = zip(*reached, strict=True)
        return statistics.fmean(epochs), statistics.fmean(seconds)


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

    def place(record: Record) -> tuple[str, int, float, int, str]:
        s, rate = record.summary, record.choices.get("optimizer.base_lr", 0.0)
        return (_optimizer_order(s["optimizer"]), s["batch"], rate, s["seed"], s["run"])

    return sorted(records.values(), key=place)


def _load_record(directory: Path) -> Record:
    summary = read_summary(directory)
    if summary is None:
        try:
            raw = yaml.safe_load((directory / ".hydra" / "config.yaml").read_text())
            config = Config.from_hydra(raw)
        except (OSError, ValueError, yaml.YAMLError, UserError, AttributeError) as error:
            raise UserError(f"{directory}: its .hydra/config.yaml cannot be read") from error
        summary = {
            "status": "missing",
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
        overrides = yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return command_of([str(o) for o in overrides]) if isinstance(overrides, list) else None


def _optimizer_order(name: str) -> str:
    """Put the baseline's optimizer first."""
    return "" if name == "sgd" else name


def make_rows(records: Sequence[Record]) -> list[Row]:
    """Gather the runs that differ in nothing but the seed; order as `load_records`.

    Where an ablation's rows differ in more, those that change less come first.
    """
    rows: dict[str, list[Record]] = {}
    for record in records:
        chosen = {key: value for key, value in record.choices.items() if key != "seed"}
        rows.setdefault(json.dumps(chosen, sort_keys=True), []).append(record)
    tested = any(record.choices.get("data.test_size") != 0 for record in records)
    made = [
        Row(
            members[0].summary["optimizer"],
            members[0].summary["batch"],
            differences(members, records, KIND),
            differences(members, records, ("epochs",)),
            named := told(members, records),
            shared(named, members, records),
            apart(members, records),
            mixed(members),
            "test" if tested else "holdout",
            members,
        )
        for members in rows.values()
    ]

    def place(row: Row) -> tuple[str, int, float, int]:
        rate = row.records[0].choices.get("optimizer.base_lr", 0.0)
        return (_optimizer_order(row.optimizer), row.batch, rate, row.told.count("="))

    return sorted(made, key=place)


def by_line(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Gather rows that differ in the batch alone, smallest first, under a title."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        lines.setdefault(row.line, []).append(row)
    return lines


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))


def baseline_row(rows: Sequence[Row]) -> Row | None:
    """Return the smallest-batch SGD row; of several, the first that has not diverged."""
    sgd = [row for row in rows if row.optimizer == "sgd"]
    return min(sgd, key=lambda row: (row.batch, not row.of("completed")), default=None)


@dataclass(frozen=True)
class Target:
    """The accuracy in % whose time is told, if any, and the rows that are held against it.

    scope: the kind and length of these rows; None: all rows.
    """

    accuracy: float | None
    scope: tuple[str, str] | None = None

    def of(self, row: Row) -> float | None:
        """Return the accuracy where the row is held against it."""
        return self.accuracy if self.scope in (None, row.scope) else None


def target_of(rows: Sequence[Row]) -> Target:
    """Return the target as configured, else half a point less than the baseline, for its like."""
    asked = {r.summary.get("target_accuracy") for row in rows for r in row.records} - {None}
    if len(asked) == 1:
        return Target(next(iter(asked)))
    baseline = baseline_row(rows)
    accuracy = baseline.accuracy() if baseline else None
    if baseline is None or accuracy is None:
        return Target(None)
    return Target(accuracy - 0.5, baseline.scope)
