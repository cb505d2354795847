"""A group's runs, gathered into the rows of its table: each number is read from the runs."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.report.titles import KIND, apart, differences, mixed, shared, told
from engine.runs.records import Record, optimizer_order


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
        return (optimizer_order(row.optimizer), row.batch, rate, row.told.count("="))

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
