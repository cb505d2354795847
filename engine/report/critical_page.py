"""Report a study of the critical batch size: critical.json, a section of the page, one sentence."""

import json
from collections.abc import Sequence
from typing import Any

from engine.report.answer import opening
from engine.report.critical import SPLITS, Curve, Point, Study
from engine.report.fit import LEAST_BATCHES, Fit, rounded
from engine.report.rows import Row
from engine.report.tables import escaped


def critical_json(study: Study) -> str:
    """Return critical.json: the points and the fit of each optimizer."""
    summary = study.row.records[0].summary
    content: dict[str, Any] = {
        "target_accuracy": study.target,
        "split": study.split,
        "model": summary["model"],
        "data": summary["data"],
    }
    for curve in study.curves:
        content[curve.optimizer] = {"batches": [_batch(p) for p in curve.points], **_fit(curve)}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _batch(point: Point) -> dict[str, Any]:
    return {
        "batch": point.batch,
        "steps": point.steps,
        "examples": point.examples,
        "runs": len(point.passages),
        "censored": len(point.passages) - len(point.reached),
        "base_lr": point.row.first("base_lr"),
        "eval_every": point.row.choices.get("eval_every"),
    }


def _fit(curve: Curve) -> dict[str, Any]:
    fit, scale = curve.fit, curve.noise_scale
    noise = {} if scale is None else {"noise_scale": _figure(scale)}
    if isinstance(fit, str):
        return {"reason": fit, **noise}
    return {
        "b_crit": _figure(fit.b_crit),
        "b_crit_low": _figure(fit.low),
        "b_crit_high": _figure(fit.high),
        "s_min": _figure(fit.s_min),
        "e_min": _figure(fit.e_min),
        **noise,
    }


def _figure(value: float | None) -> float | None:
    # Other machines may round the last digits differently.
    return None if value is None else float(f"{value:.6g}")


def critical_sentence(study: Study) -> str:
    """Return the critical batch size of each optimizer in one sentence."""
    if not study.enough:
        return (
            f"No critical batch size: runs of one optimizer reach {study.target:g} % at "
            f"{study.reached_batches} batch sizes, and a fit needs {LEAST_BATCHES}."
        )
    found = "; ".join(f"{curve.title} {_result(curve)}" for curve in study.curves)
    return f"Critical batch size at {study.target:g} % {SPLITS[study.split]}: {found}."


def answers(rows: Sequence[Row], study: Study | None) -> list[str]:
    """Return the sentences that answer a group's question, the most important one first.

    Accuracies answer nothing if every run stops at the target.
    """
    found = [] if study is None else [critical_sentence(study)]
    stopped = all(row.stops_at_target for row in rows)
    return found if found and stopped else [opening(rows), *found]


def _result(curve: Curve) -> str:
    """Return an optimizer's critical batch size and regimes in words."""
    fit, span = curve.fit, curve.span()
    if isinstance(fit, str):
        text = f"not known ({fit[0].lower()}{fit[1:].rstrip('.')})"
    else:
        text = f"{rounded(fit.b_crit, 3)} (90 % interval {interval(fit)})"
    return f"{text}, {span}" if span else text


def interval(fit: Fit) -> str:
    """Return the interval of the critical batch size as text."""
    low, high = (None if end is None else rounded(end, 3) for end in (fit.low, fit.high))
    if high is None:
        return f"from {low}, open above"
    return f"up to {high}, open below" if low is None else f"{low} to {high}"


def critical_section(study: Study, plots: Sequence[str]) -> str:
    """Return the section of the page, without its heading and sentence, as Markdown.

    Args:
        study: the study.
        plots: file names of its plots.

    """
    noise = any(point.noise_scale is not None for c in study.curves for point in c.points)
    parts = []
    for curve in study.curves:
        parts.append(f"### {escaped(curve.title)}\n\n{_table(curve, noise)}")
        parts += [escaped(curve.fit)] if isinstance(curve.fit, str) else []
    parts += [_notes(study, noise), *(f"![{name.removesuffix('.png')}]({name})" for name in plots)]
    return "\n\n".join(parts)


def critical_text(study: Study) -> str:
    """Return the table of all optimizers and one sentence for each, as aligned text."""
    tables = {curve.title: _cells(curve, False) for curve in study.curves}
    (heading, *_), *_ = tables.values()
    lines = [["Optimizer", *heading]]
    lines += [[title, *cells] for title, table in tables.items() for cells in table[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    sentences = [f"{c.title}: critical batch size {_result(c)}." for c in study.curves]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], "", *sentences])


def _table(curve: Curve, noise: bool) -> str:
    """Return a table of an optimizer's batches as Markdown."""
    columns, *rows = _cells(curve, noise)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _cells(curve: Curve, noise: bool) -> list[list[str]]:
    """Return the cells of an optimizer's table, the heading first."""
    columns = ["Batch", "Best LR", "Steps", "Evaluated every", "Examples", "Efficiency, %"]
    lines = [[*columns, "Regime", *["Noise scale", "B_crit"] * noise]]
    b_crit = rounded(curve.fit.b_crit, 3) if isinstance(curve.fit, Fit) else "-"
    for point in curve.points:
        efficiency = curve.efficiency(point)
        cells = [
            f"{point.batch}",
            _rate_cell(point),
            steps_cell(point),
            _every(point),
            "-" if point.examples is None else f"{point.examples:,.0f}",
            "-" if efficiency is None else f"{100 * efficiency:.0f}",
            curve.regime(point),
        ]
        if noise:
            scale = point.noise_scale
            cells += ["-" if scale is None else f"{scale:,.0f}", b_crit]
        lines.append(cells)
    return lines


def _every(point: Point) -> str:
    """Return the pause between evaluations as text."""
    every = point.row.choices.get("eval_every")
    if isinstance(every, str):
        every = int(every.removesuffix("steps"))
        return f"{every:,} step{'s' * (every > 1)}"
    return "-" if every is None else f"{every} epoch{'s' * (every > 1)}"


def _rate_cell(point: Point) -> str:
    """Return the base rate, and the peak rate if it is another one, as text."""
    base, peak = point.row.first("base_lr"), point.rate
    if base is None or peak is None or base == peak:
        return "-" if peak is None else f"{peak:.4g}"
    return f"{base:.4g}, peak {peak:.4g}"


def steps_cell(point: Point) -> str:
    """Return the mean steps and the runs that miss the target, or the steps that did not do."""
    total, reached = len(point.passages), len(point.reached)
    if point.steps is None:
        most = max(passage.steps for passage in point.passages)
        text = f"not in {most:,}"
    else:
        text = f"{point.steps:,.0f}"
    lost = sum(not passage.reached and passage.diverged for passage in point.passages)
    notes = [f"{lost} of {total} nan"] * bool(lost)
    censored = total - reached - lost
    notes += [f"{censored} of {total} censored"] * bool(censored)
    return f"{text} ({', '.join(notes)})" if notes else text


def _notes(study: Study, noise: bool) -> str:
    """Return what the tables, with or without the noise scale, mean and how precise they are."""
    row = study.row.records[0].summary
    gaps = [
        (1 - passage.before / passage.steps, point.batch)
        for curve in study.curves
        for point in curve.points
        for passage in point.reached
    ]
    gap, batch = max(gaps)
    return (
        f"{row['model']} on {row['data']}. Steps and examples are means over the seeds that reach "
        f"{study.target:g} % {SPLITS[study.split]}. Of several settings at a batch the one with "
        "most finished runs is shown, then the one of which most runs reach the target, then "
        "the one with the fewest steps. A censored run ends below the target. The efficiency is"
        " the examples at the smallest fitted batch as a share of those at this one; from 80 % "
        "on the scaling counts as perfect. The floor begins at 4 B_crit, where steps are within"
        " a quarter of the fewest. The curve is S = S_min (1 + B_crit / B)."
        + " The noise scale is the mean of a run's estimates up to the target."
        * noise
        + " The true number of steps lies between the last evaluation below the target and the "
        f"first one that reaches it: a gap of {100 * gap:.0f} % of the steps at most (batch "
        f"{batch})."
    )
