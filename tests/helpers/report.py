"""Write the files of runs without training them, and read their group's report."""

import csv
import dataclasses
import json

import yaml
from matplotlib.figure import Figure

from engine.report.plots import draw_baseline
from engine.report.rows import make_rows
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.helpers.runs import config

EPOCH = {
    "holdout_accuracy": None,
    "train_accuracy": 77.5,
    "train_seconds": 10.0,
    "wall_seconds": 12.0,
    "images": 1000,
}
HISTORY = [
    {"epoch": 1, "step": 8, "test_accuracy": 40.0, **EPOCH},
    {"epoch": 2, "step": 16, "test_accuracy": None, **EPOCH},
    {"epoch": 3, "step": 24, "test_accuracy": 79.7, **EPOCH},
]


def put(work, *overrides, status="completed", accuracy=80.0, history=HISTORY, **changes):
    """Write the directory of a run of group `g`, as if it had been trained.

    Args:
        work: the working directory.
        overrides: the run's overrides.
        status: the run's status; `missing` writes no summary.
        accuracy: test accuracy in %; ignored if the run failed.
        history: rows of metrics.jsonl.
        changes: entries of the summary that replace the default ones.

    """
    seeds = [int(o.removeprefix("seed=")) for o in overrides if o.startswith("seed=")]
    made = config(*(o for o in overrides if not o.startswith("seed=")))
    made = dataclasses.replace(made, seed=(seeds or [made.seed])[-1])
    name = f"run-{len(list(work.glob('results/runs/g/*')))}"
    folder = work / "results" / "runs" / "g" / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(made.to_dict()))
    if status == "missing":
        return
    summary = {
        "status": status, "run": name, "group": "g", "model": made.model.name,
        "data": made.data.name, "optimizer": made.optimizer.name, "batch": made.batch,
        "seed": made.seed, "epochs": made.epochs, "steps": 100, "base_lr": 0.1, "peak_lr": 0.2,
        "test_accuracy": None if status == "failed" else accuracy, "best_test_accuracy": 81.0,
        "best_epoch": 2, "command": "python train.py " + " ".join(overrides),
        "train_seconds": 30.0, "images_per_second": 1000.0, "target_accuracy": None,
        "commit": "abc", "device": "cpu", "torch": "2", "choices": made.choices(),
        "runs_at_once": 1, "shared_machine": False,
    } | changes  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))


def table(work):
    """Write the report; return the text of table.md and the rows of table.csv."""
    write_report("g")
    text = (work / "results" / "g" / "table.md").read_text()
    with open(work / "results" / "g" / "table.csv") as file:
        return text, list(csv.DictReader(file))


def baselines_drawn():
    """Return the legend entries of the baseline in a plot of the group."""
    axes = Figure().subplots()
    draw_baseline(axes, make_rows(load_records("g")))
    return axes.get_legend_handles_labels()[1]


def page_of(work, group="g"):
    """Write the report; return the page."""
    write_report(group)
    return (work / "results" / group / "README.md").read_text()
