"""Plots of groups: accuracy and time against batch, epochs or settings, and over training."""

import io
import itertools
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine.config.optimizers import TITLES
from engine.report.rows import Axis, Row, Target, baseline_row, gather_lines
from engine.report.times import common_conditions
from engine.runs.records import COMPLETED, DIVERGED, FINISHED
from engine.system.files import write_atomically

# A colour for each optimizer, in the order of the configuration's union.
PALETTE = ("#1f6f8b", "#d1495b", "#e09f3e", "#5b8e5a", "#7d5ba6", "#6c757d")
COLOURS = dict(zip(TITLES.values(), itertools.cycle(PALETTE), strict=False))
# After ten lines the colours begin again.
LINESTYLES = ("-", "--", "-.", ":")
MARKERS = {COMPLETED: "o", DIVERGED: "x"}
SPLITS = {"test": "test accuracy", "holdout": "hold-out accuracy"}
# More panels than this would not be read; the lines of one optimizer then share one, and lines of
# one batch each get a plot of their own.
MOST_PANELS = 4
# Rows that differ in batch or epochs alone, by their common name.
Lines = Mapping[str, Sequence[Row]]
# Gives a row's runs as (status, figure) pairs.
Figures = Callable[[Row], list[tuple[str, float]]]


def write_plots(folder: Path, group: str, rows: Sequence[Row], target: Target) -> list[Path]:
    """Draw a group; return the paths of the PNG files written, and remove those it has no more."""
    every, by_epochs = gather_lines(rows, "batch"), gather_lines(rows, "epochs")
    through_batches, settings = part_settings(every)
    through_epochs = {name: line for name, line in by_epochs.items() if len(line) > 1}

    def draw_accuracy(axis: Axis, lines: Lines, figure: Any) -> None:
        axes = figure.subplots()
        if axis == "batch":
            draw_baseline(axes, rows)
        draw_against(axes, axis, lines, Row.results)
        axes.set(ylabel=f"Final {SPLITS[rows[0].split]}, %", title=group)

    def draw_time(lines: Lines, figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        train, to_target = time_figures(rows), time_figures(rows, target)
        draw_against(left, "batch", lines, train, lambda row: True)
        draw_against(right, "batch", lines, to_target, lambda row: row.reaches(target.of(row)))
        left.set(ylabel="Training time, s", title=f"{group}: time to train", ylim=(0, None))
        goal = "" if target.accuracy is None else f", {target.accuracy:.2f} %"
        right.set(title=f"time to target{goal}")

    timed = any(row.timed.records for line in through_batches.values() for row in line)
    panels = len(set(panel_titles(every).values()))
    # What each shows, how it is drawn, and its size.
    plots: dict[str, tuple[Any, Callable[..., None], tuple[float, float]]] = {
        "accuracy.png": (through_batches, partial(draw_accuracy, "batch"), (7.2, 4.2)),
        "time.png": (through_batches if timed else {}, draw_time, (8.4, 3.6)),
        "settings.png": (
            settings,
            partial(draw_settings, group),
            (9.6, 1.2 + 0.24 * len(settings)),
        ),
        "curves.png": (every, partial(draw_curves, group), (8.4, 0.6 + 2.8 * panels)),
        "epochs.png": (through_epochs, partial(draw_accuracy, "epochs"), (7.2, 4.2)),
    }
    written = []
    for name, (drawn, draw, size) in plots.items():
        if drawn:
            written.append(save(folder / name, partial(draw, drawn), size))
        else:
            (folder / name).unlink(missing_ok=True)
    return written


def write_comparison(path: Path, groups: Mapping[str, Sequence[Row]]) -> Path:
    """Draw several groups in one plot: accuracy and training time against the batch.

    Of a group with lines through its batches only these are drawn, not its settings.
    """
    lines: dict[str, Sequence[Row]] = {}
    for group, rows in groups.items():
        every = gather_lines(rows, "batch")
        drawn = part_settings(every)[0] or every
        lines |= {f"{group} {label}": line for label, line in drawn.items()}

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        draw_against(left, "batch", lines, Row.results)
        every = [row for line in lines.values() for row in line]
        draw_against(right, "batch", lines, time_figures(every), lambda row: True)
        splits = dict.fromkeys(SPLITS[row.split] for rows in groups.values() for row in rows)
        left.set(title=f"Final {' or '.join(splits)}, %")
        right.set(title="Training time, s", ylim=(0, None))
        # Below both: labels of several groups are long.
        handles, labels = left.get_legend_handles_labels()
        below = {"loc": "outside lower center", "ncols": 2, "fontsize": 8, "frameon": False}
        figure.legend(handles, labels, **below)

    return save(path, draw, (9.6, 4.2 + 0.1 * len(lines)))


def save(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> Path:
    """Make a figure, let `draw` fill it, write it; the same runs give the same file."""
    # A notebook names its own backend to the commands that it starts, and matplotlib cannot be
    # imported if that is not installed here.
    os.environ["MPLBACKEND"] = "agg"
    # Figure by itself, without pyplot, needs no display and keeps no state between plots.
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    # What a user's matplotlibrc asks for, such as LaTeX, is not for these plots.
    with matplotlib.style.context("default"):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            labelled = axes.get_legend_handles_labels()[0]
            if labelled and axes.get_legend() is None and not figure.legends:
                # A label wider than the plot would squeeze the axes to nothing.
                axes.legend(fontsize=8, frameon=False).set_in_layout(False)
        # Dates and versions would make two files of the same runs differ.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))
    return path


def label_of(name: str) -> str:
    """Return a name, which may hold a folder's, as a label: between dollars would be a formula."""
    return name.replace("$", r"\$")


def part_settings(lines: Lines) -> tuple[Lines, list[Row]]:
    """Part lines from settings: the rows of one batch each, where they are too many for lines.

    The row of a line is among the settings too where it is in the same cell as one of them: it is
    what an ablation's settings are compared with.
    """
    lone = [line[0] for line in lines.values() if len(line) == 1]
    if len(lone) <= MOST_PANELS:
        return lines, []
    cells = {row.cell for row in lone}
    settings = [row for line in lines.values() for row in line if row.cell in cells]
    return {label: line for label, line in lines.items() if len(line) > 1}, settings


def draw_baseline(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the smallest-batch SGD row as a band of a standard deviation to each side.

    Of several settings at that batch none is what the others are held against.
    """
    row = baseline_row(rows)
    mean = row.accuracy() if row else None
    if row is None or row.setting or mean is None:
        return
    label = f"base line: SGD {row.batch}"
    axes.axhline(mean, color="grey", linewidth=1, linestyle=":", label=label)
    spread = row.spread()
    if spread:
        axes.axhspan(mean - spread, mean + spread, color="grey", alpha=0.15, linewidth=0)


def time_figures(rows: Sequence[Row], target: Target | None = None) -> Figures:
    """Return what gives a row's training times, or those to a target, if they can be compared.

    Rows of other conditions than most of `rows` have none.
    """
    common = common_conditions(row.timed for row in rows)

    def figures(row: Row) -> list[tuple[str, float]]:
        if row.timed.conditions != common:
            return []
        return row.times("train_seconds") if target is None else row.times_to(target.of(row))

    return figures


def draw_against(
    axes: Any,
    axis: Axis,
    lines: Lines,
    figures: Figures,
    has_mean: Callable[[Row], bool] | None = None,
) -> None:
    """Draw each line's mean and spread, every run a dot, a diverged one a cross.

    figures: a row's (status, figure) pairs; has_mean: whether a row with figures has a mean of
    them; None: if each of its runs has one.
    """
    if has_mean is None:
        has_mean = lambda row: len(figures(row)) == len(row.of(*FINISHED))  # noqa: E731
    places = sorted({getattr(row, axis) for rows in lines.values() for row in rows})
    for number, (label, rows) in enumerate(lines.items()):
        found = [(getattr(row, axis), figures(row)) for row in rows]
        if not any(pairs for _, pairs in found):
            continue
        points = [
            (place, [value for _, value in pairs])
            for row, (place, pairs) in zip(rows, found, strict=True)
            if pairs and has_mean(row)
        ]
        x = [place for place, _ in points]
        means = [statistics.fmean(values) for _, values in points]
        spreads = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
        colour, style = COLOURS.get(label, f"C{number}"), LINESTYLES[number // 10 % len(LINESTYLES)]
        axes.plot(x, means, style, label=label_of(label), color=colour, linewidth=1.5)
        axes.fill_between(
            x,
            [m - s for m, s in zip(means, spreads, strict=True)],
            [m + s for m, s in zip(means, spreads, strict=True)],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
        for status, marker in MARKERS.items():
            dots = [(place, v) for place, pairs in found for s, v in pairs if s == status]
            if dots:
                axes.scatter(*zip(*dots, strict=True), 18, color=colour, marker=marker, zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    crosses = any(row.of(DIVERGED) for rows in lines.values() for row in rows)
    note = " (cross: diverged, counted as chance)" if crosses else ""
    axes.set_xlabel(axis.capitalize() + note)


def draw_settings(group: str, rows: Sequence[Row], figure: Any) -> None:
    """Draw rows that share no line, the best on top: every run a dot, a diverged one a cross."""
    axes = figure.subplots()
    ranked = sorted(rows, key=lambda row: row.accuracy() or 0.0)
    for place, row in enumerate(ranked):
        colour = COLOURS.get(row.optimizer_title, "C0")
        for status, value in row.results():
            axes.scatter(value, place, 18, color=colour, marker=MARKERS[status])
        mean = row.accuracy()
        if mean is not None:
            axes.plot(mean, place, "|", color=colour, markersize=12)
    # A key is known without these, and the tables have it whole.
    groups = r"\b(?:optimizer|model|loss|scheduler)\.(?!name)"
    titles = [re.sub(groups, "", f"{row.optimizer_title} {row.title}") for row in ranked]
    axes.set_yticks(range(len(ranked)), [label_of(title) for title in titles], fontsize=7)
    axes.set_ylim(-1, len(ranked))
    axes.set(xlabel=f"Final {SPLITS[rows[0].split]}, %", title=group)


def panel_titles(lines: Lines) -> dict[str, str]:
    """Choose the panel that each line's learning curves go to."""
    many = len(lines) > MOST_PANELS
    return {label: rows[0].optimizer_title if many else label for label, rows in lines.items()}


def draw_curves(group: str, lines: Lines, figure: Any) -> None:
    """Draw every run's accuracy over the epochs and over wall time, a colour for each batch."""
    from matplotlib import colormaps

    titles = panel_titles(lines)
    names = dict.fromkeys(titles.values())
    grid = figure.subplots(len(names), 2, sharey=True, sharex="col", squeeze=False)
    panels = dict(zip(names, grid, strict=True))
    batches = sorted({row.batch for rows in lines.values() for row in rows})
    common = common_conditions(row.timed for rows in lines.values() for row in rows)
    for label, rows in lines.items():
        left, right = panels[titles[label]]
        what = SPLITS[rows[0].split].capitalize()
        left.set(title=f"{group}: {label_of(titles[label])}", ylabel=f"{what}, %")
        for row in rows:
            shade = 0.92 * batches.index(row.batch) / max(1, len(batches) - 1)
            colour = colormaps["viridis"](shade)
            style = {"color": colour, "linewidth": 1.2, "marker": ".", "markersize": 4}
            for record in row.records:
                epochs, seconds, accuracies = record.curve(row.split)
                left.plot(epochs, accuracies, **style)
                if row.timed.leaves_out(record, common):
                    continue
                # Each batch is in the legend once.
                name = f"batch {row.batch}"
                new = accuracies and name not in right.get_legend_handles_labels()[1]
                right.plot(seconds, accuracies, label=name if new else None, **style)
    # Outside the panels: seven batches would hide what they name.
    for _, right in grid:
        if right.get_legend_handles_labels()[0]:
            right.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    left, right = grid[-1]
    left.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    left.set_xlabel("Epoch")
    right.set_xlabel("Wall time, s")
