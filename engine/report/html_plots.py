"""The plots of report.html that no filter changes, as plotly's traces and axes.

report.js escapes their texts and adds the colors of the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.report.critical import SPLITS, Study
from engine.report.critical_page import interval, steps_cell
from engine.report.fit import rounded
from engine.report.style import color_of

# At most this many steps of a layer are drawn.
MOST_POINTS = 200


def steps_plot(study: Study) -> dict[str, Any]:
    """Return the plot of steps to the target against the batch.

    A batch that is not fitted is an open circle. One at which no run reaches the target is a text.
    """
    traces, texts = [], [f"The target is {study.target:g} % {SPLITS[study.split]}."]
    batches = sorted({point.batch for curve in study.curves for point in curve.points})
    for curve in study.curves:
        title, fit = curve.title, curve.fit
        points = [point for point in curve.points if point.steps is not None]
        look: dict[str, Any] = {"name": title, "legendgroup": title, "color": color_of(title)}
        traces.append({
            **look,
            "mode": "markers",
            "x": [point.batch for point in points],
            "y": [point.steps for point in points],
            "symbol": ["circle" if point.fitted else "circle-open" for point in points],
            "hovertext": [f"{title} {p.batch}: {steps_cell(p)} steps" for p in points],
        })  # fmt: skip
        texts += [
            f"{title} at batch {point.batch}: {steps_cell(point)} steps."
            for point in curve.points if point.steps is None
        ]  # fmt: skip
        if isinstance(fit, str):
            texts.append(f"{title}: {fit}")
            continue
        texts.append(
            f"{title}: critical batch size {rounded(fit.b_crit, 3)}, 90 % interval {interval(fit)}."
        )
        text = f"{title}: the fit"
        traces.append({
            **look, "mode": "lines", "x": batches,
            "y": [fit.s_min * (1 + fit.b_crit / batch) for batch in batches],
            "hovertext": [text] * len(batches), "showlegend": False,
        })  # fmt: skip
    ticks = {"tickvals": batches, "ticktext": [str(batch) for batch in batches]}
    x = {"type": "log", "title": {"text": "Batch"}, **ticks}
    y = {"type": "log", "title": {"text": "Steps to the target"}}
    return {"texts": texts, "traces": traces, "x": x, "y": y}


def ratio_plot(logged: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> dict[str, Any]:
    """Return the plot of a run's trust ratios over its steps, one line per layer.

    Args:
        logged: steps and trust ratios of each layer.

    """
    traces = []
    for layer, (steps, ratios) in logged.items():
        stride = -(-len(steps) // MOST_POINTS)
        x, y = list(steps[::stride]), [float(f"{ratio:.4g}") for ratio in ratios[::stride]]
        hovertext = [f"{layer}, step {step}: {ratio}" for step, ratio in zip(x, y, strict=True)]
        traces.append({"name": layer, "mode": "lines", "x": x, "y": y, "hovertext": hovertext})
    texts = [f"At most {MOST_POINTS} logged steps of a layer are drawn."]
    x_axis, y_axis = {"title": {"text": "Step"}}, {"type": "log", "title": {"text": "Trust ratio"}}
    return {"texts": texts, "traces": traces, "x": x_axis, "y": y_axis}
