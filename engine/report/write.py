"""A group's report: page, tables, plots and runs.jsonl, always made again from the runs."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.report.noise import write_noise_plot
from engine.report.page import page
from engine.report.plots import write_comparison, write_plots
from engine.report.rows import Row, Target, make_rows, records_of, target_of
from engine.report.tables import csv_text, markdown
from engine.runs.records import RESULTS, Record, cannot_write
from engine.system.files import json_line, write_text_atomically

LEFT_SECONDS = 3600.0


def write_report(group: str, target: float | None = None) -> str:
    """Write a group's page, tables, plots and runs.jsonl; return the table with the files' paths.

    target: the accuracy in % to which times are given; None: as the runs were given it.
    Raises UserError where the group has no runs, or its folder cannot be written.
    """
    records, written = records_of(group), None
    folder = RESULTS / group
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of several sweeps that end together each may write last, so each looks again after it
        # has written. A lock would do, but network file systems refuse it on a folder.
        while _outcomes(records) != written:
            names, written = _write_files(folder, group, records, target), _outcomes(records)
            records = records_of(group)
    except OSError as error:
        raise cannot_write(folder, error) from error
    paths = "\n          ".join(str(folder / name) for name in names)
    return f"{(folder / 'table.md').read_text(encoding='utf-8')}\nwritten   {paths}"


def compare(groups: Sequence[str]) -> Path:
    """Draw several groups in one plot; return its path."""
    path = RESULTS / f"{'+'.join(groups)}.png"
    try:
        return write_comparison(path, {group: load_rows(group) for group in groups})
    except OSError as error:
        raise cannot_write(path, error) from error


def runs_lines(records: Sequence[Record]) -> str:
    """Write the finished runs with their histories, a line of JSON each."""
    counted = [record for record in records if record.counted]
    return "".join(json_line(r.summary | {"history": r.history}) for r in counted)


def load_rows(group: str) -> list[Row]:
    """Read a group's rows; raise UserError where it has no runs."""
    return make_rows(records_of(group))


def _write_files(
    folder: Path, group: str, records: Sequence[Record], target: float | None
) -> list[str]:
    """Write the report of these runs; return the names of the files a reader looks at."""
    rows = make_rows(records)
    goal = Target(target) if target is not None else target_of(rows)
    for path in folder.glob(".*.*"):
        # The half of a file that a killed writer left; one that is being written is young.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFT_SECONDS:
                path.unlink()
    write_text_atomically(folder / "runs.jsonl", runs_lines(records))
    write_text_atomically(folder / "table.md", markdown(group, rows))
    write_text_atomically(folder / "table.csv", csv_text(rows, goal))
    drawn = write_plots(folder, group, rows, goal)
    drawn += write_noise_plot(folder / "noise.png", group, rows)
    plots = [path.name for path in drawn]
    # The page of a search for rates is the tuner's.
    if (folder / "experiment").is_dir():
        return ["table.md", "table.csv", *plots]
    write_text_atomically(folder / "README.md", page(group, rows, goal, plots))
    return ["README.md", "table.md", "table.csv", *plots]


def _outcomes(records: Sequence[Record]) -> list[dict[str, Any]]:
    # Not the histories: those of running runs never stand still.
    return [record.summary for record in records]
