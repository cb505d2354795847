"""Write a group's report from its runs: page, tables, plots, critical.json and runs.jsonl."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.report.critical import Study, study_of
from engine.report.critical_page import critical_json
from engine.report.critical_plots import write_critical_plots
from engine.report.noise import write_noise_plot
from engine.report.page import page
from engine.report.plots import write_comparison, write_plots
from engine.report.rows import Row, Target, make_rows, records_of, target_of
from engine.report.tables import csv_text, markdown
from engine.report.text import text_report
from engine.runs.records import RESULTS, Record, cannot_write
from engine.system.files import json_line, write_text_atomically

# Age at which an incomplete file is taken for that of a killed process.
STALE_SECONDS = 3600.0


def write_report(group: str, target: float | None = None) -> str:
    """Write a group's page, tables, plots and runs.jsonl; return what the terminal shows of it.

    Raises UserError if the group has no runs or its folder cannot be written.

    Args:
        group: name of the group.
        target: accuracy in % to which times are measured; None is that of `target_of`.

    """
    records, written = records_of(group), None
    folder = RESULTS / group
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # If several sweeps end together, any of them may write last, so each rereads the runs after
        # it has written. A lock on the folder would work, but network file systems refuse it.
        while _outcomes(records) != written:
            rows, names, study = _write_files(folder, group, records, target)
            written = _outcomes(records)
            records = records_of(group)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return text_report(group, rows, names, study)


def compare(groups: Sequence[str]) -> Path:
    """Draw several groups in one plot and return its path.

    Raises UserError if a group has no runs or the file cannot be written.
    """
    path = RESULTS / f"{'+'.join(groups)}.png"
    try:
        return write_comparison(path, {group: load_rows(group) for group in groups})
    except OSError as error:
        raise cannot_write(path, error) from error


def runs_lines(records: Sequence[Record]) -> str:
    """Return runs.jsonl: one line of JSON per finished run, with its history."""
    counted = [record for record in records if record.counted]
    return "".join(json_line(r.summary | {"history": r.history}) for r in counted)


def load_rows(group: str) -> list[Row]:
    """Return a group's rows; raise UserError if it has no runs."""
    return make_rows(records_of(group))


def read_notes(folder: Path) -> str:
    """Return the hand-written notes of a group, Markdown that its page includes; may be empty."""
    path = folder / "notes.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _write_files(
    folder: Path, group: str, records: Sequence[Record], target: float | None
) -> tuple[list[Row], list[str], Study | None]:
    """Write the report of these runs; return its rows, its files' names, and its study."""
    rows = make_rows(records)
    goal = Target(target) if target is not None else target_of(rows)
    for path in folder.glob(".*.*"):
        # Remove files that a killed process left incomplete; one that is being written is newer.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
    write_text_atomically(folder / "runs.jsonl", runs_lines(records))
    write_text_atomically(folder / "table.md", markdown(group, rows))
    write_text_atomically(folder / "table.csv", csv_text(rows, goal))
    drawn = write_plots(folder, group, rows, goal)
    drawn += write_noise_plot(folder / "noise.png", group, rows)
    # The tuner writes the page and rates.png of a search for learning rates.
    searched = (folder / "experiment").is_dir()
    study = study_of(rows, target)
    shown = study if study is not None and study.enough else None
    drawn += write_critical_plots(folder, group, shown, not searched)
    plots = [path.name for path in drawn]
    names = ["table.md", "table.csv", "runs.jsonl", *plots]
    if shown is not None:
        write_text_atomically(folder / "critical.json", critical_json(shown))
        names.insert(2, "critical.json")
    else:
        (folder / "critical.json").unlink(missing_ok=True)
    if searched:
        return rows, names, study
    notes = read_notes(folder)
    write_text_atomically(folder / "README.md", page(group, rows, goal, plots, notes, shown))
    return rows, ["README.md", *names], study


def _outcomes(records: Sequence[Record]) -> list[dict[str, Any]]:
    # Histories are not compared, because those of running runs keep growing.
    return [record.summary for record in records]
