"""Plot groups: accuracy and time against batch, epochs or settings."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine.report.curves import (
    SPLITS,
    Lines,
    color_entries,
    curves_size,
    draw_curves,
    recipe_of,
)
from engine.report.rows import Axis, Row, Target, baseline_row, gather_lines
from engine.report.settings import draw_settings, part_settings, settings_size
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
    show_recipes,
    styles_of,
)
from engine.report.times import common_conditions
from engine.runs.records import DIVERGED, FINISHED

# With more lines than this in a panel, a legend replaces the labels at the line ends.
MOST_LABELS = 8
# Returns a (status, value) pair for each run of a row.
Figures = Callable[[Row], list[tuple[str, float]]]


def write_plots(folder: Path, group: str, rows: Sequence[Row], target: Target) -> list[Path]:
    """Draw a group's plots; return the paths of the PNG files and remove plots without content.

    Args:
        folder: the folder to write to.
        group: name of the group.
        rows: all rows of the group.
        target: the accuracy that rows are compared with.

    """
    judged = with_accuracy(rows)
    every, by_epochs = gather_lines(judged, "batch"), gather_lines(judged, "epochs")
    through_batches, settings = part_settings(every)
    through_epochs = {name: line for name, line in by_epochs.items() if len(line) > 1}
    time_lines, _ = part_settings(gather_lines(rows, "batch"))
    timed = any(row.timed.records for line in time_lines.values() for row in line)
    accuracy = partial(draw_accuracy, group, rows)
    ranked = settings_size(settings)
    height = 4.4 + 0.22 * len(line_styles("batch", through_batches))
    # Content, drawing function and size in inches of each plot; it is omitted without content.
    plots: dict[str, tuple[Any, Callable[..., None], tuple[float, float]]] = {
        "accuracy.png": (through_batches, partial(accuracy, "batch"), (WIDTH, height)),
        "settings.png": (settings, partial(draw_settings, group), ranked),
        "epochs.png": (through_epochs, partial(accuracy, "epochs"), (WIDTH, 4.6)),
        "time.png": (
            time_lines if timed else {},
            partial(draw_times, group, rows, target),
            (WIDTH, height + 2.2),
        ),
        "curves.png": (every, partial(draw_curves, group), curves_size(every)),
    }
    written = []
    for name, (drawn, draw, size) in plots.items():
        if drawn:
            written.append(save(folder / name, partial(draw, drawn), size))
        else:
            remove(folder / name)
    return written


def with_accuracy(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without those whose runs end at their target, which fixes their accuracy."""
    return [row for row in rows if not row.stops_at_target]


def write_comparison(path: Path, groups: Mapping[str, Sequence[Row]]) -> Path:
    """Draw accuracy of several groups against the batch, and their times; return the path.

    If a group has lines of several batches, its many settings at a single batch are left out.
    Without comparable times there is no panel for them.
    """
    lines: dict[str, Sequence[Row]] = {}
    for group, rows in groups.items():
        every = gather_lines(with_accuracy(rows), "batch")
        drawn = part_settings(every)[0] or every
        lines |= {comparison_name(group, name, line): line for name, line in drawn.items()}
    every_row = [row for line in lines.values() for row in line]
    timed = common_conditions(row.timed for row in every_row) is not None
    recipes = len({recipe_of(name, line) for name, line in lines.items()})

    def draw(figure: Any) -> None:
        panels = figure.subplots(1 + timed, 1, squeeze=False)[:, 0]
        splits = dict.fromkeys(SPLITS[row.split] for rows in groups.values() for row in rows)
        panels[0].set_title(f"Final {' or '.join(splits)}, %")
        draw_against(panels[0], "batch", lines, Row.results)
        if timed:
            panels[1].set_title("Training time, s")
            times = time_figures(every_row)
            draw_against(panels[1], "batch", lines, times, lambda row: True, low=0)
        show_lines(figure, "batch", lines)

    return save(path, draw, (WIDTH, 4.2 + 3.4 * timed + 0.24 * recipes))


def comparison_name(group: str, name: str, rows: Sequence[Row]) -> str:
    """Return the name of a group's line in a plot of several groups: its optimizer comes first."""
    epochs = f"epochs={rows[0].epochs}"
    rest = [part for part in recipe_of(name, rows).split() if part != epochs]
    return " ".join([rows[0].optimizer_title, f"{group}, {rows[0].epochs} epochs", *rest])


def draw_accuracy(group: str, rows: Sequence[Row], axis: Axis, lines: Lines, figure: Any) -> None:
    """Draw final accuracy against batch or epochs."""
    axes = figure.subplots()
    baseline = draw_baseline(axes, rows) if axis == "batch" else []
    axes.set(ylabel=f"Final {SPLITS[rows[0].split]}, %", title=label_of(group))
    draw_against(axes, axis, lines, Row.results)
    show_lines(figure, axis, lines, *baseline)


def draw_times(group: str, rows: Sequence[Row], target: Target, lines: Lines, figure: Any) -> None:
    """Draw training time and time to the target against the batch."""
    above, below = figure.subplots(2, 1, sharex=True)
    goal = "" if target.accuracy is None else f" ({target.accuracy:.2f} %)"
    above.set_title(label_of(f"{group}: training time, s"))
    below.set_title(f"time to the target{goal}, s")
    draw_against(above, "batch", lines, time_figures(rows), lambda row: True, low=0)
    to_target, reaches = time_figures(rows, target), lambda row: row.reaches(target.of(row))
    draw_against(below, "batch", lines, to_target, reaches, low=0)
    above.set_xlabel("")
    show_lines(figure, "batch", lines)


def show_lines(figure: Any, axis: Axis, lines: Lines, *others: Any) -> None:
    """Show below the axes what the line styles mean, and the colors if the lines have no labels."""
    if len(lines) > MOST_LABELS:
        titles = dict.fromkeys(rows[0].optimizer_title for rows in lines.values())
        others = (*color_entries(titles), *others)
    show_recipes(figure, line_styles(axis, lines), *others)


def line_styles(axis: Axis, lines: Lines) -> dict[str, tuple[Any, str]]:
    """Return line style and marker of each recipe among the lines."""
    return styles_of(drawn_recipe(axis, name, rows) for name, rows in lines.items())


def drawn_recipe(axis: Axis, name: str, rows: Sequence[Row]) -> str:
    """Return a line's recipe as the legend shows it."""
    recipe = recipe_of(name, rows)
    return f"batch {recipe}" if axis == "epochs" else recipe


def draw_baseline(axes: Any, rows: Sequence[Row]) -> list[Any]:
    """Draw the baseline as a line with a band of one standard deviation; return its legend entry.

    With several settings of SGD at the smallest batch, none is the baseline.
    """
    row = baseline_row(rows)
    mean = row.accuracy() if row else None
    if row is None or row.setting or mean is None:
        return []
    label = f"base line: SGD {row.batch}"
    line = axes.axhline(mean, color=GREY, linewidth=1, linestyle=(0, (2, 2)), label=label)
    spread = row.spread()
    if spread:
        axes.axhspan(mean - spread, mean + spread, color=GREY, alpha=0.15, linewidth=0)
    return [line]


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
    low: float | None = None,
) -> None:
    """Draw each line's means and standard deviations; each run is a dot, a diverged one a cross.

    Args:
        axes: matplotlib's axes.
        axis: the quantity on the x axis.
        lines: the lines to draw.
        figures: returns a (status, value) pair for each run of a row.
        has_mean: returns True if a row's mean is drawn; None draws it if each finished run of the
            row has a value.
        low: the lower limit of the y axis; None fits it to the values.

    """
    if has_mean is None:
        has_mean = lambda row: len(figures(row)) == len(row.of(*FINISHED))  # noqa: E731
    styles, ends = line_styles(axis, lines), []
    for name, rows in lines.items():
        found = [(row, getattr(row, axis), figures(row)) for row in rows]
        if not any(pairs for _, _, pairs in found):
            continue
        style, marker = styles[drawn_recipe(axis, name, rows)]
        color = color_of(rows[0].optimizer_title)
        points = [
            (place, [value for _, value in pairs])
            for row, place, pairs in found
            if pairs and has_mean(row)
        ]
        means = draw_means(axes, points, label=label_of(name), color=color, linestyle=style)
        runs = [(place, value, status) for _, place, pairs in found for status, value in pairs]
        draw_runs(axes, runs, color, marker)
        if means:
            text = f"{rows[0].optimizer_title} {means[-1]:.1f}"
            ends.append(EndLabel(points[-1][0], means[-1], text, color))
    places = sorted({getattr(row, axis) for rows in lines.values() for row in rows})
    scale_by_two(axes, places, ticks=places)
    if low is not None:
        axes.set_ylim(low, 1.05 * axes.get_ylim()[1])
    diverged = any(
        status == DIVERGED for rows in lines.values() for r in rows for status, _ in figures(r)
    )
    axes.set_xlabel(axis.capitalize() + " (cross: diverged)" * diverged)
    if len(lines) <= MOST_LABELS:
        label_ends(axes, last_of(ends))


def last_of(ends: Sequence[EndLabel]) -> list[EndLabel]:
    """Return the labels of the lines that lead furthest, of each color at least one.

    A label at the end of a shorter line would cover the others.
    """
    furthest = {end.color: max(e.x for e in ends if e.color == end.color) for end in ends}
    return [end for end in ends if end.x == furthest[end.color]]


def draw_means(axes: Any, points: Sequence[tuple[int, list[float]]], **style: Any) -> list[float]:
    """Draw a line through the means with a band of one standard deviation; return the means.

    Args:
        axes: matplotlib's axes.
        points: place on the x axis and values of each row.
        style: matplotlib's options of the line.

    """
    x = [place for place, _ in points]
    means = [statistics.fmean(values) for _, values in points]
    spreads = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
    axes.plot(x, means, **style)
    axes.fill_between(
        x,
        [m - s for m, s in zip(means, spreads, strict=True)],
        [m + s for m, s in zip(means, spreads, strict=True)],
        color=style["color"], alpha=0.15, linewidth=0,
    )  # fmt: skip
    return means
