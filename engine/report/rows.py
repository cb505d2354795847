"""A group's runs, gathered into the rows of its table: each number is read from the runs."""

import functools
import json
import operator
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.config.optimizers import title_of
from engine.errors import key_error
from engine.report import titles
from engine.report.times import Timed
from engine.runs.records import (
    COMPLETED,
    DIVERGED,
    FINISHED,
    Record,
    load_records,
    optimizer_order,
    runs_directory,
)

# What a line of rows leads through.
Axis = Literal["batch", "epochs"]


@dataclass(frozen=True)
class Row:
    """The runs of a group that differ in nothing but the seed.

    choices: what was chosen for them; group: the choices of all rows of the group.
    """

    choices: titles.Choices
    group: Sequence[titles.Choices]
    records: Sequence[Record]

    @property
    def optimizer(self) -> str:
        """Return the name of the optimizer as in the configuration."""
        return self.choices["optimizer.name"]

    @property
    def optimizer_title(self) -> str:
        """Return the name of the optimizer as people write it."""
        return title_of(self.optimizer)

    @property
    def batch(self) -> int:
        """Return the examples in each step."""
        return self.choices["batch"]

    @property
    def epochs(self) -> int:
        """Return the epochs of each of its runs."""
        return self.choices["epochs"]

    @property
    def split(self) -> str:
        """Return `test`, or `holdout` where no run of the group evaluates the test split."""
        tested = any(choices.get("data.test_size") != 0 for choices in self.group)
        return "test" if tested else "holdout"

    @property
    def cell(self) -> tuple[Any, ...]:
        """Return what rows have in common that differ in the setting alone."""
        return titles.cell_of(self.choices)

    @functools.cached_property
    def scope(self) -> str:
        """Name model, data and epochs, each where the group has several."""
        return titles.differences(self.choices, self.group, titles.SCOPE)

    @functools.cached_property
    def setting(self) -> str:
        """Name the choices in which the row differs from other rows in the same cell."""
        return titles.setting(self.choices, self.group)

    @property
    def title(self) -> str:
        """Return what a table of one optimizer calls the row."""
        return _joined(str(self.batch), self.scope, self.setting, self._mixed)

    @property
    def settings_column(self) -> str:
        """Return what table.csv says under `settings`: what no other column says."""
        cell_setting = titles.cell_setting(self.choices, self.group)
        return _joined(self.setting, cell_setting, self._mixed)

    def line(self, axis: Axis) -> str:
        """Name what the row has in common with rows that differ along the axis alone."""
        fixed = [key for key in titles.SCOPE if key != axis]
        return _joined(
            self.optimizer_title,
            "" if axis == "batch" else str(self.batch),
            titles.differences(self.choices, self.group, fixed),
            titles.line_setting(self.choices, self.group),
        )

    @property
    def _mixed(self) -> str:
        return titles.mixed_provenance([r.summary for r in self.records if r.counted])

    def of(self, *statuses: str) -> list[Record]:
        """Return the row's runs of the given statuses."""
        return [record for record in self.records if record.status in statuses]

    def first(self, key: str) -> float | None:
        """Return a summary's figure of the first run that has it."""
        figures = [record.summary.get(key) for record in self.records]
        return next((figure for figure in figures if figure is not None), None)

    def mean(self, key: str) -> float | None:
        """Return the mean of a summary's figure over the completed runs, else the diverged ones."""
        ended = self.of(COMPLETED) or self.of(DIVERGED)
        return _mean(record.summary.get(key) for record in ended)

    @functools.cached_property
    def timed(self) -> Timed:
        """Return the runs that the row's times are of."""
        return Timed(self.of(COMPLETED) or self.of(DIVERGED))

    def mean_time(self, key: str) -> float | None:
        """Return the mean of a summary's figure over the runs whose times count."""
        return _mean(record.summary.get(key) for record in self.timed.records)

    def times(self, key: str) -> list[tuple[str, float]]:
        """Return status and a summary's figure for each run whose times count."""
        return _figures(self.timed.records, key)

    def accuracies(self) -> list[float]:
        """Return the final accuracies, % each; a diverged run's is chance."""
        return [value for _, value in self.results()]

    def accuracy(self) -> float | None:
        """Return the mean of the final accuracies, %."""
        return _mean(self.accuracies())

    def train_accuracy(self) -> float | None:
        """Return the mean training accuracy of the last epoch, %, over the runs that completed."""
        ended = self.of(COMPLETED)
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
        return _figures(self.of(*FINISHED), key)

    def times_to(self, target: float | None) -> list[tuple[str, float]]:
        """Return status and seconds to the target for each timed run that reaches it."""
        if target is None:
            return []
        found = [(r.status, r.first_at(self.split, target)) for r in self.timed.records]
        return [(status, first[1]) for status, first in found if first is not None]

    def first_at(self, target: float | None) -> tuple[float, float | None] | None:
        """Return mean epoch and training seconds to the target; None if any run misses it.

        The seconds are of the runs whose times count, and None if there are none.
        """
        if target is None or not self.reaches(target):
            return None
        firsts = [r.first_at(self.split, target) for r in self.records if r.counted]
        epochs = statistics.fmean(first[0] for first in firsts if first is not None)
        return epochs, _mean(seconds for _, seconds in self.times_to(target))

    def reaches(self, target: float | None) -> bool:
        """Return True if there are runs with an accuracy and each of them reaches the target."""
        if target is None or not self.accuracies():
            return False
        counted = [record for record in self.records if record.counted]
        return all(record.first_at(self.split, target) is not None for record in counted)


def records_of(group: str) -> list[Record]:
    """Read a group's runs; raise UserError where there are none."""
    if records := load_records(group):
        return records
    raise key_error("group", group, f"has no runs under {runs_directory(group)}")


def make_rows(records: Sequence[Record]) -> list[Row]:
    """Gather the runs that differ in nothing but the seed; order as `load_records`.

    Where an ablation's rows differ in more, those that change less come first.
    """
    members: dict[str, list[Record]] = {}
    for record in records:
        chosen = {key: value for key, value in record.choices.items() if key != "seed"}
        members.setdefault(json.dumps(chosen, sort_keys=True), []).append(record)
    group = [json.loads(chosen) for chosen in members]

    def place(row: Row) -> tuple[tuple[int, str], int, float, int]:
        rate = row.choices.get("optimizer.base_lr", 0.0)
        return (optimizer_order(row.optimizer), row.batch, rate, row.setting.count("="))

    rows = [
        Row(chosen, group, found) for chosen, found in zip(group, members.values(), strict=True)
    ]
    return sorted(rows, key=place)


def gather_lines(rows: Sequence[Row], axis: Axis) -> dict[str, list[Row]]:
    """Gather the rows that differ along the axis alone, smallest first, under their common name."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=operator.attrgetter(axis)):
        lines.setdefault(row.line(axis), []).append(row)
    return lines


def baseline_row(rows: Sequence[Row]) -> Row | None:
    """Return the smallest-batch SGD row; of several, the first that has not diverged."""
    sgd = [row for row in rows if row.optimizer == "sgd"]
    return min(sgd, key=lambda row: (row.batch, not row.of(COMPLETED)), default=None)


@dataclass(frozen=True)
class Target:
    """The accuracy in % that rows are held against, if any.

    baseline: the row that it is derived from, and whose scope the rows must share; None: it was
    asked for, and counts for all rows.
    """

    accuracy: float | None
    baseline: Row | None = None

    def of(self, row: Row) -> float | None:
        """Return the accuracy where the row is held against it."""
        comparable = self.baseline is None or self.baseline.scope == row.scope
        return self.accuracy if comparable else None


def target_of(rows: Sequence[Row]) -> Target:
    """Return the target that the runs were given, else half a point less than the baseline."""
    asked = {r.summary.get("target_accuracy") for row in rows for r in row.records} - {None}
    if len(asked) == 1:
        return Target(asked.pop())
    baseline = baseline_row(rows)
    accuracy = baseline.accuracy() if baseline else None
    return Target(None) if accuracy is None else Target(accuracy - 0.5, baseline)


def _figures(records: Iterable[Record], key: str) -> list[tuple[str, float]]:
    found = [(record.status, record.summary.get(key)) for record in records]
    return [(status, value) for status, value in found if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))
