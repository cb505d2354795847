"""Summaries to tables: each number is read from the runs, never from an earlier table.

A group's runs are its directories under results/runs/<group>, and the lines of a published
results/<group>/runs.jsonl whose runs are not on this machine. A run that was claimed and left no
summary is `missing`; no run that was asked for is left out of a table.
"""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config import Config, check_group_name, choices
from engine.files import write_text_atomically
from engine.parse import UserError, key_error
from engine.record import RESULTS, json_line, runs_directory

COLUMNS = (
    "optimizer,batch,settings,model,data,epochs,base_lr,peak_lr,runs,diverged,failed,missing,"
    "accuracy_mean,accuracy_std,best_accuracy_mean,train_seconds_mean,seconds_to_target_mean,"
    "images_per_second_mean"
).split(",")
# What a row or a column of its own already says.
NAMED = ("optimizer.name", "batch", "seed", "model.name", "data.name", "epochs")


@dataclass(frozen=True)
class Record:
    """One run as the report sees it; `status` missing: it was planned and has no summary."""

    summary: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def status(self) -> str:
        """Return completed, diverged, failed, interrupted or missing."""
        return str(self.summary["status"])

    @property
    def choices(self) -> dict[str, Any]:
        """Return what was chosen for the run, by dotted key."""
        return dict(self.summary["choices"])

    @property
    def counted(self) -> bool:
        """Tell whether the run has an accuracy that enters a mean."""
        return self.status in ("completed", "diverged")

    def seconds_to(self, target: float) -> float | None:
        """Return the training seconds at the first evaluation at or above `target` %."""
        seconds = 0.0
        for row in self.history:
            seconds += row["train_seconds"]
            if row["test_accuracy"] is not None and row["test_accuracy"] >= target:
                return seconds
        return None


@dataclass(frozen=True)
class Row:
    """The runs that differ in nothing but the seed."""

    optimizer: str
    batch: int
    settings: str
    records: Sequence[Record]

    def of(self, *statuses: str) -> list[Record]:
        """Return the row's runs of the given statuses."""
        return [record for record in self.records if record.status in statuses]

    def mean(self, key: str) -> float | None:
        """Return the mean of a summary's figure over the runs that count and have it."""
        values = [r.summary[key] for r in self.records if r.counted]
        values = [value for value in values if value is not None]
        return statistics.fmean(values) if values else None

    def accuracies(self) -> list[float]:
        """Return the final accuracies, % each; a diverged run's is chance."""
        return [r.summary["test_accuracy"] for r in self.records if r.counted]

    def spread(self) -> float | None:
        """Return the sample standard deviation of the accuracies, given two or more."""
        accuracies = self.accuracies()
        return statistics.stdev(accuracies) if len(accuracies) > 1 else None

    def seconds_to(self, target: float | None) -> float | None:
        """Return the mean time to target of the runs that reach it; None if any does not."""
        if target is None or not self.accuracies():
            return None
        times = [record.seconds_to(target) for record in self.records if record.counted]
        reached = [time for time in times if time is not None]
        return statistics.fmean(reached) if len(reached) == len(times) else None


def write_report(group: str) -> str:
    """Write a group's tables, plots and runs.jsonl; return the table with the files' paths."""
    from engine.plots import write_plots

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


def load_records(group: str) -> list[Record]:
    """Read every run of a group, sorted by optimizer, batch, seed and name."""
    check_group_name(group)
    records = {}
    for line in _lines(RESULTS / group / "runs.jsonl"):
        history = line.pop("history")
        records[line["run"]] = Record(line, history)
    for directory in sorted(runs_directory(group).glob("*/.hydra/config.yaml")):
        record = _load_record(directory.parent.parent)
        # A run that this machine has only planned may be published by another.
        if record.counted or record.summary["run"] not in records:
            records[record.summary["run"]] = record

    def place(record: Record) -> tuple[str, int, int, str]:
        s = record.summary
        return (_optimizer_order(s["optimizer"]), s["batch"], s["seed"], s["run"])

    return sorted(records.values(), key=place)


def _load_record(directory: Path) -> Record:
    try:
        summary = json.loads((directory / "summary.json").read_text())
    except (OSError, ValueError):
        try:
            raw = yaml.safe_load((directory / ".hydra" / "config.yaml").read_text())
            config = Config.from_hydra(raw)
        except (OSError, yaml.YAMLError, UserError, AttributeError) as error:
            raise UserError(f"{directory}: its .hydra/config.yaml cannot be read") from error
        summary = {
            "status": "missing",
            "run": directory.name,
            "model": config.model.name,
            "data": config.data.name,
            "optimizer": config.optimizer.name,
            "batch": config.batch,
            "seed": config.seed,
            "epochs": config.epochs,
            "target_accuracy": config.target_accuracy,
            "choices": choices(config),
        }
    return Record(summary, list(_lines(directory / "metrics.jsonl")))


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """Read a file of JSON lines; a last line that is still being written is left out."""
    try:
        text = path.read_text()
    except OSError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _optimizer_order(name: str) -> str:
    """Put the baseline's optimizer first."""
    return "" if name == "sgd" else name


def make_rows(records: Sequence[Record]) -> list[Row]:
    """Gather the runs that differ in nothing but the seed; order as `load_records`."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        chosen = {key: value for key, value in record.choices.items() if key != "seed"}
        rows.setdefault(json.dumps(chosen, sort_keys=True), []).append(record)
    return [
        Row(
            members[0].summary["optimizer"],
            members[0].summary["batch"],
            _settings(members, records),
            members,
        )
        for members in rows.values()
    ]


def _settings(members: Sequence[Record], records: Sequence[Record]) -> str:
    """Name what tells a row from others of its optimizer and batch, and what it mixes."""
    own = members[0].choices
    rivals = [
        record.choices
        for record in records
        if all(record.choices[key] == own[key] for key in ("optimizer.name", "batch"))
    ]
    keys = sorted({key for rival in rivals for key in rival} - set(NAMED))
    told = [
        f"{key}={_value(own.get(key))}"
        for key in keys
        if any(rival.get(key) != own.get(key) for rival in rivals)
    ]
    mixed = [
        key
        for key in ("commit", "device", "torch")
        if len({record.summary.get(key) for record in members if record.counted}) > 1
    ]
    return " ".join(told + ([f"(mixed {', '.join(mixed)})"] if mixed else []))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def baseline_row(rows: Sequence[Row]) -> Row | None:
    """Return the smallest-batch SGD row."""
    sgd = [row for row in rows if row.optimizer == "sgd"]
    return min(sgd, key=lambda row: row.batch, default=None)


def target_accuracy(rows: Sequence[Row]) -> float | None:
    """Return the accuracy whose time is told, %: as configured, else the baseline less 0.5."""
    asked = {r.summary.get("target_accuracy") for row in rows for r in row.records} - {None}
    if len(asked) == 1:
        return next(iter(asked))
    baseline = baseline_row(rows)
    accuracy = baseline.mean("test_accuracy") if baseline else None
    return None if accuracy is None else accuracy - 0.5


def comma_separated(rows: Sequence[Row], target: float | None) -> str:
    """Write the table with one line for each row and a column for each figure."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        first = row.records[0].summary
        rated = next((r.summary for r in row.records if r.summary.get("peak_lr") is not None), {})
        writer.writerow(
            {
                "optimizer": row.optimizer,
                "batch": row.batch,
                "settings": row.settings,
                "model": first["model"],
                "data": first["data"],
                "epochs": first["epochs"],
                "base_lr": rated.get("base_lr"),
                "peak_lr": rated.get("peak_lr"),
                "runs": len(row.records),
                "diverged": len(row.of("diverged")),
                "failed": len(row.of("failed")),
                "missing": len(row.of("missing", "interrupted")),
                "accuracy_mean": row.mean("test_accuracy"),
                "accuracy_std": row.spread(),
                "best_accuracy_mean": row.mean("best_test_accuracy"),
                "train_seconds_mean": row.mean("train_seconds"),
                "seconds_to_target_mean": row.seconds_to(target),
                "images_per_second_mean": row.mean("images_per_second"),
            }
        )
    return buffer.getvalue()


def markdown(group: str, rows: Sequence[Row], target: float | None) -> str:
    """Write one table for each optimizer, every run of the group accounted for."""
    scope = {
        (r.summary["model"], r.summary["data"], r.summary["epochs"])
        for row in rows
        for r in row.records
    }
    lines = [f"# {group}", ""]
    lines += [f"{model} on {data}, {epochs} epochs." for model, data, epochs in sorted(scope)]
    baseline = baseline_row(rows)
    for optimizer in dict.fromkeys(row.optimizer for row in rows):
        lines += ["", f"## {optimizer.upper()}", ""]
        lines += ["| Batch | Base LR | top-1 Accuracy, % | Time to train |", "|---|---|---|---|"]
        for row in rows:
            if row.optimizer != optimizer:
                continue
            rates = {r.summary["base_lr"] for r in row.records if r.summary.get("base_lr")}
            seconds = row.mean("train_seconds")
            cells = [
                f"{row.batch}" + (f" {row.settings}" if row.settings else ""),
                ", ".join(f"{rate:.4g}" for rate in sorted(rates)) or "-",
                accuracy_cell(row) + (" (base line)" if row is baseline else ""),
                "-" if seconds is None else f"{seconds:.1f} s",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Accuracy is the final model's; ± is the standard deviation over seeds."]
    return "\n".join(lines) + "\n"


def accuracy_cell(row: Row) -> str:
    """Write a row's accuracy with its spread, and how many of its runs did not end well."""
    accuracies, total = row.accuracies(), len(row.records)
    notes = []
    diverged = len(row.of("diverged"))
    if diverged == total:
        notes.append("nan")
    elif diverged:
        notes.append(f"{diverged} of {total} nan")
    for name, statuses in (("failed", ["failed"]), ("missing", ["missing", "interrupted"])):
        count = len(row.of(*statuses))
        if count:
            notes.append(name if count == total else f"{count} of {total} {name}")
    if not accuracies:
        return ", ".join(notes)
    mean, spread = statistics.fmean(accuracies), row.spread()
    digits = 1 if diverged == total else 2
    cell = f"{mean:.{digits}f}" + (
        f" ± {spread:.2f}" if spread is not None and diverged < total else ""
    )
    return cell + (f" ({', '.join(notes)})" if notes else "")
