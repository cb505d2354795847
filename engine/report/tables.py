"""Rows to table.csv and table.md, in the columns that others rely on."""

import csv
import html
import io
import re
from collections.abc import Callable, Sequence

from engine.config.optimizers import title_of
from engine.report.rows import Row, Target, baseline_row
from engine.report.times import Known, common_conditions, describe_conditions
from engine.runs.records import DIVERGED, FAILED, INTERRUPTED, MISSING

# The columns of table.csv, in order: name to a row's figure, given the group's target.
COLUMNS: dict[str, Callable[[Row, Target], object]] = {
    "optimizer": lambda row, target: row.optimizer,
    "batch": lambda row, target: row.batch,
    "settings": lambda row, target: row.settings_column,
    "model": lambda row, target: row.records[0].summary["model"],
    "data": lambda row, target: row.records[0].summary["data"],
    "epochs": lambda row, target: row.epochs,
    "base_lr": lambda row, target: row.first("base_lr"),
    "peak_lr": lambda row, target: row.first("peak_lr"),
    "runs": lambda row, target: len(row.records),
    "diverged": lambda row, target: len(row.of(DIVERGED)),
    "failed": lambda row, target: len(row.of(FAILED)),
    "missing": lambda row, target: len(row.of(MISSING, INTERRUPTED)),
    "accuracy_mean": lambda row, target: row.accuracy() if row.split == "test" else None,
    "accuracy_std": lambda row, target: row.spread() if row.split == "test" else None,
    "best_accuracy_mean": lambda row, target: row.mean("best_test_accuracy"),
    "train_seconds_mean": lambda row, target: row.mean_time("train_seconds"),
    "seconds_to_target_mean": lambda row, target: (row.first_at(target.of(row)) or (0, None))[1],
    "images_per_second_mean": lambda row, target: row.mean_time("images_per_second"),
    "runs_at_once": lambda row, target: row.timed.conditions and row.timed.conditions.runs_at_once,
}


def csv_text(rows: Sequence[Row], target: Target) -> str:
    """Write the table with one line for each row and a column for each figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([figure(row, target) for figure in COLUMNS.values()])
    return buffer.getvalue()


def escaped(text: object) -> str:
    """Write what somebody typed so that in Markdown, tables included, it is text and no more."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    # An underscore inside a word is no mark.
    return re.sub(r"([|`\[\]\\*~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def markdown(group: str, rows: Sequence[Row]) -> str:
    """Write one table for each optimizer, every run of the group accounted for."""
    scope = {
        (r.summary["model"], r.summary["data"], r.summary["epochs"])
        for row in rows
        for r in row.records
    }
    lines = [f"# {group}", ""]
    lines += [
        escaped(f"{model} on {data}, {epochs} epochs.") for model, data, epochs in sorted(scope)
    ]
    lines += [markdown_tables(rows), "", f"{accuracy_note(rows)} {times_note(rows)}".rstrip()]
    return "\n".join(lines) + "\n"


def markdown_tables(rows: Sequence[Row]) -> str:
    """Write the tables alone, each under its optimizer's name."""
    lines = []
    baseline = baseline_row(rows)
    common = common_conditions(row.timed for row in rows)
    for optimizer in dict.fromkeys(row.optimizer for row in rows):
        lines += ["", f"## {escaped(title_of(optimizer))}", ""]
        lines += ["| Batch | Base LR | top-1 Accuracy, % | Time to train |", "|---|---|---|---|"]
        for row in rows:
            if row.optimizer != optimizer:
                continue
            rates = {r.summary["base_lr"] for r in row.records if r.summary.get("base_lr")}
            cells = [
                escaped(row.title),
                ", ".join(f"{rate:.4g}" for rate in sorted(rates)) or "-",
                accuracy_cell(row) + (" (base line)" if row is baseline else ""),
                time_cell(row, common),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_note(rows: Sequence[Row]) -> str:
    """Say what the accuracies of a group are of, and what ± is."""
    source = "the final model's, on the test split"
    if rows[0].split == "holdout":
        source = "the final model's on held-out training images; no run evaluated the test split"
    return f"Accuracy is {source}; ± is the standard deviation over seeds."


def times_note(rows: Sequence[Row]) -> str:
    """Say what the times of a group are of."""
    return escaped(describe_conditions([row.timed for row in rows]))


def time_cell(row: Row, common: Known) -> str:
    """Write a row's time to train, and why it is not of all its runs or not of `common`."""
    cell, notes = seconds_cell(row.mean_time("train_seconds")), row.timed.notes(common)
    return f"{cell} ({escaped(', '.join(notes))})" if notes else cell


def seconds_cell(seconds: float | None) -> str:
    """Write a time for a cell."""
    return "-" if seconds is None else f"{seconds:.1f} s"


def accuracy_cell(row: Row) -> str:
    """Write a row's accuracy with its spread, and how many of its runs did not end well."""
    total = len(row.records)
    notes = []
    diverged = len(row.of(DIVERGED))
    if diverged == total:
        notes.append("nan")
    elif diverged:
        notes.append(f"{diverged} of {total} nan")
    for name, runs in ((FAILED, row.of(FAILED)), (MISSING, row.of(MISSING, INTERRUPTED))):
        if runs:
            notes.append(name if len(runs) == total else f"{len(runs)} of {total} {name}")
    mean, spread = row.accuracy(), row.spread()
    if mean is None:
        return ", ".join(notes) or "-"
    digits = 1 if diverged == total else 2
    cell = f"{mean:.{digits}f}" + (
        f" ± {spread:.2f}" if spread is not None and diverged < total else ""
    )
    return cell + (f" ({', '.join(notes)})" if notes else "")
