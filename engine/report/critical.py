"""Measure the critical batch size of a group: the steps to a target accuracy against the batch.

A study is the part of a group that such a measurement can use: one model on one data set. Of
several settings of an optimizer at a batch, the one with most finished runs counts, then the one of
which most runs reach the target, then the one with the least mean steps. Runs that do not reach the
target (censored, or diverged) are shown and not fitted. A batch at which half of the runs or more
miss it is not fitted either, because the mean of the others would be too low.
"""

import functools
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.optimizers import title_of
from engine.report.fit import LEAST_BATCHES, Fit, fit_steps, rounded
from engine.report.rows import Row
from engine.report.to_target import Passage, has_holdout, passage_of, stop_of

# Choices that all rows of a study share.
SHARED = ("model.name", "data.name", "data.root", "data.train_size", "data.holdout")
# A batch scales perfectly if its efficiency is at least this.
PERFECT = 0.8
# From this multiple of the critical batch size on, steps are within a quarter of the fewest.
FLOOR = 4.0
SPLITS = {"holdout": "on the hold-out split", "test": "on the test split, as history"}


@dataclass(frozen=True)
class Point:
    """The finished runs of one optimizer at one batch.

    Attributes:
        row: the setting that counts.
        passages: how each of its finished runs got to the target.

    """

    row: Row
    passages: Sequence[Passage]

    @property
    def batch(self) -> int:
        """Return the number of examples per step."""
        return self.row.batch

    @property
    def reached(self) -> list[Passage]:
        """Return the runs that reach the target."""
        return [passage for passage in self.passages if passage.reached]

    @property
    def fitted(self) -> bool:
        """Return True if more than half of the runs reach the target."""
        return 2 * len(self.reached) > len(self.passages)

    @property
    def steps(self) -> float | None:
        """Return the mean steps to the target of the runs that reach it; None if none does."""
        return _mean([passage.steps for passage in self.reached])

    @property
    def examples(self) -> float | None:
        """Return the mean examples to the target of the runs that reach it; None if none does."""
        return _mean([passage.examples for passage in self.reached])

    @property
    def noise_scale(self) -> float | None:
        """Return the mean gradient noise scale up to the target; None if it is not recorded."""
        return _mean([s for passage in self.reached if (s := passage.noise_scale) is not None])

    @property
    def rate(self) -> float | None:
        """Return the peak learning rate, else the base rate; None if neither is known."""
        return self.row.first("peak_lr") or self.row.first("base_lr")


@dataclass(frozen=True)
class Curve:
    """The points of one optimizer.

    Attributes:
        optimizer: name of the optimizer as in the configuration.
        points: one point per batch, smallest first.

    """

    optimizer: str
    points: Sequence[Point]

    @property
    def title(self) -> str:
        """Return the optimizer's name as reports write it."""
        return title_of(self.optimizer)

    @property
    def fitted(self) -> list[Point]:
        """Return the points that count in the fit."""
        return [point for point in self.points if point.fitted]

    @property
    def noise_scale(self) -> float | None:
        """Return the mean gradient noise scale of the fitted points; None if none has one."""
        return _mean([s for point in self.fitted if (s := point.noise_scale) is not None])

    @functools.cached_property
    def fit(self) -> Fit | str:
        """Return the fitted curve, or one sentence that says why there is none."""
        if len(self.fitted) < LEAST_BATCHES:
            return (
                f"A fit needs {LEAST_BATCHES} batch sizes at which most runs reach the target, not "
                f"{len(self.fitted)}."
            )
        found = [(point.batch, passage.steps) for point in self.fitted for passage in point.reached]
        return fit_steps([batch for batch, _ in found], [steps for _, steps in found])

    def efficiency(self, point: Point) -> float | None:
        """Return the examples at the smallest fitted batch as a multiple of those at this one.

        It is None if the point is not fitted.
        """
        if not point.fitted:
            return None
        reference = self.fitted[0].examples
        return reference / point.examples if reference and point.examples else None

    def regime(self, point: Point) -> str:
        """Return the regime of a batch in words; `-` if it is not fitted."""
        efficiency = self.efficiency(point)
        if efficiency is None:
            return "-"
        if isinstance(self.fit, Fit) and point.batch >= FLOOR * self.fit.b_crit:
            return "floor"
        return "perfect scaling" if efficiency >= PERFECT else "diminishing returns"

    def span(self) -> str:
        """Return in words how far the steps fall as the batch grows; empty for a single batch."""
        found = [(point.batch, self.efficiency(point) or 0.0) for point in self.fitted]
        if len(found) < 2:
            return ""
        last = found[0][0]
        for batch, efficiency in found:
            if efficiency < PERFECT:
                break
            last = batch
        perfect = f"perfect scaling to {last:,}"
        if last == found[0][0]:
            perfect = f"no perfect scaling beyond {last:,}"
        half = half_of(found)
        if half is None:
            return f"{perfect}, above 50 % efficiency at every batch to {found[-1][0]:,}"
        return f"{perfect}, 50 % efficiency at {rounded(half)}"


@dataclass(frozen=True)
class Study:
    """The optimizers' curves for one model on one data set.

    Attributes:
        target: the target accuracy in %.
        split: `holdout` or `test`, the split on which it is measured.
        curves: one curve per optimizer.

    """

    target: float
    split: str
    curves: Sequence[Curve]

    @property
    def row(self) -> Row:
        """Return any row of the study."""
        return self.curves[0].points[0].row

    @property
    def reached_batches(self) -> int:
        """Return the largest number of batches at which runs of one optimizer reach the target."""
        return max(sum(bool(point.reached) for point in curve.points) for curve in self.curves)

    @property
    def runs(self) -> int:
        """Return the number of runs that reach the target."""
        return sum(len(point.reached) for curve in self.curves for point in curve.points)

    @property
    def enough(self) -> bool:
        """Return True if there are batches enough for a report."""
        return self.reached_batches >= LEAST_BATCHES


def study_of(rows: Sequence[Row], requested: float | None) -> Study | None:
    """Return a group's study; None if the group has no target or too few batches for one.

    Args:
        rows: all rows of the group.
        requested: target accuracy in %; None is the one at which most runs were to stop.

    """
    target = requested or _common_stop(rows)
    if target is None:
        return None
    families: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        families.setdefault(tuple(row.choices.get(key) for key in SHARED), []).append(row)
    studies = [_make_study(family, target) for family in families.values()]
    # The steps are the only result of runs that stop at their target.
    least = 1 if all(row.stops_at_target for row in rows) else LEAST_BATCHES
    found = [s for s in studies if any(len(c.points) >= least for c in s.curves)]
    return max(found, key=lambda study: (study.reached_batches, study.runs), default=None)


def half_of(efficiencies: Sequence[tuple[int, float]]) -> float | None:
    """Return at which batch the efficiency falls to one half, between those measured; else None.

    >>> round(half_of([(64, 1.0), (128, 0.8), (512, 0.2)]), 1)
    204.8
    """
    for (batch, above), (larger, below) in itertools.pairwise(efficiencies):
        if above >= 0.5 > below:
            part = math.log(above / 0.5) / math.log(above / below)
            return batch * (larger / batch) ** part
    return None


def _make_study(rows: Sequence[Row], target: float) -> Study:
    """Return the study of rows of one model and data set."""
    finished = [record for row in rows for record in row.records if record.counted]
    split = "holdout" if has_holdout(finished) else "test"
    points: dict[str, dict[int, list[Point]]] = {}
    for row in rows:
        found = [passage_of(record, split, target) for record in row.records]
        if passages := [passage for passage in found if passage is not None]:
            batches = points.setdefault(row.optimizer, {})
            batches.setdefault(row.batch, []).append(Point(row, passages))
    curves = [
        Curve(name, [min(batches[batch], key=_place) for batch in sorted(batches)])
        for name, batches in points.items()
    ]
    return Study(target, split, curves)


def _place(point: Point) -> tuple[int, int, float]:
    """Return the sort key of settings at one batch: the one that counts comes first."""
    return -len(point.passages), -len(point.reached), point.steps or math.inf


def _common_stop(rows: Sequence[Row]) -> float | None:
    """Return the accuracy at which most runs were to stop, the highest of several; else None."""
    found = Counter(stop_of(record) for row in rows for record in row.records)
    found.pop(None, None)
    return max(found, key=lambda target: (found[target], target or 0.0), default=None)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
