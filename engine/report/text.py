"""The table that a terminal shows: aligned columns, with the best value of each one marked."""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from engine.report.critical import Study
from engine.report.critical_page import answers, critical_text
from engine.report.rows import Row
from engine.report.tables import (
    accuracy_cell,
    accuracy_note,
    rates_cell,
    scopes,
    seconds_cell,
)
from engine.report.times import common_conditions, describe_conditions
from engine.runs.records import CHECKPOINT, COMPLETED, RESULTS, runs_directory
from engine.system.text import shown

HEADINGS = ("batch", "optimizer", "base LR", "accuracy, %", "time to train")
BEST, WIDTH = "*", 100


def text_table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text. Settings that no column shows are at the end of a line."""
    common = common_conditions(row.timed for row in rows)
    # A row whose runs all diverged is the best of nothing.
    counted = [row for row in rows if row.of(COMPLETED)]
    accuracies = [row.accuracy() for row in counted if not row.stops_at_target]
    best_accuracy = max((a for a in accuracies if a is not None), default=None)
    times = [row.mean_time("train_seconds") for row in counted if not row.timed.notes(common)]
    best_time = min((seconds for seconds in times if seconds is not None), default=None)
    lines = [HEADINGS]
    endings = [""]
    for row in rows:
        notes, seconds = row.timed.notes(common), row.mean_time("train_seconds")
        star = f" {BEST}" if row in counted else ""
        lines.append((
            str(row.batch),
            row.optimizer_title,
            rates_cell(row),
            accuracy_cell(row) + star * _is(row.accuracy(), best_accuracy),
            seconds_cell(seconds) + star * (not notes and _is(seconds, best_time)),
        ))  # fmt: skip
        setting = row.setting_title
        endings.append("; ".join([*([shown(setting)] if setting else []), *notes]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + f"  {end}"
        for line, end in zip(lines, endings, strict=True)
    ]
    text.insert(1, "-" * min(sum(widths) + 8, shutil.get_terminal_size().columns))
    return "\n".join(line.rstrip() for line in text)


def text_report(
    group: str, rows: Sequence[Row], names: Sequence[str], study: Study | None = None
) -> str:
    """Return what the terminal shows at the end of a sweep: the table, where things are, what next.

    Args:
        group: name of the group.
        rows: the group's rows.
        names: names of the written files in the group's folder.
        study: the measurement of the critical batch size, if the group has one.

    """
    lines = ["", *(shown(f"{group}: {scope}") for scope in scopes(rows)), ""]
    if study is not None and all(row.stops_at_target for row in rows):
        # Accuracies at the target are no results.
        lines += [critical_text(study), ""]
    else:
        lines += [text_table(rows), "", f"{BEST} best of its column. {accuracy_note(rows)}"]
        lines.append("The base LR is the rate of a run's first step.")
        if conditions := describe_conditions([row.timed for row in rows]):
            lines.append(shown(conditions))
        for answer in answers(rows, study):
            lines += ["", *textwrap.wrap(shown(answer), WIDTH)]
        lines.append("")
    svg = " (each plot also as .svg)" if any(name.endswith(".png") for name in names) else ""
    lines += [f"written   {RESULTS / group}: {' '.join(names)}{svg}", *_next(group, rows)]
    return "\n".join(lines)


def _is(value: float | None, best: float | None) -> bool:
    return value is not None and value == best


def _next(group: str, rows: Sequence[Row]) -> list[str]:
    """Return suggestions of what to type next."""
    found = [f"tensorboard --logdir {RESULTS / 'runs' / group}"]
    if run := _best_run(group, rows):
        found.append(f"python val.py checkpoint={run}")
    pending = any(not record.counted for row in rows for record in row.records)
    if pending:
        found.append("the same command again, which trains the runs that are missing")
    elif all(len(row.records) == 1 for row in rows):
        found.append("the same command with seed=0,1,2, which adds two seeds to each row")
    return [f"{'next' if not i else '':9} {text}" for i, text in enumerate(found)]


def _best_run(group: str, rows: Sequence[Row]) -> Path | None:
    """Return the directory of the most accurate run that has a checkpoint on this machine."""
    runs = [
        (accuracy, record.summary["run"])
        for row in rows
        for record in row.of(COMPLETED)
        if (accuracy := record.summary[f"{row.split}_accuracy"]) is not None
    ]
    for _, name in sorted(runs, reverse=True):
        directory = runs_directory(group) / name
        if (directory / CHECKPOINT).exists():
            return directory
    return None
