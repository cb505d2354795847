"""How far a group's sweep is: what is done, running and left, and how long it will take."""

import datetime
import statistics
from collections import Counter
from collections.abc import Sequence

from engine.report.rows import records_of
from engine.runs.records import COMPLETED, DIVERGED, FAILED, Record, runs_directory
from engine.system.lock import holder

# An epoch's time on one machine is known from runs that share these choices, at least roughly.
EPOCH_WORK = ("model.name", "data.name", "data.root", "data.train_size", "data.holdout")


def describe_progress(group: str) -> str:
    """Write a group's progress, a line for each run; raise UserError where there are no runs."""
    records = records_of(group)
    states = [state(group, record) for record in records]
    counts = Counter(states)
    parts = [f"{counts[name]} {name}" for name in ("done", DIVERGED, "running", FAILED, "left")]
    lefts = [seconds_left(record, records) for record in records]
    at_once = max(1, counts["running"])
    known = [left for left in lefts if left is not None]
    total = "not known yet" if len(known) < len(lefts) else duration(sum(known) / at_once)
    width = max(len(record.summary["run"]) for record in records)
    lines = [
        f"{group}: {len(records)} runs: {', '.join(parts)}",
        f"time left {total}, at {at_once} run{'s' if at_once > 1 else ''} at once",
        "",
        f"{'':9} {'run':{width}} {'epochs':>9} {'accuracy':>9}  time left",
    ]
    for record, name, left in zip(records, states, lefts, strict=True):
        epochs = f"{len(record.history)}/{record.summary['epochs']}"
        wait = "?" if left is None else duration(left) if left else ""
        lines.append(
            f"{name:9} {record.summary['run']:{width}} {epochs:>9} {accuracy(record):>9}  {wait}"
        )
    return "\n".join(line.rstrip() for line in lines)


def state(group: str, record: Record) -> str:
    """Return a run's state: done, diverged, running, failed, or left (not begun or interrupted)."""
    if record.counted:
        return "done" if record.status == COMPLETED else DIVERGED
    if holder(runs_directory(group) / record.summary["run"]):
        return "running"
    return FAILED if record.status == FAILED else "left"


def accuracy(record: Record) -> str:
    """Write the final accuracy, or the latest so far; on the hold-out where there is no other."""
    if record.status == DIVERGED:
        return "nan"
    for row in reversed(record.history):
        for split in ("test", "holdout"):
            if row[f"{split}_accuracy"] is not None:
                return f"{row[f'{split}_accuracy']:.2f}"
    return "-"


def seconds_left(record: Record, records: Sequence[Record]) -> float | None:
    """Estimate a run's wall seconds from its own epochs, else from runs with epochs of equal work.

    Of these, runs of the same optimizer and batch come first. None: no such run has an epoch yet.
    A failed run counts as left, since the same command tries it again.
    """
    if record.counted:
        return 0.0

    def alike(others: Sequence[Record], keys: Sequence[str]) -> list[Record]:
        own = [record.choices.get(key) for key in keys]
        return [r for r in others if [r.choices.get(key) for key in keys] == own]

    equal = alike(records, EPOCH_WORK)
    for sources in ([record], alike(equal, ("optimizer.name", "batch")), equal):
        epochs = [epoch["wall_seconds"] for source in sources for epoch in source.history]
        if epochs:
            left = record.summary["epochs"] - len(record.history)
            return statistics.fmean(epochs) * left
    return None


def duration(seconds: float) -> str:
    """Write a time as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
