"""Plot a study of the critical batch size: steps and examples to the target, and the best rates."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.report.critical import Curve, Point, Study
from engine.report.fit import Fit
from engine.report.style import (
    GREY,
    WIDTH,
    EndLabel,
    color_of,
    draw_runs,
    label_ends,
    label_of,
    remove,
    save,
    scale_by_two,
)
from engine.report.to_target import Passage
from engine.runs.records import DIVERGED

CRITICAL_PLOTS = ("steps.png", "rates.png")
# With more batches than this, every other one has a label.
MOST_TICKS = 9
# Look of the lines that are not measured.
FIT: dict[str, Any] = {"linewidth": 7, "alpha": 0.3, "solid_capstyle": "butt"}
PERFECT: dict[str, Any] = {"linewidth": 1.2, "linestyle": "--"}
SQUARE_ROOT: dict[str, Any] = {"linewidth": 1.2, "linestyle": ":"}


def write_critical_plots(
    folder: Path, group: str, study: Study | None, rates: bool = True
) -> list[Path]:
    """Draw steps.png and rates.png; return their paths and remove plots without content.

    Args:
        folder: the folder to write to.
        group: name of the group.
        study: the group's study; None if it has none.
        rates: False to leave rates.png alone.

    """
    # Drawing function and size in inches of each plot.
    plots: dict[str, tuple[Callable[[Any], None], tuple[float, float]]] = {}
    if study is not None:
        plots["steps.png"] = partial(draw_steps, group, study), (WIDTH, 8.0)
        rated = [curve for curve in study.curves if len(rates_of(curve)) > 1]
        if rates and rated:
            plots["rates.png"] = partial(draw_rates, group, rated), (WIDTH, 4.8)
    for name in CRITICAL_PLOTS if rates else CRITICAL_PLOTS[:1]:
        if name not in plots:
            remove(folder / name)
    return [save(folder / name, draw, size) for name, (draw, size) in plots.items()]


def draw_steps(group: str, study: Study, figure: Any) -> None:
    """Draw steps to the target above, and examples to the target below, against the batch."""
    above, below = figure.subplots(2, 1, sharex=True)
    split = "" if study.split == "holdout" else ", test split"
    above.set_title(label_of(f"{group}: steps to {study.target:g} %{split}"))
    below.set_title(f"examples to {study.target:g} %{split}")
    batches = sorted({point.batch for curve in study.curves for point in curve.points})
    _draw_panel(above, study, batches, lambda passage: passage.steps, growth=0)
    _draw_panel(below, study, batches, lambda passage: passage.examples, growth=1)
    above.set_xlabel("")
    figure.legend(handles=_entries(study), loc="outside lower center", ncols=2, handlelength=3)


def _draw_panel(
    axes: Any,
    study: Study,
    batches: Sequence[int],
    figure_of: Callable[[Passage], float],
    growth: int,
) -> None:
    """Draw one figure of all runs against the batch.

    Args:
        axes: matplotlib's axes.
        study: the study.
        batches: all batches of the study, smallest first.
        figure_of: returns a run's figure.
        growth: the power of the batch by which the figure differs from the steps.

    """
    ends = []
    for curve in study.curves:
        color = color_of(curve.title)
        means = [
            (point.batch, statistics.fmean(map(figure_of, point.reached))) for point in curve.fitted
        ]
        if means:
            axes.plot(*zip(*means, strict=True), color=color, linewidth=1.5)
            ends.append(EndLabel(*means[-1], curve.title, color))
            _draw_lines(axes, curve, batches, dict(means), growth)
        for point in curve.points:
            _draw_point(axes, point, figure_of, color)
    _scale_x(axes, batches)
    _scale_y(axes)
    # Perfect scaling leads far below the runs.
    drawn = [
        figure_of(passage)
        for curve in study.curves
        for point in curve.points
        for passage in point.passages
        if not passage.diverged
    ]
    axes.set_ylim(min(drawn) / 1.6, max(drawn) * 1.6)
    label_ends(axes, ends)


def _draw_lines(
    axes: Any, curve: Curve, batches: Sequence[int], means: dict[int, float], growth: int
) -> None:
    """Draw the fit, the critical batch size with its interval, and perfect scaling."""
    color, fit = color_of(curve.title), curve.fit
    x = np.geomspace(batches[0], batches[-1], 60)
    if isinstance(fit, Fit):
        axes.plot(x, [fit.steps(batch) * batch**growth for batch in x], color=color, **FIT)
        # An open end of the interval is the end of the axis.
        low, high = fit.low or batches[0] / 1.3, fit.high or batches[-1] * 1.3
        axes.axvspan(low, high, color=color, alpha=0.12, linewidth=0)
        axes.axvline(fit.b_crit, color=color, linewidth=1, linestyle="-.")
    first = curve.fitted[0].batch
    perfect = [means[first] * (batch / first) ** (growth - 1) for batch in (first, x[-1])]
    axes.plot((first, x[-1]), perfect, color=color, **PERFECT)


def _draw_point(axes: Any, point: Point, figure_of: Callable[[Passage], float], color: str) -> None:
    """Draw each run of a point: a dot, a triangle if it is censored, a cross if it diverged."""
    runs = [(point.batch, figure_of(passage), "") for passage in point.reached]
    draw_runs(axes, runs, color, "o")
    missed = [passage for passage in point.passages if not passage.reached]
    censored = [figure_of(passage) for passage in missed if not passage.diverged]
    look: dict[str, Any] = {"facecolor": "none", "edgecolor": color, "s": 44, "zorder": 3}
    axes.scatter([point.batch] * len(censored), censored, marker="^", **look)
    if len(missed) > len(censored):
        # A run that diverged has no steps to the target, so it is marked at the top of the panel.
        axes.plot(
            point.batch, 0.96, "x", color=color, markeredgewidth=2,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def _entries(study: Study) -> list[Any]:
    """Return the entries of the legend."""
    from matplotlib.lines import Line2D

    points = [point for curve in study.curves for point in curve.points]
    missed = [passage for point in points for passage in point.passages if not passage.reached]
    entries = [
        Line2D([], [], color="black", marker="o", linewidth=1.5, label="mean; dot: one run"),
        Line2D([], [], color=GREY, label="perfect scaling", **PERFECT),
    ]
    if any(isinstance(curve.fit, Fit) for curve in study.curves):
        entries.append(Line2D([], [], color=GREY, label="fit", **FIT))
        look: dict[str, Any] = {"color": GREY, "linestyle": "-.", "linewidth": 1}
        entries.append(Line2D([], [], label="critical batch, 90 % interval", **look))
    look = {"color": "black", "linestyle": "", "fillstyle": "none"}
    if any(not passage.diverged for passage in missed):
        entries.append(Line2D([], [], marker="^", label="target not reached", **look))
    if any(passage.diverged for passage in missed):
        entries.append(Line2D([], [], marker="x", markeredgewidth=2, label=DIVERGED, **look))
    return entries


def rates_of(curve: Curve) -> list[tuple[int, float]]:
    """Return batch and best rate of the points at which most runs reach the target."""
    return [(point.batch, point.rate) for point in curve.fitted if point.rate is not None]


def draw_rates(group: str, curves: Sequence[Curve], figure: Any) -> None:
    """Draw the best rates against the batch, with both scaling rules from the smallest batch."""
    from matplotlib.lines import Line2D

    axes, ends = figure.subplots(), []
    axes.set_title(label_of(f"{group}: best peak learning rate"))
    for curve in curves:
        color, found = color_of(curve.title), rates_of(curve)
        axes.plot(*zip(*found, strict=True), color=color, marker="o", linewidth=1.5)
        ends.append(EndLabel(*found[-1], curve.title, color))
        (first, rate), (last, _) = found[0], found[-1]
        for look, power in ((PERFECT, 1.0), (SQUARE_ROOT, 0.5)):
            ruled = rate * (last / first) ** power
            axes.plot((first, last), (rate, ruled), color=color, **look)
    _scale_x(axes, sorted({batch for curve in curves for batch, _ in rates_of(curve)}))
    _scale_y(axes)
    label_ends(axes, ends)
    entries = [
        Line2D([], [], color="black", marker="o", linewidth=1.5, label="best rate"),
        Line2D([], [], color=GREY, label="linear rule", **PERFECT),
        Line2D([], [], color=GREY, label="square-root rule", **SQUARE_ROOT),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=2, handlelength=3)


def _scale_x(axes: Any, batches: Sequence[int]) -> None:
    """Give the x axis a logarithmic scale with the batches as ticks."""
    shown = batches[:: 1 + (len(batches) > MOST_TICKS)]
    scale_by_two(axes, batches, ticks=shown)
    axes.set_xlabel("Batch")


def _scale_y(axes: Any) -> None:
    """Give the y axis a logarithmic scale with ticks at 1, 2 and 5 times powers of 10."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: short_number(value))


def short_number(value: float) -> str:
    """Return a tick's label.

    >>> [short_number(value) for value in (0.05, 200.0, 5000.0, 1e6)]
    ['0.05', '200', '5k', '1M']
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
