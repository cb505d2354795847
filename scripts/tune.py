"""Search learning rates fairly for several optimizers and batches, on held-out training images.

    python -m scripts.tune optimizer=sgd,lars batch=128,4096 model=resnet8 epochs=15 group=tune8

Each optimizer at each batch gets the same number of trials, on a geometric grid of
optimizer.base_lr around the configured value. The grid widens while the best value is on its edge.
Other keys are passed to train.py. With several seeds, a trial's score is the mean over them. The
same command, run again, trains only the missing trials. Its own keys:

    tune.points        learning rates in the first grid                     [5]
    tune.decay_points  weight decays in the first grid; 1: not tuned        [1]
    tune.factor        ratio between neighboring values                     [2]
    tune.most          largest number of values of a key                    [13]
    tune.trials        number of trials for each optimizer and batch, chosen by Optuna inside
                       the first grid's bounds; null: search the grid       [null]

The default data.holdout is 5000 and the default group is tune. A page, rates.png, runs.jsonl and
experiment/<group>.yaml, which the final sweep uses, are written to results/<group>.
"""

import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from engine.cli import CommandLine, exit_status, read_command_line, read_own_keys
from engine.config.compose import Job
from engine.config.parse import Range
from engine.config.schema import Config, Count
from engine.errors import UserError, key_error
from engine.report.write import read_notes, runs_lines
from engine.runs.records import FINISHED, RESULTS, cannot_write, load_records
from engine.sweeps.sweep import train_trials
from engine.sweeps.tune import (
    Cell,
    draw_rates,
    experiment,
    geometric,
    search,
    search_by_optuna,
    tuning_page,
)
from engine.system.files import write_text_atomically

# The search launches the same job as train.py -m. No module of engine may import train.py.
from train import sweep_job


@dataclass(frozen=True)
class Arguments:
    """The search's own keys."""

    points: Annotated[int, Range(low=3)] = 5
    decay_points: Count = 1
    factor: Annotated[float, Range(low=1, low_open=True)] = 2.0
    most: Annotated[int, Range(low=3)] = 13
    trials: Count | None = None


def main() -> int:
    """Run the search and write its result; return the exit status."""
    given = sys.argv[1:]
    if {"--help", "-h"} & set(given):
        print((__doc__ or "").strip())
        return 0
    arguments = read_own_keys(given, "tune", Arguments)
    own = ("group=", "data.holdout=", "data.test_size=")
    for key in own:
        if sum(g.startswith(key) for g in given) > 1:
            raise UserError(f"{key[:-1]}: is given more than once; give it once")
    if size := next((g for g in given if g.startswith(own[2]) and g != "data.test_size=0"), None):
        raise UserError(f"{size}: a search never evaluates the test split")
    asked = [g for g in given if not g.startswith(("tune.", *own))]
    held = next((g for g in given if g.startswith("data.holdout=")), "data.holdout=5000")
    # An experiment's group is for its results on the test split, so it is overridden.
    group = next((g for g in given if g.startswith("group=")), "group=tune")
    command = read_command_line(["-m", *asked, group, held, "data.test_size=0"], "train", Config)
    if command.answer is not None:
        raise UserError("scripts.tune: cannot show a configuration; use train.py")
    cells, seeds = make_cells(command.jobs, arguments)
    config = command.jobs[0].config

    def measured(cells: Sequence[Cell]) -> None:
        measure(cells, seeds, command)

    if arguments.trials is None:
        search(cells, measured, arguments.factor, arguments.most)
    else:
        search_by_optuna(cells, measured, arguments.trials)
    write(cells, seeds, config, given)
    return 0


def make_cells(jobs: Sequence[Job], arguments: Arguments) -> tuple[list[Cell], list[int]]:
    """Return a cell for each optimizer and batch, with a grid around its configured values.

    Returns the seeds as well. Raises UserError for plan=true or report=true, for several values of
    any other key, and for a weight decay of 0 that is to be tuned.
    """
    cells: dict[tuple[str, int], Cell] = {}
    for job in jobs:
        optimizer = job.config.optimizer
        if job.config.plan:
            raise key_error("plan", True, "scripts.tune has no dry run")
        if job.config.report:
            allowed = "must be false; python -m scripts.report writes a page of a search"
            raise key_error("report", True, allowed)
        overrides = [o for o in job.overrides if not o.startswith("seed=")]
        axes = {
            "optimizer.base_lr": geometric(optimizer.base_lr, arguments.points, arguments.factor)
        }
        if arguments.decay_points > 1:
            if not optimizer.weight_decay:
                raise key_error("optimizer.weight_decay", 0.0, "must be above 0 to be tuned")
            axes["optimizer.weight_decay"] = geometric(
                optimizer.weight_decay, arguments.decay_points, arguments.factor
            )
        cell = Cell(optimizer.label, job.config.batch, overrides, axes)
        if cells.setdefault((cell.optimizer, cell.batch), cell).overrides != overrides:
            raise UserError("scripts.tune: only optimizer, batch and seed may have several values")
    return list(cells.values()), sorted({job.config.seed for job in jobs})


def measure(cells: Sequence[Cell], seeds: Sequence[int], command: CommandLine) -> None:
    """Train the trials that have no score, and set their scores to the hold-out accuracy.

    Exits with status 1 if any trial failed: a choice among fewer trials would not be fair.

    Args:
        cells: the cells, whose scores are set.
        seeds: the seeds of each trial.
        command: the command line, which chooses the launcher.

    """
    trials = [
        (cell, point) for cell in cells for point in cell.points() if point not in cell.scores
    ]
    lists = [trial_overrides(c, p, s) for c, p in trials for s in seeds]
    summaries = iter(train_trials(lists, command, sweep_job))
    for cell, point in trials:
        results = [next(summaries) for _ in seeds]
        diverged = any(result["status"] == FINISHED[1] for result in results)
        scores = [result["holdout_accuracy"] for result in results]
        cell.scores[point] = None if diverged else statistics.fmean(scores)


def trial_overrides(cell: Cell, point: Sequence[float], seed: int) -> list[str]:
    """Return the overrides of a trial with one seed."""
    values = [f"{key}={value!r}" for key, value in zip(cell.axes, point, strict=True)]
    return [*cell.overrides, *values, f"seed={seed}"]


def write(
    cells: Sequence[Cell], seeds: Sequence[int], config: Config, given: Sequence[str]
) -> None:
    """Write the experiment, the page and the plot; print the page's table and what to run next.

    Raises UserError if the files cannot be written.

    Args:
        cells: the cells, with scores.
        seeds: the seeds of each trial.
        config: the configuration of any trial.
        given: the command's arguments.

    """
    folder = RESULTS / config.group
    searched = shlex.join(["python", "-m", "scripts.tune", *given])
    scored = f"{config.data.holdout} held-out training images"
    if len(seeds) > 1:
        scored += f", the mean of {len(seeds)} seeds"
    recipe = next((g.partition("=")[2] for g in given if g.startswith("+experiment=")), None)
    # Tuned keys are left out, since the command line would override their values in the experiment.
    own = ("tune.", "group=", "data.holdout=", "data.test_size=", "+experiment=")
    tuned = tuple(f"{key}=" for key in cells[0].axes)
    kept = [g for g in given if not g.startswith((*own, *tuned))]
    final = shlex.join(
        ["python", "train.py", "-m", "--config-dir", str(folder),
         f"+experiment={config.group}", *kept, f"group={config.group}-final"]
    )  # fmt: skip
    path = folder / "experiment" / f"{config.group}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records = load_records(config.group)
        text = tuning_page(
            config.group, cells, records, searched, final, scored, read_notes(folder)
        )
        write_text_atomically(path, experiment(cells, searched, scored, recipe))
        write_text_atomically(folder / "README.md", text)
        write_text_atomically(folder / "runs.jsonl", runs_lines(records))
        draw_rates(folder / "rates.png", cells)
    except OSError as error:
        raise cannot_write(folder, error) from error
    print(text[: text.index("![rates]")] + f"experiment  {path}\nthen        {final}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
