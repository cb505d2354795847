"""The style of all plots: colors, line styles, labels at line ends, and how a plot is written.

The color is the optimizer. The line style and the marker are the recipe: what else distinguishes
the lines, such as the number of epochs or the group.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.optimizers import TITLES
from engine.runs.records import DIVERGED
from engine.system.files import write_atomically


def darker(color: str) -> str:
    """Return a color with half of its brightness.

    >>> darker("#0072b2")
    '#003959'
    """
    return "#" + "".join(f"{int(color[place : place + 2], 16) // 2:02x}" for place in (1, 3, 5))


# Six colors that remain distinct with color-vision deficiencies (Okabe and Ito 2008).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#6c757d"
# Optimizers keep their colors when others are added.
ORDER = ("SGD", "LARS", "AdamW", "LAMB", "Muon")
COLORS = {title: PALETTE[place] for place, title in enumerate(ORDER)}
COLORS |= dict.fromkeys([title for title in TITLES.values() if title not in ORDER], PALETTE[-1])
# An optimizer inside LARSWrapper has a darker shade of its color.
COLORS |= {f"LARS({title})": darker(COLORS[title]) for title in ORDER if title != "LARS"}
# Line style and marker of each recipe in turn.
STYLES = (
    ("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (6, 1, 1, 1, 1, 1)), "v"),
    ((0, (1, 3)), "P"),
)  # fmt: skip
# A phone shows a plot 360 pixels wide, so plots are narrow and their text is large.
WIDTH = 6.0
DOTS_PER_INCH = 160
TEXT = 12.0
SMALL_TEXT = 10.5
PARAMETERS = {
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT + 1,
    "figure.titlesize": TEXT + 1,
    "font.size": TEXT,
    "legend.fontsize": SMALL_TEXT,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.0,
    # Without a fixed salt and date, the same plot would give another SVG file each time.
    "svg.hashsalt": "lars-bench",
    "xtick.labelsize": SMALL_TEXT,
    "ytick.labelsize": SMALL_TEXT,
}


@dataclass(frozen=True)
class EndLabel:
    """A label next to the last point of a line.

    Attributes:
        x: the last point's place on the x axis.
        y: its place on the y axis.
        text: the label.
        color: its color.

    """

    x: float
    y: float
    text: str
    color: str


def color_of(title: str) -> str:
    """Return the color of an optimizer, by its name in tables and plots."""
    return COLORS.get(title, GREY)


def styles_of(recipes: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Return line style and marker by recipe; they repeat after six recipes."""
    distinct = dict.fromkeys(recipes)
    return {recipe: STYLES[place % len(STYLES)] for place, recipe in enumerate(distinct)}


def draw_runs(axes: Any, runs: Sequence[tuple[float, float, str]], color: str, marker: str) -> None:
    """Draw each run as a marker, or as a cross if it diverged.

    Args:
        axes: matplotlib's axes.
        runs: place on the x axis, place on the y axis and status of each run.
        color: the optimizer's color.
        marker: the recipe's marker.

    """
    whole = [(x, y) for x, y, status in runs if status != DIVERGED]
    lost = [(x, y) for x, y, status in runs if status == DIVERGED]
    look: dict[str, Any] = {"s": 34, "color": color, "zorder": 3}
    if whole:
        axes.scatter(*zip(*whole, strict=True), marker=marker, edgecolor="white", lw=0.5, **look)
    if lost:
        axes.scatter(*zip(*lost, strict=True), marker="x", lw=2, **look)


def label_of(name: str) -> str:
    """Return a name as a label; its dollar signs are escaped, which would enclose a formula."""
    return name.replace("$", r"\$")


def short(name: str) -> str:
    """Return a name with shorter keys; the tables have the whole keys.

    >>> short("optimizer.variant=timm scheduler.name=cosine")
    'variant=timm scheduler.name=cosine'
    """
    return re.sub(r"\b(?:optimizer|model|loss|scheduler)\.(?!name)", "", name)


def save(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> Path:
    """Draw a figure and write it as PNG, and as SVG next to it; return the path of the PNG file.

    The same runs give the same bytes.

    Args:
        path: the PNG file to write.
        draw: draws on an empty matplotlib figure.
        size: width and height in inches.

    """
    # A notebook sets its backend for the commands that it starts. matplotlib cannot be imported if
    # that backend is not installed here.
    os.environ["MPLBACKEND"] = "agg"
    # Without pyplot, a Figure needs no display and keeps no state between plots.
    import matplotlib.style
    from matplotlib.figure import Figure

    files = {path: io.BytesIO(), path.with_suffix(".svg"): io.BytesIO()}
    # These plots ignore the user's matplotlibrc, which may require LaTeX.
    with matplotlib.style.context(["default", PARAMETERS]):
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        # matplotlib's version or a date in the file would make plots of the same runs differ.
        metadata: tuple[dict[str, None], ...] = (
            {"Software": None},
            {"Creator": None, "Date": None},
        )
        for (file, buffer), left_out in zip(files.items(), metadata, strict=True):
            figure.savefig(buffer, format=file.suffix[1:], metadata=left_out)
            # The second file has the same layout, which takes long to compute.
            figure.set_layout_engine("none")
    for file, buffer in files.items():
        write_bytes(file, buffer.getvalue())
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def remove(path: Path) -> None:
    """Remove a plot's PNG and SVG file if they exist."""
    for file in (path, path.with_suffix(".svg")):
        file.unlink(missing_ok=True)


def scale_by_two(axes: Any, places: Sequence[int], ticks: Sequence[int]) -> None:
    """Give the x axis a logarithmic scale around ascending places, with these ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)


def label_ends(axes: Any, labels: Sequence[EndLabel]) -> None:
    """Write labels next to the line ends; labels at the same x are moved apart vertically.

    The limits of the axes must be final.
    """
    # An estimate of the panel's height in inches, because the layout is not known yet.
    height = axes.figure.get_figheight() * axes.get_subplotspec().get_position(axes.figure).height
    gap = 1.15 * SMALL_TEXT / 72 / height
    # matplotlib fits the limits to the data only when they are read.
    axes.get_xlim(), axes.get_ylim()
    place = axes.transScale + axes.transLimits
    by_x: dict[float, list[EndLabel]] = {}
    for label in labels:
        by_x.setdefault(label.x, []).append(label)
    for found in by_x.values():
        ranked = sorted(found, key=lambda label: label.y)
        points = [place.transform((label.x, label.y)) for label in ranked]
        for label, point, y in zip(
            ranked, points, spread([p[1] for p in points], gap), strict=True
        ):
            axes.annotate(
                label_of(label.text), point, (point[0] + 0.025, y), "axes fraction",
                color=label.color, fontsize=SMALL_TEXT, va="center", annotation_clip=False,
            )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return ascending places, moved as little as possible until they are `gap` apart.

    >>> spread([0.0, 0.5, 0.5], 0.25)
    [0.0, 0.375, 0.625]
    """
    # Each block is a list of labels that touch, centered on the mean of their places.
    blocks: list[list[float]] = []

    def bottom(block: Sequence[float]) -> float:
        return sum(block) / len(block) - gap * (len(block) - 1) / 2

    for place in places:
        blocks.append([place])
        while len(blocks) > 1:
            before, last = blocks[-2:]
            if bottom(before) + gap * len(before) <= bottom(last):
                break
            blocks[-2:] = [before + last]
    return [bottom(block) + gap * number for block in blocks for number in range(len(block))]


def show_recipes(figure: Any, styles: dict[str, tuple[Any, str]], *others: Any) -> None:
    """Show below the axes what line styles and markers mean; nothing if there is only one recipe.

    Args:
        figure: matplotlib's figure.
        styles: line style and marker by recipe.
        others: more entries.

    """
    from matplotlib.lines import Line2D

    entries = [
        Line2D(
            [], [], color="black", linewidth=1.5, linestyle=style, marker=marker, markersize=5,
            label=label_of(short(recipe)),
        )
        for recipe, (style, marker) in styles.items()
        if recipe
    ]  # fmt: skip
    entries += others
    if entries:
        longest = max(len(str(entry.get_label())) for entry in entries)
        columns = 2 if longest < 26 and len(entries) > 1 else 1
        figure.legend(handles=entries, loc="outside lower center", ncols=columns, handlelength=4)
