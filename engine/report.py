"""A group's report: tables, plots and runs.jsonl, always made again from the runs."""

from engine.files import write_text_atomically
from engine.parse import key_error
from engine.plots import write_plots
from engine.record import RESULTS, runs_directory
from engine.rows import load_records, make_rows, target_accuracy
from engine.summary import json_line
from engine.tables import comma_separated, markdown


def write_report(group: str) -> str:
    """Write a group's tables, plots and runs.jsonl; return the table with the files' paths."""
    records = load_records(group)
    if not records:
        raise key_error("group", group, f"has no runs under {runs_directory(group)}")
    rows = make_rows(records)
    target = target_accuracy(rows)
    folder = RESULTS / group
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = markdown(group, rows, target)
        write_text_atomically(folder / "table.md", table)
        write_text_atomically(folder / "table.csv", comma_separated(rows, target))
        lines = [json_line(r.summary | {"history": r.history}) for r in records if r.counted]
        write_text_atomically(folder / "runs.jsonl", "".join(lines))
        plots = write_plots(folder, group, rows)
    except OSError as error:
        allowed = f"cannot be written ({error.strerror}); needs a folder you may write to"
        raise key_error("results", folder, allowed) from error
    names = ["table.md", "table.csv", *(path.name for path in plots)]
    return f"{table}\nwritten   " + "\n          ".join(str(folder / name) for name in names)
