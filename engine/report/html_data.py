"""Gather what report.html shows of groups: rows, runs, lines and curves, as plain dictionaries.

Figures and texts of the rows are those of the tables (tables.py).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.config.schema import default_choices
from engine.report.critical import study_of
from engine.report.critical_page import answers
from engine.report.curves import recipe_of
from engine.report.html_plots import ratio_plot, steps_plot
from engine.report.plots import comparison_name
from engine.report.rows import MARGIN, Row, Target, gather_lines, target_of
from engine.report.style import color_of
from engine.report.tables import (
    accuracy_cell,
    accuracy_note,
    first,
    rates_cell,
    scopes,
    seconds_cell,
    time_text,
)
from engine.report.times import Known, common_conditions, describe_conditions
from engine.runs.history import evaluations
from engine.runs.records import RESULTS, Record, runs_directory
from engine.runs.tensorboard import read_trust_ratios

# A cell of a table: its text, and the value by which it is sorted.
Cell = tuple[str, Any]
# With more lines than this, those of one optimizer share a look and an entry of the legend.
MOST_LINES = 12
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
CURVES = (
    "test_accuracy", "holdout_accuracy", "train_accuracy", "train_loss", "test_loss",
    "holdout_loss",
)  # fmt: skip


def page_data(groups: Mapping[str, Sequence[Row]], target: float | None = None) -> dict[str, Any]:
    """Return the content of the page.

    Args:
        groups: the rows of each group.
        target: accuracy in % to which steps and times are measured; None is that of
            critical.json, else that of `target_of`.

    """
    several = len(groups) > 1
    lines: dict[str, Sequence[Row]] = {}
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    steps, shown = {}, []
    places: dict[int, int] = {}
    for group, members in groups.items():
        requested = target if target is not None else read_target(group)
        goal = target_of(members) if requested is None else Target(requested)
        study = study_of(members, requested)
        if study is not None and study.enough:
            steps[group] = steps_plot(study)
        opening = answers(members, study)
        shown.append({"name": group, "answers": opening, "notes": notes(members, goal)})
        common = common_conditions(row.timed for row in members)
        for row in members:
            place = places[id(row)] = len(rows)
            rows.append(row_data(group, row, goal, common))
            runs += [run_data(group, row, record, place) for record in row.records]
        found = gather_lines(members, "batch")
        lines |= {comparison_name(group, n, f) if several else n: f for n, f in found.items()}
    # A run leaves out keys at their default. It shows those that other runs have.
    keys = sorted({key for run in runs for key in run["choices"]})
    for run in runs:
        known = default_choices(run["choices"]) | run["choices"]
        run["choices"] = {key: known[key] for key in keys if key in known}
    drop_columns(rows, several)
    drop_columns(runs, several)
    ratios = {
        f"{run['group']}: {run['name']}" if several else run["name"]: ratio_plot(logged)
        for run in runs
        if (logged := read_trust_ratios(runs_directory(run["group"]) / run["name"]))
    }
    sections = {"Steps to the target": steps, "Trust ratios of the layers": ratios}
    series = looks(lines)
    for name, line in lines.items():
        for row in line:
            key = name if name in series else row.optimizer_title
            rows[places[id(row)]]["series"] = list(series).index(key)
    return {
        "groups": shown,
        "rows": rows,
        "runs": runs,
        "lines": [[places[id(row)] for row in line] for line in lines.values()],
        "curves": [key for key in CURVES if any(key in run["curves"] for run in runs)],
        "series": list(series.values()),
        "sections": {title: plots for title, plots in sections.items() if plots},
    }


def drop_columns(entries: Sequence[dict[str, Any]], several: bool) -> None:
    """Remove the columns of a table that say nothing.

    Args:
        entries: the table's lines, whose cells are changed.
        several: True if the page has several groups.

    """
    for heading in list(entries[0]["cells"]):
        texts = {entry["cells"][heading][0] for entry in entries}
        if texts <= {"", "-"} or (heading == "Group" and not several):
            for entry in entries:
                del entry["cells"][heading]


def read_target(group: str) -> float | None:
    """Return the target in % of a group's critical.json; None if it has none that can be read."""
    try:
        content = json.loads((RESULTS / group / "critical.json").read_text(encoding="utf-8"))
        return float(content["target_accuracy"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def looks(lines: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, str]]:
    """Return name, color and dashes of each line, or of each optimizer if there are many lines."""
    if len(lines) > MOST_LINES:
        titles = [line[0].optimizer_title for line in lines.values()]
        return {t: {"name": t, "color": color_of(t), "dash": DASHES[0]} for t in titles}
    recipes = list(dict.fromkeys(recipe_of(name, line) for name, line in lines.items()))
    return {
        name: {
            "name": name,
            "color": color_of(line[0].optimizer_title),
            "dash": DASHES[recipes.index(recipe_of(name, line)) % len(DASHES)],
        }
        for name, line in lines.items()
    }


def notes(rows: Sequence[Row], goal: Target) -> str:
    """Return what the figures of a group are, as text."""
    found = [*(f"{scope}." for scope in scopes(rows)), accuracy_note(rows)]
    found.append(describe_conditions([row.timed for row in rows]))
    if goal.accuracy is not None:
        found.append(
            f"The target is {goal.accuracy:.2f} %. A row reaches it if all of its runs do."
        )
    if goal.baseline is not None:
        found.append(
            f"It is {MARGIN:g} points below the base line, {goal.baseline.optimizer_title} at "
            f"batch {goal.baseline.batch}. Rows of another model, data set or number of epochs "
            "have none."
        )
    return " ".join(filter(None, found))


def row_data(group: str, row: Row, goal: Target, common: Known) -> dict[str, Any]:
    """Return a row's cells by heading, and what is drawn of it."""
    seconds, speed = row.mean_time("train_seconds"), row.mean_time("images_per_second")
    steps, to_target = first(row, goal, "steps"), first(row, goal, "seconds")
    cells: dict[str, Cell] = {
        "Group": (group, group),
        "Optimizer": (row.optimizer_title, row.optimizer_title),
        "Batch": (str(row.batch), row.batch),
        "Setting": (row.setting_title, row.setting_title),
        "Epochs": (str(row.epochs), row.epochs),
        "Base LR": (rates_cell(row), row.first("base_lr")),
        "Runs": (str(len(row.records)), len(row.records)),
        "top-1 Accuracy, %": (accuracy_cell(row), row.accuracy()),
        "Time to train": (time_text(row, common), seconds),
        "Images/s": (figure(speed), speed),
        "Steps to target": (figure(steps), steps),
        "Time to target": (seconds_cell(to_target), to_target),
    }
    return {
        "cells": cells,
        "batch": row.batch,
        # The accuracy of runs that end at their target is no result.
        "accuracy": None if row.stops_at_target else row.accuracy(),
        "spread": row.spread(),
    }


def run_data(group: str, row: Row, record: Record, place: int) -> dict[str, Any]:
    """Return one run: its cells by heading, its choices, facts and curves.

    Args:
        group: name of the group.
        row: the run's row.
        record: the run.
        place: the row's index on the page.

    """
    summary, accuracy = record.summary, record.accuracy(row.split)
    seconds, rate = summary.get("train_seconds"), summary.get("base_lr")
    cells: dict[str, Cell] = {
        "Group": (group, group),
        "Run": (summary["run"], summary["run"]),
        "Status": (record.status, record.status),
        "Optimizer": (row.optimizer_title, row.optimizer_title),
        "Batch": (str(row.batch), row.batch),
        "Setting": (row.setting_title, row.setting_title),
        "Epochs": (str(row.epochs), row.epochs),
        "Base LR": (figure(rate, "g"), rate),
        "Seed": (str(summary["seed"]), summary["seed"]),
        "Accuracy, %": ("-" if accuracy is None else f"{accuracy:.2f}", accuracy),
        "Measured time": (seconds_cell(seconds), seconds),
    }
    return {
        "group": group,
        "row": place,
        "name": summary["run"],
        "cells": cells,
        "accuracy": None if row.stops_at_target else accuracy,
        "choices": record.choices,
        "facts": {key: value for key, value in summary.items() if key != "choices"},
        "curves": curves(record),
    }


def figure(value: float | None, form: str = ",.0f") -> str:
    """Return a number as text, by default a whole one; `-` if it is None."""
    return "-" if value is None else f"{value:{form}}"


def curves(record: Record) -> dict[str, tuple[list[float], list[float]]]:
    """Return epochs and values of each accuracy in % and each loss in a run's history."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for evaluation in evaluations(record.history, record.summary["batch"]):
        for key in CURVES:
            if (value := evaluation.row.get(key)) is not None:
                epochs, values = found.setdefault(key, ([], []))
                epochs.append(rounded(evaluation.epochs))
                values.append(rounded(value))
    return found


def rounded(value: float) -> float:
    """Return a value with six significant digits, which keeps the page small."""
    return float(f"{value:.6g}")
