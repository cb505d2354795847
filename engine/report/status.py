"""Describe the progress of a group: which runs are done, running or pending, and time left."""

import statistics
from collections import Counter
from collections.abc import Sequence

from engine.report.rows import records_of
from engine.runs.records import COMPLETED, DIVERGED, FAILED, Record, runs_directory
from engine.system.lock import holder
from engine.system.terminal import accuracy_of, duration

# Runs that are equal in these choices take roughly the same time per epoch on one machine.
EPOCH_WORK = ("model.name", "data.name", "data.root", "data.train_size", "data.holdout")


def describe_progress(group: str) -> str:
    """Return a group's progress with one line per run; raise UserError if there are no runs."""
    records = records_of(group)
    states = [state(group, record) for record in records]
    counts = Counter(states)
    parts = [f"{counts[name]} {name}" for name in ("done", DIVERGED, "running", FAILED, "pending")]
    seconds = [seconds_left(record, records) for record in records]
    at_once = max(1, counts["running"])
    known = [left for left in seconds if left is not None]
    total = "not known yet" if len(known) < len(seconds) else duration(sum(known) / at_once)
    width = max(len(record.summary["run"]) for record in records)
    lines = [
        f"{group}: {len(records)} runs: {', '.join(parts)}",
        f"time left {total}, at {at_once} run{'s' if at_once > 1 else ''} at once",
        "",
        f"{'':9} {'run':{width}} {'epochs':>9} {'accuracy':>9}  time left",
    ]
    for record, name, left in zip(records, states, seconds, strict=True):
        epochs = f"{len(record.history)}/{record.summary['epochs']}"
        wait = "?" if left is None else duration(left) if left else ""
        lines.append(
            f"{name:9} {record.summary['run']:{width}} {epochs:>9} {accuracy(record):>9}  {wait}"
        )
    return "\n".join(line.rstrip() for line in lines)


def state(group: str, record: Record) -> str:
    """Return a run's state: done, diverged, running, failed or pending.

    A pending run has not started or was interrupted.
    """
    if record.counted:
        return "done" if record.status == COMPLETED else DIVERGED
    if holder(runs_directory(group) / record.summary["run"]):
        return "running"
    return FAILED if record.status == FAILED else "pending"


def accuracy(record: Record) -> str:
    """Return the latest accuracy in % as text, on the hold-out split if there is no test split."""
    if record.status == DIVERGED:
        return "nan"
    for row in reversed(record.history):
        if measured := accuracy_of(row):
            return f"{measured[1]:.2f}"
    return "-"


def seconds_left(record: Record, records: Sequence[Record]) -> float | None:
    """Estimate the wall seconds until a run finishes; None if no run gives an estimate yet.

    The time per epoch comes from the run's own epochs, else from runs equal in `EPOCH_WORK` and
    of the same optimizer and batch, else from any runs equal in `EPOCH_WORK`. A failed run counts
    as pending, because the same command trains it again.
    """
    if record.counted:
        return 0.0

    def equal_in(keys: Sequence[str], others: Sequence[Record]) -> list[Record]:
        own = [record.choices.get(key) for key in keys]
        return [r for r in others if [r.choices.get(key) for key in keys] == own]

    equal = equal_in(EPOCH_WORK, records)
    nearest = equal_in(("optimizer.name", "optimizer.base", "batch"), equal)
    for sources in ([record], nearest, equal):
        epochs = [epoch["wall_seconds"] for source in sources for epoch in source.history]
        if epochs:
            remaining = record.summary["epochs"] - len(record.history)
            return statistics.fmean(epochs) * remaining
    return None
