"""What a search found: an experiment for the final sweep, a page, and the curve of each cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.report.page import facts, fenced
from engine.report.plots import COLOURS, save
from engine.runs.records import Record
from engine.sweeps.tune import Cell


def experiment(cells: Sequence[Cell], command: str, scored: str, recipe: str | None) -> str:
    """Write the chosen values as an experiment that any of the cells can be trained with.

    recipe: the experiment they were searched upon.
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
) -> str:
    """Write the page of a search: what was chosen, how, and every trial."""
    keys = list(cells[0].axes)
    names = [key.removeprefix("optimizer.") for key in keys]
    chosen = "a grid for each optimizer and batch, all grown alike while any best lay on an edge"
    if cells[0].asked:
        chosen = "Optuna's trials, as many for each optimizer and batch"
    lines = [
        f"# {group}",
        "",
        f"Chosen on {scored}: {chosen}. The test split was not evaluated.",
        "",
        f"| Optimizer | Batch | {' | '.join(names)} | Hold-out accuracy, % | Trials | Note |",
        "|---|---|" + "---|" * (len(keys) + 3),
    ]
    for cell in cells:
        best = cell.best()
        edges = [name for key, name in zip(keys, names, strict=True) if cell.edge(key)]
        note = f"best still on the edge of {', '.join(edges)}" if edges else ""
        cells_text = [
            cell.optimizer.upper(), str(cell.batch), *(f"{value:g}" for value in best),
            shown(cell.scores[best]), str(len(cell.points())), note,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells_text)} |")
    lines += ["", "![rates](rates.png)", "", "Searched with, and to train on all images with:", ""]
    lines += [*fenced(command, final), "", facts(records), "", "## Trials", ""]
    lines += [f"| Optimizer | Batch | {' | '.join(names)} | Hold-out accuracy, % |"]
    lines += ["|---|---|" + "---|" * (len(keys) + 1)]
    for cell in cells:
        for point in cell.points():
            values = " | ".join(f"{value:g}" for value in point)
            score = shown(cell.scores[point])
            lines.append(f"| {cell.optimizer.upper()} | {cell.batch} | {values} | {score} |")
    return "\n".join(lines) + "\n"


def shown(score: float | None) -> str:
    """Write a score; a trial of which a seed diverged has none."""
    return "nan" if score is None else f"{score:.2f}"


def draw_rates(path: Path, cells: Sequence[Cell]) -> Path:
    """Draw accuracy against rate, a panel for each batch, the chosen value ringed."""
    batches = sorted({cell.batch for cell in cells})

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        for axes, batch in zip(panels, batches, strict=True):
            for cell in cells:
                if cell.batch == batch:
                    draw_cell(axes, cell)
            axes.set_xscale("log")
            axes.set(title=f"batch {batch}", xlabel="base_lr")
        panels[0].set_ylabel("Hold-out accuracy, %")

    return save(path, draw, (max(5.6, 3.6 * len(batches)), 3.8))


def draw_cell(axes: Any, cell: Cell) -> None:
    """Draw a cell's accuracy against its rate, a line for each value of the other keys."""
    name = cell.optimizer.upper()
    colour = COLOURS.get(name)
    # Points that lie on no grid make no line for each value of the other keys.
    others = [()] if cell.asked else sorted({point[1:] for point in cell.points()})
    for number, other in enumerate(others):
        drawn = [
            (p[0], cell.scores[p]) for p in sorted(cell.points()) if p[1:] == other or not other
        ]
        known = [(rate, score) for rate, score in drawn if score is not None]
        label = name if not other else f"{name} weight decay {other[0]:g}"
        alpha = 1.0 - 0.6 * number / len(others)
        if known:
            style = {"linestyle": "" if cell.asked else "-", "color": colour, "alpha": alpha}
            axes.plot(*zip(*known, strict=True), marker=".", label=label, **style)
        lost = [rate for rate, score in drawn if score is None]
        if lost:
            # On the axis itself: a diverged trial has no accuracy.
            axes.plot(
                lost, [0.02] * len(lost), "x", color=colour, transform=axes.get_xaxis_transform()
            )
    best = cell.best()
    if cell.scores[best] is not None:
        axes.plot(best[0], cell.scores[best], "o", markersize=11, fillstyle="none", color=colour)
