"""Write rows as table.csv and table.md; other programs rely on the columns."""

import csv
import html
import io
import re
from collections.abc import Callable, Sequence

from engine.config.optimizers import title_of
from engine.report.rows import Row, Target, baseline_row
from engine.report.times import NOT_RECORDED, Known, common_conditions, describe_conditions
from engine.runs.records import COMPLETED, DIVERGED, FAILED, INTERRUPTED, MISSING

# The columns of table.csv in order: the function that returns a row's value, by name.
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
    "seconds_to_target_mean": lambda row, target: first(row, target, "seconds"),
    "images_per_second_mean": lambda row, target: row.mean_time("images_per_second"),
    "steps_to_target_mean": lambda row, target: first(row, target, "steps"),
    "examples_to_target_mean": lambda row, target: first(row, target, "examples"),
    "holdout_accuracy_mean": lambda row, target: _held_out(row, row.accuracy),
    "holdout_accuracy_std": lambda row, target: _held_out(row, row.spread),
    "runs_at_once": lambda row, target: row.timed.conditions and row.timed.conditions.runs_at_once,
}


def first(row: Row, target: Target, name: str) -> float | None:
    """Return a figure of `First` for a row; None if the row does not reach the target."""
    return getattr(row.first_at(target.of(row)), name, None)


def _held_out(row: Row, figure: Callable[[str], float | None]) -> float | None:
    """Return a figure on the hold-out split; None if the runs have none."""
    return figure("holdout") if row.choices.get("data.holdout") else None


def csv_text(rows: Sequence[Row], target: Target) -> str:
    """Return table.csv: one line per row, one column per entry of `COLUMNS`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([figure(row, target) for figure in COLUMNS.values()])
    return buffer.getvalue()


def escaped(text: object) -> str:
    """Return text, escaped so that Markdown shows it literally, in tables too."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    # An underscore inside a word has no meaning in Markdown.
    return re.sub(r"([|`\[\]\\*~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def markdown(group: str, rows: Sequence[Row]) -> str:
    """Return table.md: one table per optimizer, in which every run of the group counts."""
    lines = [f"# {group}", ""]
    lines += [escaped(f"{scope}.") for scope in scopes(rows)]
    lines += [markdown_tables(rows), "", f"{accuracy_note(rows)} {times_note(rows)}".rstrip()]
    return "\n".join(lines) + "\n"


def markdown_tables(rows: Sequence[Row]) -> str:
    """Return the tables, each under its optimizer's name, as Markdown."""
    lines = []
    baseline = baseline_row(rows)
    common = common_conditions(row.timed for row in rows)
    for optimizer in dict.fromkeys(row.optimizer for row in rows):
        lines += ["", f"## {escaped(title_of(optimizer))}", ""]
        lines += ["| Batch | Base LR | top-1 Accuracy, % | Time to train |", "|---|---|---|---|"]
        for row in rows:
            if row.optimizer != optimizer:
                continue
            cells = [
                escaped(row.title),
                rates_cell(row),
                accuracy_cell(row) + (" (base line)" if row is baseline else ""),
                time_cell(row, common),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scopes(rows: Sequence[Row]) -> list[str]:
    """Return each combination of model, data and epochs, or target, of a group's runs as text."""
    found = {
        (r.summary["model"], r.summary["data"], *_length(row, r.summary["epochs"]))
        for row in rows
        for r in row.records
    }
    return [f"{model} on {data}, {text}" for model, data, _, text in sorted(found)]


def _length(row: Row, epochs: int) -> tuple[float, str]:
    """Return how long a row's runs train as a number to sort by and as text."""
    if row.stops_at_target:
        target = row.choices["target_accuracy"]
        return target, f"to {target:g} % on the hold-out split"
    return epochs, f"{epochs} epochs"


def rates_cell(row: Row) -> str:
    """Return a row's base learning rates as text; `-` if they are not known."""
    rates = {r.summary["base_lr"] for r in row.records if r.summary.get("base_lr")}
    return ", ".join(f"{rate:.4g}" for rate in sorted(rates)) or "-"


def accuracy_note(rows: Sequence[Row]) -> str:
    """Return a note that says what the accuracies of a group are and what ± means."""
    source = "the final model's, on the test split"
    if rows[0].split == "holdout":
        source = "the final model's on held-out training images; no run evaluated the test split"
    return f"Accuracy is {source}; ± is the standard deviation over seeds."


def times_note(rows: Sequence[Row]) -> str:
    """Return a note on the conditions of a group's times; may be empty."""
    return escaped(describe_conditions([row.timed for row in rows]))


def time_cell(row: Row, common: Known) -> str:
    """Return a row's training time as Markdown; see `time_text`."""
    return escaped(time_text(row, common))


def time_text(row: Row, common: Known) -> str:
    """Return a row's training time as text, with a note if some runs or `common` do not apply."""
    cell, notes = seconds_cell(row.mean_time("train_seconds")), row.timed.notes(common)
    if notes == [NOT_RECORDED]:
        return NOT_RECORDED
    return f"{cell} ({', '.join(notes)})" if notes else cell


def seconds_cell(seconds: float | None) -> str:
    """Return a time in seconds as text; `-` if it is None."""
    return "-" if seconds is None else f"{seconds:.1f} s"


def target_notes(row: Row) -> list[str]:
    """Return a note that the row's runs stop at their target, and how many did not reach it."""
    ended = row.of(COMPLETED)
    if not row.stops_at_target or not ended:
        return []
    target = f"{row.choices['target_accuracy']:g} %"
    missed = sum(record.summary.get("steps_to_target") is None for record in ended)
    if not missed:
        return [f"stopped at {target}"]
    return [f"{target} not reached" + f" by {missed} of {len(ended)}" * (missed < len(ended))]


def accuracy_cell(row: Row) -> str:
    """Return a row's accuracy, its standard deviation and how many runs did not complete."""
    total = len(row.records)
    notes = []
    diverged = len(row.of(DIVERGED))
    if diverged == total:
        notes.append("nan")
    elif diverged:
        notes.append(f"{diverged} of {total} nan")
    notes += target_notes(row)
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
