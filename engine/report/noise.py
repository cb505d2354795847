"""Report the gradient noise scale of a group's runs: a table and a plot.

At batch size B and noise scale S, a run needs about 1 + S/B times the fewest steps that any batch
size could reach, and 1 + B/S times the fewest examples (McCandlish et al. 2018, section 2.3, arXiv
1812.06162). Both factors are 2 at B = S. Beyond that, larger batches give diminishing returns.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.report.rows import Row
from engine.report.style import (
    GREY,
    SMALL_TEXT,
    WIDTH,
    EndLabel,
    color_of,
    label_ends,
    label_of,
    remove,
    save,
    show_recipes,
    styles_of,
)
from engine.report.tables import escaped
from engine.runs.records import Record


def noise_scales(record: Record) -> tuple[list[int], list[float | None]]:
    """Return the epochs with an estimate, and the noise scale in examples at the end of each.

    The scale is None if the estimate is not positive.
    """
    rows = [row for row in record.history if "noise_scale" in row]
    found = [row["noise_scale"] for row in rows]
    return [row["epoch"] for row in rows], [s if s is not None and s > 0 else None for s in found]


def measured(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in which at least one run estimated the noise scale."""
    return [row for row in rows if any(noise_scales(record)[0] for record in row.records)]


def noise_section(rows: Sequence[Row]) -> str:
    """Return a table of batch sizes and noise scales as Markdown; empty if no run has estimates."""
    if not measured(rows):
        return ""
    lines = [
        "| Optimizer | Batch | Noise scale, first epoch | median | last epoch "
        "| Epochs without estimate | Batch / median | Steps / fewest | Examples / fewest | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in measured(rows):
        runs = [scales for _, scales in map(noise_scales, row.records) if scales]
        every = [value for scales in runs for value in scales]
        known = [value for value in every if value is not None]
        # Lost estimates may lie on either side of the median.
        scale = statistics.median(known) if len(known) > len(every) / 2 else None
        ratio = None if scale is None else row.batch / scale
        cells = [
            escaped(row.optimizer_title),
            escaped(row.title),
            _examples([scales[0] for scales in runs]),
            _examples([scale]),
            _examples([scales[-1] for scales in runs]),
            f"{len(every) - len(known)} of {len(every)}",
            *(["-"] * 4 if ratio is None else _ratio_cells(ratio)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "The noise scale is tr(Sigma) / |G|^2 in examples, averaged over about 50 steps. With a "
        "batch of that size a run needs twice the fewest possible steps and twice the fewest "
        "possible examples (McCandlish et al. 2018). This is a rule of thumb; the accuracies are "
        "the measurement. If the estimate is not above 0, the epoch has none. A large batch, which "
        "averages out the noise, is one cause.",
    ]
    return "\n".join(lines)


def _examples(scales: Sequence[float | None]) -> str:
    """Return the mean of the estimates as text; `-` if one of them is None."""
    known = [scale for scale in scales if scale is not None]
    return f"{statistics.fmean(known):,.0f}" if len(known) == len(scales) else "-"


def _ratio_cells(ratio: float) -> list[str]:
    """Return the cells for the ratio of batch size and noise scale."""
    verdict = "a larger batch saves steps" if ratio < 1 else "a larger batch saves few steps"
    return [f"{ratio:.2g}", f"{1 + 1 / ratio:.2f}", f"{1 + ratio:.2f}", verdict]


def write_noise_plot(path: Path, group: str, rows: Sequence[Row]) -> list[Path]:
    """Draw every run's noise scale over the epochs; return the path of the PNG file.

    If no run has estimates, remove the file and return no path.
    """
    found = measured(rows)
    if not found:
        remove(path)
        return []
    styles = styles_of(f"batch {row.title}" for row in found)

    def draw(figure: Any) -> None:
        axes, ends = figure.subplots(), []
        for row in found:
            color = color_of(row.optimizer_title)
            style, marker = styles[f"batch {row.title}"]
            for record in row.records:
                epochs, scales = noise_scales(record)
                # An epoch without an estimate is a gap in the line.
                drawn = [math.nan if scale is None else scale for scale in scales]
                axes.plot(epochs, drawn, linestyle=style, marker=marker, color=color)
                if scales and scales[-1] is not None:
                    ends.append(EndLabel(epochs[-1], scales[-1], row.optimizer_title, color))
        axes.set_yscale("log")
        for batch in sorted({row.batch for row in found}):
            axes.axhline(batch, color=GREY, linewidth=1)
            axes.text(
                0.01, batch, f"batch {batch}", color=GREY, fontsize=SMALL_TEXT, va="bottom",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        axes.set(
            xlabel="Epoch", ylabel="Examples", title=f"{label_of(group)}: gradient noise scale"
        )
        label_ends(axes, ends)
        show_recipes(figure, styles)

    return [save(path, draw, (WIDTH, 4.8))]
