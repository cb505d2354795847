"""Write a group's page, results/<group>/README.md: question, results, commands, missing runs."""

import math
import re
import shlex
import statistics
from collections.abc import Iterable, Sequence

from engine.report import tables
from engine.report.noise import noise_section
from engine.report.rows import Row, Target, baseline_row, gather_lines
from engine.report.times import Known, common_conditions
from engine.runs.records import Record

# A page names at most this many missing runs and counts the others.
NAMED_MISSING = 20
# Key in summary.json of each fact about how a run was made, by its name on the page.
PROVENANCE = {
    "Hardware": "device",
    "Ranks": "world_size",
    "Threads": "threads",
    "Precision": "precision",
    "torch": "torch",
    "Commit": "commit",
}


def page(group: str, rows: Sequence[Row], target: Target, plots: Iterable[str]) -> str:
    """Return a group's page as Markdown; the same runs give the same page.

    Args:
        group: name of the group.
        rows: all rows of the group.
        target: the accuracy that rows are compared with.
        plots: file names of the plots to include.

    """
    records = [record for row in rows for record in row.records]
    parts = [
        f"# {group}",
        question(rows),
        answer(rows, target),
        tables.markdown_tables(rows).strip(),
        f"{tables.accuracy_note(rows)} A diverged run counts as chance and is marked nan.",
        *(f"![{name.removesuffix('.png')}]({name})" for name in plots),
        "## On the way",
        on_the_way(rows, target),
        *(["## Gradient noise scale", noise] if (noise := noise_section(rows)) else []),
        "## How it was made",
        how_made(records),
        "## What is missing",
        missing(records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def question(rows: Sequence[Row]) -> str:
    """Return the question that these rows answer."""
    batches = sorted({row.batch for row in rows})
    names = dict.fromkeys(row.optimizer_title for row in rows)
    optimizers = tables.escaped(" and with ".join(names))
    if len(batches) == 1:
        return f"**What is the final accuracy at batch {batches[0]} with {optimizers}?**"
    return (
        f"**Does accuracy hold as the batch grows from {batches[0]} to {batches[-1]}, "
        f"with {optimizers}?**"
    )


def answer(rows: Sequence[Row], target: Target) -> str:
    """Return up to which batch size each line's mean accuracy reaches the target; may be empty."""
    if target.baseline is not None and target.baseline.setting:
        # With several settings at the smallest batch size, none of them is the baseline.
        return ""
    lines, baseline = [], baseline_row(rows)
    if baseline is not None and baseline.accuracies():
        lines.append(
            f"- The base line, SGD at batch {baseline.batch}: {tables.accuracy_cell(baseline)} %."
        )
    goal = target.accuracy
    if goal is not None:
        lines.append(f"- The target is {goal:.2f} %; a row holds if its mean is not below it.")
        judged = gather_lines([row for row in rows if target.of(row) is not None], "batch")
        lines += [
            f"- {tables.escaped(title)} holds {held(members, rows, goal)}."
            for title, members in judged.items()
            # The tables show how each of many settings at one batch size did.
            if len(members) > 1 or not members[0].setting
        ]
    return "\n".join(lines)


def held(line: Sequence[Row], rows: Sequence[Row], target: float) -> str:
    """Return as text at which batch sizes a line reaches the target, up to the first that does not.

    Args:
        line: rows that differ in batch size alone, smallest first.
        rows: all rows of the group.
        target: mean accuracy in % to reach.

    """
    first = line[0]
    peers = [row for row in rows if row.optimizer == first.optimizer and row.scope == first.scope]
    batches = sorted({row.batch for row in peers})
    well: list[int] = []
    for row, batch in zip(line, batches[batches.index(first.batch) :], strict=False):
        # The line ends before a batch size at which only other settings were tried.
        if row.batch != batch or (row.accuracy() or 0.0) < target:
            break
        well.append(batch)
    if not well:
        return "at no batch"
    if first.batch == batches[0] and len(batches) > 1:
        return f"up to batch {well[-1]}"
    return f"at batch {well[0]}" if len(well) == 1 else f"from batch {well[0]} to {well[-1]}"


def on_the_way(rows: Sequence[Row], target: Target) -> str:
    """Return a table of training accuracy, best epoch and times, with a note, as Markdown."""
    tested = rows[0].split == "test"
    both = tested and any(row.figures("holdout_accuracy") for row in rows)
    common = common_conditions(row.timed for row in rows)
    table = [history_cells(row, target, both, common) for row in rows]
    lines = [f"| {' | '.join(table[0])} |", "|---" * len(table[0]) + "|"]
    lines += [f"| {' | '.join(cells.values())} |" for cells in table]
    lines += [
        "",
        "Means over seeds. Training accuracy is the last epoch's, on augmented images, while the "
        "weights still moved. "
        + ("The best epoch was found on the test split, so it is history and no result. " * tested)
        + "A row is at the target only if each of its seeds gets there; times are training steps "
        f"alone. {tables.times_note(rows)}".rstrip(),
    ]
    return "\n".join(lines)


def history_cells(row: Row, target: Target, both: bool, common: Known) -> dict[str, str]:
    """Return a row's cells by column.

    Args:
        row: the row.
        target: the accuracy that rows are compared with.
        both: True if the group has accuracies on both hold-out and test split.
        common: the most common conditions of the group's times.

    """
    train, speed = row.train_accuracy(), row.mean_time("images_per_second")
    best, epoch = row.mean("best_test_accuracy"), row.mean("best_epoch")
    first = row.first_at(target.of(row))
    cells = {
        "Optimizer": tables.escaped(row.optimizer_title),
        "Batch": tables.escaped(row.title),
        "Final, %": tables.accuracy_cell(row),
        "Training, %": "-" if train is None else f"{train:.2f}",
    }
    if both:
        cells["Hold-out, %"] = holdout_cell(row)
    if row.split == "test":
        known = best is not None and epoch is not None
        cells["Best epoch, %"] = f"{best:.2f} (epoch {epoch:.4g})" if known else "-"
    goal = "the target" if target.accuracy is None else f"{target.accuracy:.2f} %"
    cells[f"First at {goal}"] = f"epoch {first[0]:.4g}" if first else "-"
    cells["Time to it"] = tables.seconds_cell(first[1] if first else None)
    cells["Time to train"] = tables.time_cell(row, common)
    cells["Images/s"] = "-" if speed is None else f"{speed:,.0f}"
    return cells


def holdout_cell(row: Row) -> str:
    """Return the mean hold-out accuracy and that of each run in % as text."""
    if not row.figures("holdout_accuracy"):
        return "-"
    found = [value for r in row.records if (value := r.accuracy("holdout")) is not None]
    each = f" ({', '.join(f'{value:.2f}' for value in found)})" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.2f}{each}"


def how_made(records: Sequence[Record]) -> str:
    """Return the commands, grouped by provenance if it differs, and the facts to cite."""
    summaries = [r.summary for r in records if r.summary.get("command")]
    differing = {
        name: key
        for name, key in PROVENANCE.items()
        if len({s[key] for s in summaries if s.get(key) is not None}) > 1
    }
    commands: dict[str, list[str]] = {}
    for s in summaries:
        heading = ", ".join(
            f"{name} {s.get(key) or 'not known'}" for name, key in differing.items()
        )
        commands.setdefault(heading, []).append(s["command"])
    lines = []
    for heading, given in commands.items():
        lines += [f"{tables.escaped(heading)}:", ""] if heading else []
        lines += [*fenced(*merge_commands(given)), ""]
    return "\n".join([*lines, facts(records)])


def facts(records: Sequence[Record]) -> str:
    """Return a list of the facts to cite with the results of these runs, as Markdown."""
    summaries = [record.summary for record in records]
    data = []
    for record in records:
        keys = ("data.root", "data.train_size", "data.test_size", "data.holdout")
        given = [f"{key}={record.choices[key]}" for key in keys if record.choices.get(key)]
        data.append(" ".join([record.summary["data"], *given]))
    sizes = {s["model"]: s["parameters"] for s in summaries if s.get("parameters")}
    models = [
        s["model"] + (f" ({sizes[s['model']]:,} parameters)" if s["model"] in sizes else "")
        for s in summaries
    ]
    values = {
        "Model": models,
        "Data": data,
        "Epochs": [s["epochs"] for s in summaries],
        "Seeds": sorted(s["seed"] for s in summaries),
        **{name: [s.get(key) for s in summaries] for name, key in PROVENANCE.items()},
    }
    if set(values["Ranks"]) <= {1, None}:
        del values["Ranks"]
    lines = []
    for name, found in values.items():
        known = dict.fromkeys(tables.escaped(value) for value in found if value is not None)
        lines.append(f"- {name}: {', '.join(known) or 'not known'}")
    return "\n".join(lines)


def fenced(*lines: str) -> list[str]:
    """Return lines as a Markdown code block, whose fence is longer than any in the lines."""
    longest = max(map(len, re.findall("`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *lines, fence]


def merge_commands(commands: Sequence[str]) -> list[str]:
    """Return commands that together are all combinations of some values as one sweep."""
    by_keys: dict[tuple[str, ...], list[list[str]]] = {}
    for command in dict.fromkeys(commands):
        overrides = shlex.split(command)[2:]
        by_keys.setdefault(tuple(o.partition("=")[0] for o in overrides), []).append(overrides)
    merged = []
    for keys, lists in by_keys.items():
        values = [list(dict.fromkeys(column)) for column in zip(*lists, strict=True)]
        if len(lists) == 1 or math.prod(map(len, values)) != len(lists):
            merged += [shlex.join(["python", "train.py", *overrides]) for overrides in lists]
            continue
        joined = [
            f"{key}={','.join(override.partition('=')[2] for override in column)}"
            for key, column in zip(keys, values, strict=True)
        ]
        merged.append(shlex.join(["python", "train.py", "-m", *joined]))
    return merged


def missing(records: Sequence[Record]) -> str:
    """Return a list of the runs that have no accuracy, with the reasons, as Markdown."""
    without = [record for record in records if not record.counted]
    if not without:
        return "Nothing: every run that was asked for has an outcome."
    lines = []
    for record in without[:NAMED_MISSING]:
        run, error = record.summary["run"], record.summary.get("error")
        reason = ", ".join(tables.escaped(text) for text in (record.status, error) if text)
        lines.append(f"- `{tables.escaped(run)}`: {reason}")
    if len(without) > NAMED_MISSING:
        lines.append(f"- and {len(without) - NAMED_MISSING} more")
    return "\n".join(lines)
