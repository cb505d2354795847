"""The plots of report.html that no filter changes, as plotly's traces and axes.

report.js escapes their texts and adds the colors of the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.config.optimizers import title_of
from engine.report.style import color_of

# At most this many steps of a layer are drawn.
MOST_POINTS = 200


def steps_plot(critical: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the plot of steps to the target against the batch; None without measurements.

    Args:
        critical: the content of critical.json; may be empty.

    """
    found = {name: fit for name, fit in critical.items() if isinstance(fit, dict)}
    if not found:
        return None
    traces, texts = [], [f"The target is {critical['target_accuracy']:g} %."]
    batches = sorted({point["batch"] for fit in found.values() for point in fit["batches"]})
    for name, fit in found.items():
        title = title_of(name)
        points = [point for point in fit["batches"] if point["steps"] is not None]
        look: dict[str, Any] = {"name": title, "legendgroup": name, "color": color_of(title)}
        traces.append({
            **look,
            "mode": "markers",
            "x": [point["batch"] for point in points],
            "y": [point["steps"] for point in points],
            "hovertext": [f"{title} {p['batch']}: {p['steps']:,.0f} steps" for p in points],
        })  # fmt: skip
        if fit.get("b_crit") is None:
            texts.append(f"{title}: {fit.get('reason') or 'no fit'}")
            continue
        low, high = (fit.get(key) for key in ("b_crit_low", "b_crit_high"))
        ends = " to ".join("open" if end is None else f"{end:,.4g}" for end in (low, high))
        texts.append(f"{title}: critical batch size {fit['b_crit']:,.4g}, 90 % interval {ends}.")
        curve = [fit["s_min"] * (1 + fit["b_crit"] / batch) for batch in batches]
        text = f"{title}: the fit"
        traces.append({
            **look, "mode": "lines", "x": batches, "y": curve, "hovertext": [text] * len(curve),
            "showlegend": False,
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
