"""A fair search for learning rates: the same number of trials for each optimizer and batch.

Every cell (an optimizer at a batch) has a geometric grid, and all grids have the same size. While
the best point of any cell lies on the edge of its grid, every cell gets one more value on that
axis: beyond the edge if its best point lies there, otherwise between its best point and the better
neighbor. With a budget of trials, Optuna chooses the points inside the first grid's bounds instead.
Trials are scored only on held-out training images; the test split is never evaluated. The result is
an experiment for the final sweep, a page, and a plot of each cell.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config.optimizers import title_of
from engine.errors import key_error
from engine.report.answer import opening
from engine.report.curves import batch_panels
from engine.report.page import OTHER_COMMITS, facts, fenced
from engine.report.rows import make_rows
from engine.report.style import SMALL_TEXT, WIDTH, color_of, save, show_recipes, styles_of
from engine.report.tables import escaped
from engine.runs.records import Record

Point = tuple[float, ...]
Measure = Callable[[Sequence["Cell"]], None]


@dataclass
class Cell:
    """The search for one optimizer at one batch.

    Attributes:
        optimizer: name of the optimizer.
        batch: batch size.
        overrides: overrides of every trial, without seed and tuned keys.
        axes: values of each tuned key, in ascending order.
        scores: score of each point tried, higher for a better one; None if a seed diverged.
            scripts.tune has the hold-out accuracy in %, the mean over seeds.
        asked: the points that Optuna chose.

    """

    optimizer: str
    batch: int
    overrides: list[str]
    axes: dict[str, list[float]]
    scores: dict[Point, float | None] = field(default_factory=dict)
    asked: list[Point] = field(default_factory=list)

    def points(self) -> list[Point]:
        """Return the points to try, with one value per key of `axes`: Optuna's, or the grid's."""
        return self.asked or list(itertools.product(*self.axes.values()))

    def score(self, point: Point) -> float:
        """Return a point's score; minus infinity if it diverged."""
        score = self.scores[point]
        return -math.inf if score is None else score

    def best(self) -> Point:
        """Return the best point; of several with equal scores, the one with the smallest values."""
        return max(sorted(self.points()), key=self.score)

    def edge(self, key: str) -> int:
        """Return -1 or 1 if the best point has a key's lowest or highest value, otherwise 0.

        Returns -1 if every point diverged, and 0 if the key has only one value.
        """
        if all(self.scores[point] is None for point in self.points()):
            return -1
        values = self.axes[key]
        place = values.index(self.best()[list(self.axes).index(key)])
        if len(values) == 1:
            return 0
        return -1 if place == 0 else 1 if place == len(values) - 1 else 0

    def grow(self, key: str, factor: float) -> None:
        """Add a value of a key: beyond the edge that the best lies on, or next to the best.

        Args:
            key: the key.
            factor: ratio between neighboring values, used beyond an edge.

        """
        values, edge = self.axes[key], self.edge(key)
        if edge < 0:
            added = values[0] / factor
        elif edge > 0:
            added = values[-1] * factor
        else:
            place = list(self.axes).index(key)
            best = self.best()
            at = values.index(best[place])
            neighbors = [values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)]
            neighbor = max(
                neighbors, key=lambda v: self.score((*best[:place], v, *best[place + 1 :]))
            )
            added = math.sqrt(best[place] * neighbor)
        values.append(rounded(added))
        values.sort()


def rounded(value: float) -> float:
    """Round to six significant digits, so that a rate is readable and names the same run again."""
    return float(f"{value:.6g}")


def geometric(center: float, points: int, factor: float) -> list[float]:
    """Return `points` values around a center, each `factor` times the one before."""
    return [rounded(center * factor ** (i - points // 2)) for i in range(points)]


def search(cells: Sequence[Cell], measure: Measure, factor: float, most: int) -> None:
    """Extend the cells' grids until no best point lies on an edge, or an axis has `most` values.

    Args:
        cells: the cells, with grids of the same size.
        measure: sets the scores of the points that have none.
        factor: ratio of a new value to the edge that it extends.
        most: largest number of values of an axis.

    """
    measure(cells)
    while True:
        growing = [
            key
            for key in cells[0].axes
            if len(cells[0].axes[key]) < most and any(cell.edge(key) for cell in cells)
        ]
        if not growing:
            return
        for cell in cells:
            cell.grow(growing[0], factor)
        measure(cells)


def search_by_optuna(cells: Sequence[Cell], measure: Measure, trials: int) -> None:
    """Let Optuna choose each cell's trials, inside the bounds of its grid.

    Its sampler is seeded, so the same command repeats the same trials and finds them finished.
    Raises UserError if Optuna is not installed.

    Args:
        cells: the cells.
        measure: sets the scores of the points that have none.
        trials: number of trials of each cell.

    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise key_error(
            "tune.trials", trials, "needs Optuna; run pip install -e '.[optuna]'"
        ) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = [
        optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
        for _ in cells
    ]
    bounds = [{key: (values[0], values[-1]) for key, values in cell.axes.items()} for cell in cells]
    for _ in range(trials):
        asked = [study.ask() for study in studies]
        for cell, trial, limits in zip(cells, asked, bounds, strict=True):
            point = tuple(
                rounded(trial.suggest_float(key, *ends, log=True)) for key, ends in limits.items()
            )
            cell.asked.append(point)
            for place, key in enumerate(cell.axes):
                cell.axes[key] = sorted({tried[place] for tried in cell.asked})
        measure(cells)
        for cell, study, trial in zip(cells, studies, asked, strict=True):
            # Optuna gets a finite score, which is below every accuracy.
            study.tell(trial, max(-1.0, cell.score(cell.asked[-1])))


def experiment(cells: Sequence[Cell], command: str, scored: str, recipe: str | None) -> str:
    """Return the YAML of an experiment with the chosen values of every cell.

    Args:
        cells: the cells.
        command: the command of the search.
        scored: what the trials were scored on, in words.
        recipe: the experiment that the search extended, if any.

    """
    lines = [
        "# @package _global_",
        f"# Chosen on {scored}, {len(cells[0].points())} trials for each optimizer and batch, by:",
        f"#   {' '.join(command.split())}",
        *(["defaults:", f"  - {recipe}", "  - _self_"] if recipe else []),
        "optimizer:",
    ]
    for place, key in enumerate(cells[0].axes):
        values: dict[str, dict[int, float]] = {}
        for cell in cells:
            values.setdefault(cell.optimizer, {})[cell.batch] = cell.best()[place]
        listed = ", ".join(
            f"{optimizer}: ${{by_batch:{{{', '.join(f'{b}: {v!r}' for b, v in chosen.items())}}}}}"
            for optimizer, chosen in values.items()
        )
        lines.append(f'  {key.removeprefix("optimizer.")}: "${{by_optimizer:{{{listed}}}}}"')
    return "\n".join(lines) + "\n"


def tuning_page(
    group: str,
    cells: Sequence[Cell],
    records: Sequence[Record],
    command: str,
    final: str,
    scored: str,
    notes: str = "",
) -> str:
    """Return the Markdown page of a search: the chosen values, how they were found, every trial.

    Args:
        group: the group of the trials.
        cells: the cells.
        records: the trials' runs.
        command: the command of the search.
        final: the command of the final sweep.
        scored: what the trials were scored on, in words.
        notes: hand-written Markdown to include.

    """
    keys = list(cells[0].axes)
    names = [key.removeprefix("optimizer.") for key in keys]
    chosen = (
        "a grid for each optimizer and batch; all grids grew together while any best value was "
        "on an edge"
    )
    if cells[0].asked:
        chosen = "Optuna's trials, as many for each optimizer and batch"
    lines = [
        f"# {group}",
        "",
        escaped(opening(make_rows(records))),
        "",
        f"The values were chosen on {scored}: {chosen}. The test split was not evaluated.",
        "",
        f"| Optimizer | Batch | {' | '.join(names)} | Hold-out accuracy, % | Trials | Note |",
        "|---|---|" + "---|" * (len(keys) + 3),
    ]
    for cell in cells:
        best = cell.best()
        edges = [name for key, name in zip(keys, names, strict=True) if cell.edge(key)]
        note = f"best still on the edge of {', '.join(edges)}" if edges else ""
        cells_text = [
            title_of(cell.optimizer), str(cell.batch), *(f"{value:g}" for value in best),
            shown(cell.scores[best]), str(len(cell.points())), note,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells_text)} |")
    commits = dict.fromkeys(record.summary.get("commit") or "not recorded" for record in records)
    lines += ["", "![rates](rates.png)", "", "## How to repeat it", ""]
    lines += [f"The search ran at commit {' and '.join(map(str, commits))}:", "", *fenced(command)]
    lines += ["", "This trains with the chosen values on all images:", "", *fenced(final), ""]
    lines += [OTHER_COMMITS, "", facts(records)]
    lines += ["", *([notes.strip(), ""] if notes.strip() else []), "## Trials", ""]
    lines += [f"| Optimizer | Batch | {' | '.join(names)} | Hold-out accuracy, % |"]
    lines += ["|---|---|" + "---|" * (len(keys) + 1)]
    for cell in cells:
        for point in cell.points():
            values = " | ".join(f"{value:g}" for value in point)
            score = shown(cell.scores[point])
            lines.append(f"| {title_of(cell.optimizer)} | {cell.batch} | {values} | {score} |")
    return "\n".join(lines) + "\n"


def shown(score: float | None, digits: int = 2) -> str:
    """Return a score as text; `nan` if a seed diverged."""
    return "nan" if score is None else f"{score:.{digits}f}"


def draw_rates(path: Path, cells: Sequence[Cell]) -> Path:
    """Plot accuracy over learning rate, one panel per batch, with the chosen value circled.

    Returns the path of the PNG file.
    """
    batches = sorted({cell.batch for cell in cells})
    styles = styles_of(recipe for cell in cells for recipe in points_by_recipe(cell))

    def draw(figure: Any) -> None:
        panels = batch_panels(figure, batches)
        for batch, axes in panels.items():
            axes.set_xscale("log")
            axes.set_title(f"batch {batch}", fontsize="medium")
            for cell in cells:
                if cell.batch == batch:
                    draw_cell(axes, cell, styles)
            axes.margins(y=0.15)
        for axes in list(panels.values())[-2:]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("base_lr")
        figure.suptitle("Hold-out accuracy, %")
        show_recipes(figure, styles)

    return save(path, draw, (WIDTH, 1.2 + 2.4 * math.ceil(len(batches) / 2)))


def points_by_recipe(cell: Cell) -> dict[str, list[Point]]:
    """Return a cell's points in ascending order, by the value of the second tuned key if any."""
    found: dict[str, list[Point]] = {}
    # Optuna's points are on no grid, so there are no lines by value of the other key.
    for point in sorted(cell.points()):
        named = len(point) > 1 and not cell.asked
        found.setdefault(f"weight decay {point[1]:g}" if named else "", []).append(point)
    return found


def draw_cell(axes: Any, cell: Cell, styles: dict[str, tuple[Any, str]]) -> None:
    """Plot a cell's accuracy over its learning rate, one line for each value of the other key."""
    color = color_of(title_of(cell.optimizer))
    for recipe, points in points_by_recipe(cell).items():
        style, marker = styles[recipe]
        known = [(point[0], cell.scores[point]) for point in points]
        known = [(rate, score) for rate, score in known if score is not None]
        if known:
            look = {"linestyle": "" if cell.asked else style, "linewidth": 1.5, "color": color}
            axes.plot(*zip(*known, strict=True), marker=marker, markersize=4, **look)
        lost = [point[0] for point in points if cell.scores[point] is None]
        if lost:
            # A diverged trial has no accuracy, so it is marked at the bottom of the panel.
            axes.plot(
                lost, [0.02] * len(lost), "x", color=color, transform=axes.get_xaxis_transform()
            )
    best = cell.best()
    if cell.scores[best] is not None:
        axes.plot(best[0], cell.scores[best], "o", markersize=11, fillstyle="none", color=color)
        text = f"{title_of(cell.optimizer)} {shown(cell.scores[best], 1)}"
        look = {"color": color, "fontsize": SMALL_TEXT, "ha": "center", "annotation_clip": False}
        axes.annotate(
            text, (best[0], cell.scores[best]), (0, 9), textcoords="offset points", **look
        )
