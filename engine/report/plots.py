"""Plot groups: accuracy and time against batch, epochs or settings, and learning curves."""

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

# A color for each optimizer, in the order of `TITLES`.
PALETTE = ("#1f6f8b", "#d1495b", "#e09f3e", "#5b8e5a", "#7d5ba6", "#6c757d")
COLOURS = dict(zip(TITLES.values(), itertools.cycle(PALETTE), strict=False))
# Colors repeat after ten lines, so the line style changes then.
LINESTYLES = ("-", "--", "-.", ":")
MARKERS = {COMPLETED: "o", DIVERGED: "x"}
SPLITS = {"test": "test accuracy", "holdout": "hold-out accuracy"}
# With more lines than this, the lines of one optimizer share a panel. With more lines of a single
# batch than this, these get a separate plot.
MOST_PANELS = 4
# Rows that differ in batch or epochs alone, by the name of their line.
Lines = Mapping[str, Sequence[Row]]
# Returns a (status, value) pair for each run of a row.
Figures = Callable[[Row], list[tuple[str, float]]]


def write_plots(folder: Path, group: str, rows: Sequence[Row], target: Target) -> list[Path]:
    """Draw a group's plots as PNG files; return their paths and remove plots that no longer apply.

    Args:
        folder: the folder to write to.
        group: name of the group.
        rows: all rows of the group.
        target: the accuracy that rows are compared with.

    """
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
    # Content, drawing function and size in inches of each plot; it is omitted without content.
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
    """Draw accuracy and training time of several groups against the batch; return the path.

    If a group has lines of several batches, its many settings at a single batch are left out.
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
        # The legend is below both axes, because labels of several groups are long.
        handles, labels = left.get_legend_handles_labels()
        below = {"loc": "outside lower center", "ncols": 2, "fontsize": 8, "frameon": False}
        figure.legend(handles, labels, **below)

    return save(path, draw, (9.6, 4.2 + 0.1 * len(lines)))


def save(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> Path:
    """Draw a figure, write it as PNG and return its path; the same runs give the same file.

    Args:
        path: the file to write.
        draw: draws on an empty matplotlib figure.
        size: width and height in inches.

    """
    # A notebook sets its backend for the commands that it starts. matplotlib cannot be imported if
    # that backend is not installed here.
    os.environ["MPLBACKEND"] = "agg"
    # Without pyplot, a Figure needs no display and keeps no state between plots.
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    # These plots ignore the user's matplotlibrc, which may require LaTeX.
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
        # matplotlib's version in the file would make plots of the same runs differ.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))
    return path


def label_of(name: str) -> str:
    """Return a name as a label; its dollar signs are escaped, which would enclose a formula."""
    return name.replace("$", r"\$")


def part_settings(lines: Lines) -> tuple[Lines, list[Row]]:
    """Separate lines of several batches from settings at a single batch, if these are many.

    A line's row that is in the same cell as a setting is among the settings too, because an
    ablation's settings are compared with it.
    """
    lone = [line[0] for line in lines.values() if len(line) == 1]
    if len(lone) <= MOST_PANELS:
        return lines, []
    cells = {row.cell for row in lone}
    settings = [row for line in lines.values() for row in line if row.cell in cells]
    return {label: line for label, line in lines.items() if len(line) > 1}, settings


def draw_baseline(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the baseline as a line with a band of one standard deviation to each side.

    With several settings of SGD at the smallest batch, none is the baseline.
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
    """Return a function that gives a row's training times, or times to a target, in seconds.

    Rows with other conditions than most of `rows` have no times.
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
    """Draw each line's means and standard deviations; each run is a dot, a diverged one a cross.

    Args:
        axes: matplotlib's axes.
        axis: the quantity on the x axis.
        lines: the lines to draw.
        figures: returns a (status, value) pair for each run of a row.
        has_mean: returns True if a row's mean is drawn; None draws it if each finished run of the
            row has a value.

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
        color, style = COLOURS.get(label, f"C{number}"), LINESTYLES[number // 10 % len(LINESTYLES)]
        axes.plot(x, means, style, label=label_of(label), color=color, linewidth=1.5)
        axes.fill_between(
            x,
            [m - s for m, s in zip(means, spreads, strict=True)],
            [m + s for m, s in zip(means, spreads, strict=True)],
            color=color, alpha=0.15, linewidth=0,
        )  # fmt: skip
        for status, marker in MARKERS.items():
            dots = [(place, v) for place, pairs in found for s, v in pairs if s == status]
            if dots:
                axes.scatter(*zip(*dots, strict=True), 18, color=color, marker=marker, zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    crosses = any(row.of(DIVERGED) for rows in lines.values() for row in rows)
    note = " (cross: diverged, counted as chance)" if crosses else ""
    axes.set_xlabel(axis.capitalize() + note)


def draw_settings(group: str, rows: Sequence[Row], figure: Any) -> None:
    """Draw rows from best to worst; each run is a dot, a diverged one a cross."""
    axes = figure.subplots()
    ranked = sorted(rows, key=lambda row: row.accuracy() or 0.0)
    for place, row in enumerate(ranked):
        color = COLOURS.get(row.optimizer_title, "C0")
        for status, value in row.results():
            axes.scatter(value, place, 18, color=color, marker=MARKERS[status])
        mean = row.accuracy()
        if mean is not None:
            axes.plot(mean, place, "|", color=color, markersize=12)
    # Keys are shortened to save space; the tables have the whole keys.
    groups = r"\b(?:optimizer|model|loss|scheduler)\.(?!name)"
    titles = [re.sub(groups, "", f"{row.optimizer_title} {row.title}") for row in ranked]
    axes.set_yticks(range(len(ranked)), [label_of(title) for title in titles], fontsize=7)
    axes.set_ylim(-1, len(ranked))
    axes.set(xlabel=f"Final {SPLITS[rows[0].split]}, %", title=group)


def panel_titles(lines: Lines) -> dict[str, str]:
    """Return the title of the panel in which each line's learning curves are drawn."""
    many = len(lines) > MOST_PANELS
    return {label: rows[0].optimizer_title if many else label for label, rows in lines.items()}


def draw_curves(group: str, lines: Lines, figure: Any) -> None:
    """Draw every run's accuracy over the epochs and over wall time, one color per batch."""
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
            color = colormaps["viridis"](shade)
            style = {"color": color, "linewidth": 1.2, "marker": ".", "markersize": 4}
            for record in row.records:
                epochs, seconds, accuracies = record.curve(row.split)
                left.plot(epochs, accuracies, **style)
                if row.timed.leaves_out(record, common):
                    continue
                # Each batch is in the legend once.
                name = f"batch {row.batch}"
                new = accuracies and name not in right.get_legend_handles_labels()[1]
                right.plot(seconds, accuracies, label=name if new else None, **style)
    # The legend is outside the panel, because it would hide the curves.
    for _, right in grid:
        if right.get_legend_handles_labels()[0]:
            right.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    left, right = grid[-1]
    left.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    left.set_xlabel("Epoch")
    right.set_xlabel("Wall time, s")
