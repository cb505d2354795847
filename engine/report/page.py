"""Write a group's page, results/<group>/README.md.

Its order is: the answer in one sentence, the tables, the plot, the critical batch size if it was
measured, the commands, hand-written notes, details. The notes are the file notes.md of the
group's folder, which no report changes.
"""

import re
import shlex
import statistics
from collections.abc import Sequence

from engine.report import tables
from engine.report.critical import Study
from engine.report.critical_page import answers, critical_section
from engine.report.critical_plots import CRITICAL_PLOTS
from engine.report.noise import noise_section
from engine.report.rows import Row, Target, baseline_row, gather_lines
from engine.report.times import Known, common_conditions
from engine.runs.records import Record

# A page names at most this many missing runs and counts the others.
NAMED_MISSING = 20
OTHER_COMMITS = "Other commits may have other defaults, which give other runs."
# Key in summary.json of each fact about how a run was made, by its name on the page.
PROVENANCE = {
    "Hardware": "device",
    "Ranks": "world_size",
    "Threads": "threads",
    "Precision": "precision",
    "torch": "torch",
    "Commit": "commit",
}


def page(
    group: str,
    rows: Sequence[Row],
    target: Target,
    plots: Sequence[str],
    notes: str = "",
    study: Study | None = None,
) -> str:
    """Return a group's page as Markdown; the same runs give the same page.

    Args:
        group: name of the group.
        rows: all rows of the group.
        target: the accuracy that rows are compared with.
        plots: file names of the plots to include; the first one is next to the tables.
        notes: hand-written Markdown to include.
        study: the measurement of the critical batch size, if the group has one.

    """
    critical = [name for name in plots if name in CRITICAL_PLOTS]
    plots = [name for name in plots if name not in CRITICAL_PLOTS]
    answer, *others = answers(rows, study)
    records = [record for row in rows for record in row.records]
    note = f"{tables.accuracy_note(rows)} A diverged run counts as chance and is marked nan."
    images = [f"![{name.removesuffix('.png')}]({name})" for name in plots]
    noise = noise_section(rows)
    parts = [
        f"# {group}",
        tables.escaped(answer),
        tables.markdown_tables(rows).strip(),
        f"{note} {tables.times_note(rows)}".rstrip(),
        *images[:1],
        *(["## Critical batch size", *map(tables.escaped, others)] if study else []),
        critical_section(study, critical) if study else "",
        "## How to repeat it",
        how_made(records),
        notes.strip(),
        "## Details",
        target_list(rows, target),
        details(rows, target),
        *images[1:],
        *(["## Gradient noise scale", noise] if noise else []),
        "## What is missing",
        missing(records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def target_list(rows: Sequence[Row], target: Target) -> str:
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
        lines.append(f"- The target is {goal:.2f} %; a row reaches it if its mean is not below it.")
        judged = gather_lines([row for row in rows if target.of(row) is not None], "batch")
        lines += [
            f"- {tables.escaped(title)} reaches it {reached(members, rows, goal)}."
            for title, members in judged.items()
            # The tables show each of many settings at one batch size.
            if len(members) > 1 or not members[0].setting
        ]
    return "\n".join(lines)


def reached(line: Sequence[Row], rows: Sequence[Row], target: float) -> str:
    """Return as text at which batch sizes a line reaches the target, up to the first that does not.

    Args:
        line: rows that differ in batch size alone, smallest first.
        rows: all rows of the group.
        target: mean accuracy in % to reach.

    """
    first = line[0]
    peers = [row for row in rows if row.optimizer == first.optimizer and row.scope == first.scope]
    batches = sorted({row.batch for row in peers})
    found: list[int] = []
    for row, batch in zip(line, batches[batches.index(first.batch) :], strict=False):
        # The line ends before a batch size at which only other settings were tried.
        if row.batch != batch or (row.accuracy() or 0.0) < target:
            break
        found.append(batch)
    if not found:
        return "at no batch"
    if first.batch == batches[0] and len(batches) > 1:
        return f"up to batch {found[-1]}"
    return f"at batch {found[0]}" if len(found) == 1 else f"from batch {found[0]} to {found[-1]}"


def details(rows: Sequence[Row], target: Target) -> str:
    """Return a table of training accuracy, best epoch and times, with a note, as Markdown."""
    tested = rows[0].split == "test"
    both = tested and any(row.figures("holdout_accuracy") for row in rows)
    common = common_conditions(row.timed for row in rows)
    table = [history_cells(row, target, both, common) for row in rows]
    lines = [f"| {' | '.join(table[0])} |", "|---" * len(table[0]) + "|"]
    lines += [f"| {' | '.join(cells.values())} |" for cells in table]
    lines += [
        "",
        "All figures are means over seeds. Training accuracy is that of the last epoch, on "
        "augmented images, while the weights were changing. "
        + ("The best epoch was chosen on the test split, so it is not a result. " * tested)
        + "A row reaches the target only if each of its seeds does."
        + (" Times include training steps only." * (common is not None)),
    ]
    return "\n".join(lines)


def history_cells(row: Row, target: Target, both: bool, common: Known) -> dict[str, str]:
    """Return a row's cells by column.

    Args:
        row: the row.
        target: the accuracy that rows are compared with.
        both: True if the group has accuracies on both hold-out and test split.
        common: the most common conditions of the group's times; None leaves out all times.

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
    cells[f"First epoch at {goal}"] = f"{first.epoch:.4g}" if first else "-"
    if common is None:
        return cells
    cells["Time to target"] = tables.seconds_cell(first.seconds if first else None)
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
    """Return the commands, each with its commit, and the facts to cite."""
    summaries = [r.summary for r in records if r.summary.get("command")]
    differing = {
        name: key
        for name, key in PROVENANCE.items()
        if key != "commit" and len({s[key] for s in summaries if s.get(key) is not None}) > 1
    }
    commits = {s["commit"] for s in summaries if s.get("commit")}
    # A run without a summary is meant to be trained at the commit of the others.
    only = commits.pop() if len(commits) == 1 else "not recorded"
    commands: dict[str, list[str]] = {}
    for s in summaries:
        named = [f"at commit {s.get('commit') or only}"]
        named += [f"{name} {s.get(key) or 'not recorded'}" for name, key in differing.items()]
        commands.setdefault(", ".join(named), []).append(s["command"])
    lines = []
    for heading, given in commands.items():
        lines += [f"Run {tables.escaped(heading)}:", "", *fenced(*merge_commands(given)), ""]
    lines += [OTHER_COMMITS, ""] * bool(lines)
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
        lines.append(f"- {name}: {', '.join(known) or 'not recorded'}")
    return "\n".join(lines)


def fenced(*lines: str) -> list[str]:
    """Return lines as a Markdown code block, whose fence is longer than any in the lines."""
    longest = max(map(len, re.findall("`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *lines, fence]


def merge_commands(commands: Sequence[str]) -> list[str]:
    """Return commands that train the same runs, with as many runs as possible in one sweep each.

    >>> merge_commands([f"python train.py batch={b} seed={s}" for b in (128, 256) for s in (0, 1)])
    ['python train.py -m batch=128,256 seed=0,1']
    """
    by_keys: dict[tuple[str, ...], list[tuple[tuple[str, ...], ...]]] = {}
    for command in dict.fromkeys(commands):
        pairs = [override.partition("=") for override in shlex.split(command)[2:]]
        values = tuple((value,) for _, _, value in pairs)
        by_keys.setdefault(tuple(key for key, _, _ in pairs), []).append(values)
    merged = []
    for keys, sweeps in by_keys.items():
        # Sweeps that differ in one key are merged, key by key, beginning with the last: the seed.
        for place in reversed(range(len(keys))):
            joined: dict[tuple[tuple[str, ...], ...], tuple[str, ...]] = {}
            for sweep in sweeps:
                rest = sweep[:place] + sweep[place + 1 :]
                joined[rest] = joined.get(rest, ()) + sweep[place]
            sweeps = [(*r[:place], values, *r[place:]) for r, values in joined.items()]
        for sweep in sweeps:
            overrides = [f"{k}={','.join(v)}" for k, v in zip(keys, sweep, strict=True)]
            many = ["-m"] * any(len(values) > 1 for values in sweep)
            merged.append(shlex.join(["python", "train.py", *many, *overrides]))
    return merged


def missing(records: Sequence[Record]) -> str:
    """Return a list of the runs that have no accuracy, with the reasons, as Markdown."""
    without = [record for record in records if not record.counted]
    if not without:
        return "Nothing: every requested run has finished."
    lines = []
    for record in without[:NAMED_MISSING]:
        run, error = record.summary["run"], record.summary.get("error")
        reason = ", ".join(tables.escaped(text) for text in (record.status, error) if text)
        lines.append(f"- `{tables.escaped(run)}`: {reason}")
    if len(without) > NAMED_MISSING:
        lines.append(f"- and {len(without) - NAMED_MISSING} more")
    return "\n".join(lines)
