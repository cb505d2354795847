"""Gather a group's runs into the rows of its table, and compute each row's numbers."""

import functools
import json
import operator
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from engine.config.optimizers import label_in, title_of
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

# The choice in which the rows of a line differ.
Axis = Literal["batch", "epochs"]
# The default target is this number of points below the baseline's accuracy.
MARGIN = 0.5


class First(NamedTuple):
    """When a row reaches a target, as means over its runs.

    Attributes:
        epoch: the epoch, counted from 1, in which it does.
        steps: optimizer steps up to there.
        examples: training examples up to there.
        seconds: training seconds up to there, over the runs whose times count; None if there are
            none.

    """

    epoch: float
    steps: float
    examples: float
    seconds: float | None


@dataclass(frozen=True)
class Row:
    """The runs of a group that differ in nothing but the seed.

    The `key` that some methods take is a key of summary.json.

    Attributes:
        choices: the choices of these runs by dotted key, without the seed.
        group: the choices of all rows of the group, as `titles.without_bounds` returns them.
        records: the runs.

    """

    choices: titles.Choices
    group: Sequence[titles.Choices]
    records: Sequence[Record]

    @property
    def optimizer(self) -> str:
        """Return the label of the optimizer: its name, with its base if it has one."""
        return label_in(self.choices)

    @property
    def optimizer_title(self) -> str:
        """Return the name of the optimizer as reports write it, such as `LARS`."""
        return title_of(self.optimizer)

    @property
    def batch(self) -> int:
        """Return the number of examples per step."""
        return self.choices["batch"]

    @property
    def epochs(self) -> int:
        """Return the number of epochs of each run."""
        return self.choices["epochs"]

    @property
    def split(self) -> str:
        """Return `test`, or `holdout` if no run of the group evaluates the test split."""
        tested = any(choices.get("data.test_size") != 0 for choices in self.group)
        return "test" if tested else "holdout"

    @property
    def stops_at_target(self) -> bool:
        """Return True if the runs end at their target, so that their accuracies are no results."""
        return bool(self.choices.get("stop_at_target"))

    @property
    def target_split(self) -> str:
        """Return the split on which a target counts: `holdout` if the runs stop at it."""
        return "holdout" if self.stops_at_target else self.split

    @functools.cached_property
    def named(self) -> titles.Choices:
        """Return the choices that the row can be named by."""
        return titles.without_bounds(self.choices)

    @property
    def cell(self) -> tuple[Any, ...]:
        """Return what all rows in the same cell have in common."""
        return titles.cell_of(self.named)

    @functools.cached_property
    def scope(self) -> str:
        """Return those of model, data and epochs in which rows of the group differ."""
        return titles.differences(self.named, self.group, titles.SCOPE)

    @functools.cached_property
    def setting(self) -> str:
        """Return the choices in which the row differs from other rows in the same cell."""
        return titles.setting(self.named, self.group)

    @property
    def title(self) -> str:
        """Return the row's name in a table of one optimizer."""
        return _joined(str(self.batch), self.setting_title)

    @property
    def setting_title(self) -> str:
        """Return the row's title without its batch."""
        return _joined(self.scope, self.setting, self._mixed)

    @property
    def settings_column(self) -> str:
        """Return the `settings` column of table.csv: what no other column says."""
        cell_setting = titles.cell_setting(self.named, self.group)
        return _joined(self.setting, cell_setting, self._mixed)

    def line(self, axis: Axis) -> str:
        """Return the name of the row's line: what rows that differ in `axis` alone share."""
        fixed = [key for key in titles.SCOPE if key != axis]
        return _joined(
            self.optimizer_title,
            "" if axis == "batch" else str(self.batch),
            titles.differences(self.named, self.group, fixed),
            titles.line_setting(self.named, self.group),
        )

    @property
    def _mixed(self) -> str:
        return titles.mixed_provenance([r.summary for r in self.records if r.counted])

    def of(self, *statuses: str) -> list[Record]:
        """Return the row's runs of the given statuses."""
        return [record for record in self.records if record.status in statuses]

    def first(self, key: str) -> float | None:
        """Return the value under `key` in the first run's summary that has one."""
        figures = [record.summary.get(key) for record in self.records]
        return next((figure for figure in figures if figure is not None), None)

    def mean(self, key: str) -> float | None:
        """Return the mean under `key` of the completed runs, else of the diverged ones."""
        ended = self.of(COMPLETED) or self.of(DIVERGED)
        return _mean(record.summary.get(key) for record in ended)

    @functools.cached_property
    def timed(self) -> Timed:
        """Return the runs from which the row's times are computed."""
        return Timed(self.of(COMPLETED) or self.of(DIVERGED))

    def mean_time(self, key: str) -> float | None:
        """Return the mean under `key` over the runs whose times count."""
        return _mean(record.summary.get(key) for record in self.timed.records)

    def times(self, key: str) -> list[tuple[str, float]]:
        """Return status and value under `key` of each run whose times count."""
        return _figures(self.timed.records, key)

    def accuracies(self, split: str | None = None) -> list[float]:
        """Return the final accuracies in % on a split, by default `self.split`.

        A diverged run has the accuracy of chance.
        """
        return [value for _, value in self.results(split)]

    def accuracy(self, split: str | None = None) -> float | None:
        """Return the mean of the final accuracies in % on a split, by default `self.split`."""
        return _mean(self.accuracies(split))

    def train_accuracy(self) -> float | None:
        """Return the completed runs' mean training accuracy in the last epoch, in %."""
        ended = self.of(COMPLETED)
        return _mean(r.history[-1].get("train_accuracy") for r in ended if r.history)

    def results(self, split: str | None = None) -> list[tuple[str, float]]:
        """Return status and final accuracy in % of each run that has one on the split."""
        found = [(r.status, r.accuracy(split or self.split)) for r in self.records]
        return [(status, value) for status, value in found if value is not None]

    def spread(self, split: str | None = None) -> float | None:
        """Return the sample standard deviation of two or more accuracies, else None."""
        accuracies = self.accuracies(split)
        return statistics.stdev(accuracies) if len(accuracies) > 1 else None

    def figures(self, key: str) -> list[tuple[str, float]]:
        """Return status and value under `key` of each completed or diverged run that has one."""
        return _figures(self.of(*FINISHED), key)

    def times_to(self, target: float | None) -> list[tuple[str, float]]:
        """Return status and training seconds to the target of each timed run that reaches it."""
        if target is None:
            return []
        found = [(r.status, r.first_at(self.target_split, target)) for r in self.timed.records]
        return [(status, first.train_seconds) for status, first in found if first is not None]

    def first_at(self, target: float | None) -> First | None:
        """Return when the row reaches the target, as means over its runs; None if any misses it."""
        if target is None or not self.reaches(target):
            return None
        found = [r.first_at(self.target_split, target) for r in self.records if r.counted]
        firsts = [first for first in found if first is not None]
        return First(
            epoch=statistics.fmean(first.epoch for first in firsts),
            steps=statistics.fmean(first.step for first in firsts),
            examples=statistics.fmean(first.examples for first in firsts),
            seconds=_mean(seconds for _, seconds in self.times_to(target)),
        )

    def reaches(self, target: float | None) -> bool:
        """Return True if there are finished runs and each of them reaches the target."""
        if target is None or not self.accuracies():
            return False
        counted = [record for record in self.records if record.counted]
        return all(record.first_at(self.target_split, target) is not None for record in counted)


def records_of(group: str) -> list[Record]:
    """Return a group's runs; raise UserError if there are none."""
    if records := load_records(group):
        return records
    raise key_error("group", group, f"has no runs under {runs_directory(group)}")


def make_rows(records: Sequence[Record]) -> list[Row]:
    """Return one row for the runs that differ in nothing but the seed.

    Rows are sorted by optimizer, batch, base rate and number of keys in the setting.
    """
    members: dict[str, list[Record]] = {}
    for record in records:
        chosen = {key: value for key, value in record.choices.items() if key != "seed"}
        members.setdefault(json.dumps(chosen, sort_keys=True), []).append(record)
    chosen_by_row = [json.loads(chosen) for chosen in members]
    group = [titles.without_bounds(chosen) for chosen in chosen_by_row]

    def place(row: Row) -> tuple[tuple[int, str], int, float, int]:
        rate = row.choices.get("optimizer.base_lr", 0.0)
        return (optimizer_order(row.optimizer), row.batch, rate, row.setting.count("="))

    rows = [
        Row(chosen, group, found)
        for chosen, found in zip(chosen_by_row, members.values(), strict=True)
    ]
    return sorted(rows, key=place)


def gather_lines(rows: Sequence[Row], axis: Axis) -> dict[str, list[Row]]:
    """Return lines of rows that differ in `axis` alone, smallest first, by the line's name."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=operator.attrgetter(axis)):
        lines.setdefault(row.line(axis), []).append(row)
    return lines


def baseline_row(rows: Sequence[Row]) -> Row | None:
    """Return the SGD row of smallest batch; of several, the first with a completed run.

    Runs that end at their target have no accuracy to compare with.
    """
    sgd = [row for row in rows if row.optimizer == "sgd" and not row.stops_at_target]
    return min(sgd, key=lambda row: (row.batch, not row.of(COMPLETED)), default=None)


@dataclass(frozen=True)
class Target:
    """The accuracy that rows are compared with.

    Attributes:
        accuracy: in %; None if there is no target.
        baseline: the row that the target is derived from, which counts only for rows of the same
            model, data and epochs; None if the target was requested, and counts for all rows.

    """

    accuracy: float | None
    baseline: Row | None = None

    def of(self, row: Row) -> float | None:
        """Return the target in % for a row; None if there is none for it."""
        comparable = self.baseline is None or self.baseline.scope == row.scope
        return self.accuracy if comparable else None


def target_of(rows: Sequence[Row]) -> Target:
    """Return the target that all runs were given, else the baseline's mean less `MARGIN`."""
    asked = {r.summary.get("target_accuracy") for row in rows for r in row.records} - {None}
    if len(asked) == 1:
        return Target(asked.pop())
    baseline = baseline_row(rows)
    accuracy = baseline.accuracy() if baseline else None
    return Target(None) if accuracy is None else Target(accuracy - MARGIN, baseline)


def _figures(records: Iterable[Record], key: str) -> list[tuple[str, float]]:
    found = [(record.status, record.summary.get(key)) for record in records]
    return [(status, value) for status, value in found if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))
