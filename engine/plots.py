"""Plots of a group: accuracy and time against the batch, accuracy against the epoch."""

import io
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.files import write_atomically

if TYPE_CHECKING:
    from engine.rows import Row

COLOURS = {"sgd": "#1f6f8b", "lars": "#d1495b"}


def write_plots(folder: Path, group: str, rows: Sequence["Row"]) -> list[Path]:
    """Draw what the rows allow; return the paths of the PNG files written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {
        "accuracy.png": lambda axes: _against_batch(axes, rows, "test_accuracy"),
        "time.png": lambda axes: _against_batch(axes, rows, "train_seconds"),
        "curves.png": lambda axes: _curves(axes, rows),
    }
    labels = {
        "accuracy.png": ("Batch", "Final test accuracy, %"),
        "time.png": ("Batch", "Training time, s"),
        "curves.png": ("Epoch", "Test accuracy, %"),
    }
    paths = []
    for name, draw in drawn.items():
        figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=120, layout="constrained")
        draw(axes)
        axes.set(xlabel=labels[name][0], ylabel=labels[name][1], title=group)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
        buffer = io.BytesIO()
        # Without dates and versions the same runs give the same file.
        figure.savefig(buffer, format="png", metadata={"Software": None})
        pyplot.close(figure)
        write_atomically(folder / name, partial(_copy, buffer))
        paths.append(folder / name)
    return paths


def _copy(buffer: io.BytesIO, file: BinaryIO) -> None:
    file.write(buffer.getbuffer())


def _against_batch(axes: Any, rows: Sequence["Row"], key: str) -> None:
    """Draw each optimizer's mean against the batch, every run a dot, a diverged one a cross."""
    batches = sorted({row.batch for row in rows})
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.optimizer, row.settings), []).append(row)
    for (optimizer, settings), members in lines.items():
        points = [(row.batch, row.mean(key)) for row in members]
        points = [(batch, mean) for batch, mean in points if mean is not None]
        if not points:
            continue
        label = optimizer.upper() + (f" {settings}" if settings else "")
        shade = {} if settings else {"color": COLOURS.get(optimizer)}
        (line,) = axes.plot(*zip(*points, strict=True), label=label, **shade)
        for status, marker in (("completed", "o"), ("diverged", "x")):
            dots = [(row.batch, r.summary[key]) for row in members for r in row.of(status)]
            if dots:
                axes.scatter(*zip(*dots, strict=True), 20, color=line.get_color(), marker=marker)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    if key == "train_seconds":
        axes.set_ylim(bottom=0)


def _curves(axes: Any, rows: Sequence["Row"]) -> None:
    """Draw each row's test accuracy over the epochs, the mean over its seeds."""
    for row in rows:
        by_epoch: dict[int, list[float]] = {}
        for record in row.records:
            for line in record.history:
                if line["test_accuracy"] is not None:
                    by_epoch.setdefault(line["epoch"], []).append(line["test_accuracy"])
        if by_epoch:
            label = f"{row.optimizer.upper()} {row.batch} {row.settings}".strip()
            style = "-" if row.optimizer == "sgd" else "--"
            means = [statistics.fmean(values) for _, values in sorted(by_epoch.items())]
            axes.plot(sorted(by_epoch), means, style, label=label, marker=".", linewidth=1.2)
