"""What a group's report says of the gradient noise scale: a table against the batch, and a plot.

At batch B and noise scale S a run needs about 1 + S/B times the fewest steps that any batch could
do with, and 1 + B/S times the fewest examples (McCandlish et al. 2018, section 2.3, arXiv
1812.06162). Both are 2 where B is S: beyond it larger steps buy ever less.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.plots import save
from engine.rows import Record, Row
from engine.tables import escaped


def noise_scales(record: Record) -> tuple[list[int], list[float]]:
    """Return the epochs at whose end the run had a noise scale, and the scales in examples."""
    found = [(row["epoch"], row.get("noise_scale")) for row in record.history]
    known = [(epoch, scale) for epoch, scale in found if scale is not None and scale > 0]
    return [epoch for epoch, _ in known], [scale for _, scale in known]


def measured(rows: Sequence[Row]) -> list[Row]:
    """Return the rows any of whose runs estimated the noise scale."""
    return [row for row in rows if any(noise_scales(record)[1] for record in row.records)]


def noise_section(rows: Sequence[Row]) -> str:
    """Write how each batch compares with the noise scale of its runs; empty if none has it."""
    if not measured(rows):
        return ""
    lines = [
        "| Optimizer | Batch | Noise scale, first epoch | median | last epoch | Batch / median "
        "| Steps, x fewest | Examples, x fewest | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in measured(rows):
        runs = [scales for _, scales in map(noise_scales, row.records) if scales]
        scale = statistics.median(value for scales in runs for value in scales)
        ratio = row.batch / scale
        told = "a larger batch still saves steps" if ratio < 1 else "larger steps stop paying"
        cells = [
            escaped(row.optimizer.upper()),
            escaped(row.title),
            f"{statistics.fmean(scales[0] for scales in runs):,.0f}",
            f"{scale:,.0f}",
            f"{statistics.fmean(scales[-1] for scales in runs):,.0f}",
            f"{ratio:.2g}",
            f"{1 + 1 / ratio:.2f}",
            f"{1 + ratio:.2f}",
            told,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "The scale is tr(Sigma) / |G|^2 in examples, averaged over about 50 steps. At a batch of "
        "that size a run needs twice the fewest steps and twice the fewest examples (McCandlish et "
        "al. 2018); it is a rule of thumb, and the accuracies above are the measurement.",
    ]
    return "\n".join(lines)


def write_noise_plot(path: Path, group: str, rows: Sequence[Row]) -> list[Path]:
    """Draw every run's noise scale over the epochs; without any there is no file."""
    if not measured(rows):
        path.unlink(missing_ok=True)
        return []

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, row in enumerate(measured(rows)):
            label: str | None = f"{row.optimizer.upper()} {row.title}"
            for record in row.records:
                epochs, scales = noise_scales(record)
                axes.plot(epochs, scales, marker=".", color=f"C{number}", label=label)
                label = None
            axes.axhline(row.batch, color=f"C{number}", linestyle=":", linewidth=1)
        axes.set_yscale("log")
        title = f"{group}: gradient noise scale (dotted: the batch)"
        axes.set(xlabel="Epoch", ylabel="Examples", title=title)

    return [save(path, draw, (7.2, 4.2))]
