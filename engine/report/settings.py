"""Rank the many settings of an ablation or a search in one plot."""

import textwrap
from collections.abc import Sequence
from typing import Any

from engine.report.curves import SPLITS, Lines
from engine.report.rows import Row
from engine.report.style import (
    SMALL_TEXT,
    WIDTH,
    color_of,
    draw_runs,
    label_of,
    short,
    styles_of,
)

# With more settings at a single batch than this, they get a separate plot.
MOST_SETTINGS = 4
# A setting's name is broken into lines of this many characters.
NAME_WIDTH = 30


def part_settings(lines: Lines) -> tuple[Lines, list[Row]]:
    """Separate lines of several batches from settings at a single batch, if these are many.

    A line's row that is in the same cell as a setting is among the settings too, because an
    ablation's settings are compared with it.
    """
    lone = [line[0] for line in lines.values() if len(line) == 1]
    if len(lone) <= MOST_SETTINGS:
        return lines, []
    cells = {row.cell for row in lone}
    settings = [row for line in lines.values() for row in line if row.cell in cells]
    return {label: line for label, line in lines.items() if len(line) > 1}, settings


def draw_settings(group: str, rows: Sequence[Row], figure: Any) -> None:
    """Draw rows from best to worst; each run is a dot, a diverged one a cross.

    The means are to the right of the axes.
    """
    axes = figure.subplots()
    ranked = sorted(rows, key=lambda row: row.accuracy() or 0.0)
    places = name_places(rows, ranked)
    styles = styles_of(row.scope for row in rows)
    for row, place in zip(ranked, places, strict=True):
        color, mean = color_of(row.optimizer_title), row.accuracy()
        runs = [(value, place, status) for status, value in row.results()]
        draw_runs(axes, runs, color, styles[row.scope][1])
        if mean is not None:
            axes.plot(mean, place, "|", color=color, markersize=13)
            text = {"fontsize": SMALL_TEXT, "color": color, "va": "center"}
            axes.text(1.01, place, f"{mean:.1f}", transform=axes.get_yaxis_transform(), **text)
    axes.set_yticks(places, [label_of(name_of(row, rows)) for row in ranked])
    for tick, row in zip(axes.get_yticklabels(), ranked, strict=True):
        tick.set_color(color_of(row.optimizer_title))
    axes.set_ylim(-0.4, places[-1] + places[0] + 0.4)
    axes.set(xlabel=f"Final {SPLITS[rows[0].split]}, %", title=label_of(group))


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Return a row's name in the plot of settings, broken into short lines.

    It leaves out the batch if all rows have the same one, and shortens keys; the tables have the
    whole keys.
    """
    batch = str(row.batch) if len({other.batch for other in rows}) > 1 else ""
    name = " ".join(filter(None, (row.optimizer_title, batch, row.scope, row.setting)))
    return "\n".join(textwrap.wrap(short(name), NAME_WIDTH))


def name_places(rows: Sequence[Row], ranked: Sequence[Row]) -> list[float]:
    """Return the place of each ranked row on the y axis: as many units as its name has lines."""
    places, top = [], 0.0
    for row in ranked:
        height = 0.4 + 0.6 * len(name_of(row, rows).splitlines())
        places.append(top + height / 2)
        top += height
    return places


def settings_size(rows: Sequence[Row]) -> tuple[float, float]:
    """Return width and height of the plot of settings in inches."""
    return WIDTH, 1.4 + 0.26 * (name_places(rows, rows)[-1] if rows else 0.0)
