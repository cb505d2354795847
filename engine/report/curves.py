"""Plot the learning curves of a group's runs, one panel per batch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.report.rows import Row
from engine.report.style import STYLES, WIDTH, color_of, label_of, show_recipes, styles_of
from engine.report.times import common_conditions

# Rows that differ in batch or epochs alone, by the name of their line.
Lines = Mapping[str, Sequence[Row]]
SPLITS = {"test": "test accuracy", "holdout": "hold-out accuracy"}


def recipe_of(name: str, rows: Sequence[Row]) -> str:
    """Return the name of a line without its optimizer; may be empty."""
    return name.removeprefix(rows[0].optimizer_title).strip()


def curves_size(lines: Lines) -> tuple[float, float]:
    """Return width and height of the plot of learning curves in inches."""
    rows = [row for line in lines.values() for row in line]
    batches = len({row.batch for row in rows})
    timed = common_conditions(row.timed for row in rows) is not None
    return WIDTH, 1.6 + 2.2 * (batches if timed else math.ceil(batches / 2))


def draw_curves(group: str, lines: Lines, figure: Any) -> None:
    """Draw every run's accuracy over the epochs, one panel per batch.

    If the runs have comparable times, each batch has a second panel with accuracy over wall time.
    """
    rows = [row for line in lines.values() for row in line]
    common = common_conditions(row.timed for row in rows)
    batches = sorted({row.batch for row in rows})
    panels = make_panels(figure, batches, timed=common is not None)
    styles = styles_of(recipe_of(name, line) for name, line in lines.items())
    # With more recipes than styles, the curves show only the optimizer.
    distinct = len(styles) <= len(STYLES)
    for name, line in lines.items():
        style, marker = styles[recipe_of(name, line)] if distinct else STYLES[0]
        look = {
            "color": color_of(line[0].optimizer_title), "linestyle": style, "linewidth": 1.2,
            "marker": marker, "markersize": 2.5, "alpha": 0.8,
        }  # fmt: skip
        for row in line:
            over_epochs, over_time = panels[row.batch]
            for record in row.records:
                epochs, seconds, accuracies = record.curve(row.split)
                over_epochs.plot(epochs, accuracies, **look)
                if over_time and not row.timed.leaves_out(record, common):
                    over_time.plot(seconds, accuracies, **look)
    figure.suptitle(f"{label_of(group)}: {SPLITS[rows[0].split]}, %")
    titles = dict.fromkeys(row.optimizer_title for row in rows)
    show_recipes(figure, styles if distinct else {}, *color_entries(titles))


def make_panels(figure: Any, batches: Sequence[int], timed: bool) -> dict[int, tuple[Any, Any]]:
    """Return for each batch the axes over epochs, and those over wall time or None."""
    if timed:
        grid = figure.subplots(len(batches), 2, sharey=True, sharex="col", squeeze=False)
        panels = {batch: (axes[0], axes[1]) for batch, axes in zip(batches, grid, strict=True)}
        grid[-1][1].set_xlabel("Wall time, s")
    else:
        panels = {batch: (axes, None) for batch, axes in batch_panels(figure, batches).items()}
    for batch, (axes, _) in panels.items():
        axes.set_title(f"batch {batch}", fontsize="medium")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axes in [panels[batch][0] for batch in batches[-1 if timed else -2 :]]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("Epoch")
    return panels


def batch_panels(figure: Any, batches: Sequence[int]) -> dict[int, Any]:
    """Return axes for each batch, two side by side, with shared scales."""
    columns = min(2, len(batches))
    count = math.ceil(len(batches) / columns)
    grid = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    for unused in grid.flat[len(batches) :]:
        unused.set_visible(False)
    return dict(zip(batches, grid.flat, strict=False))


def color_entries(titles: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    """Return a legend entry with the color of each optimizer."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=color_of(title), label=title) for title in titles]
