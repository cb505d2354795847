"""A group's report: page, tables, plots and runs.jsonl, always made again from the runs."""

from collections.abc import Sequence
from pathlib import Path

from engine.files import locked, write_text_atomically
from engine.page import page
from engine.parse import key_error
from engine.plots import write_comparison, write_plots
from engine.record import RESULTS, runs_directory
from engine.rows import Row, load_records, make_rows, target_accuracy
from engine.summary import json_line
from engine.tables import comma_separated, markdown


def write_report(group: str) -> str:
    """Write a group's page, tables, plots and runs.jsonl; return the table with the files' paths.

    Raises UserError where the group has no runs, or its folder cannot be written.
    """
    load_rows(group)
    folder = RESULTS / group
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of several sweeps that end together, the last to write must have read the others' runs.
        with locked(folder):
            rows = load_rows(group)
            target = target_accuracy(rows)
            write_text_atomically(folder / "runs.jsonl", runs_lines(group))
            table = markdown(group, rows)
            write_text_atomically(folder / "table.md", table)
            write_text_atomically(folder / "table.csv", comma_separated(rows, target))
            plots = [path.name for path in write_plots(folder, group, rows, target)]
            write_text_atomically(folder / "README.md", page(group, rows, target, plots))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return _with_paths(table, [folder / n for n in ("README.md", "table.md", "table.csv", *plots)])


def compare(groups: Sequence[str]) -> Path:
    """Draw several groups in one plot; return its path."""
    path = RESULTS / f"{'+'.join(groups)}.png"
    try:
        return write_comparison(path, {group: load_rows(group) for group in groups})
    except OSError as error:
        raise _cannot_write(path, error) from error


def runs_lines(group: str) -> str:
    """Write a group's finished runs with their histories, a line of JSON each."""
    counted = [record for record in load_records(group) if record.counted]
    return "".join(json_line(r.summary | {"history": r.history}) for r in counted)


def load_rows(group: str) -> list[Row]:
    """Read a group's rows; raise UserError where it has no runs."""
    rows = make_rows(load_records(group))
    if not rows:
        raise key_error("group", group, f"has no runs under {runs_directory(group)}")
    return rows


def _with_paths(table: str, paths: Sequence[Path]) -> str:
    return f"{table}\nwritten   " + "\n          ".join(map(str, paths))


def _cannot_write(path: Path, error: OSError) -> Exception:
    allowed = f"cannot be written ({error.strerror}); needs a folder you may write to"
    return key_error("results", path, allowed)
