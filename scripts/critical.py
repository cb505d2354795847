"""Measure the critical batch size: the steps to a target accuracy against the batch.

    python -m scripts.critical optimizer=sgd,lars batch=64,256,1024,4096 target_accuracy=70 \\
        model=resnet8 group=critical8

Each optimizer at each batch gets the same number of trials of optimizer.base_lr, from the smallest
batch to the largest. The smallest one begins with the configured rate, every other one with the
best rate of the batch before it. A trial ends when it reaches the target, or at the fewest steps of
an earlier round. The best rate is then trained with other seeds. The same command, run again,
trains only the missing runs. Other keys are passed to train.py. Its own keys:

    trials       rates to try for each optimizer and batch, at least 3   [5]
    seeds        other seeds with which the best rate is trained         [3]
    factor       ratio between neighboring rates                         [2]

It sets max_steps, eval_every and stop_at_target. These keys of train.py have other defaults here,
which also replace the values of an experiment:

    group=critical epochs=30 data.holdout=5000 data.test_size=0 model.ghost_batch=32
    scheduler=constant scheduler.warmup_steps=10

With epochs the first trial at the smallest batch ends if it does not reach the target.

The trials are the group NAME-search, the runs with other seeds NAME. The report, with steps.png,
rates.png and critical.json, is written to results/NAME.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from engine.cli import CommandLine, exit_status, read_arguments, read_command_line
from engine.config.compose import Job, sets
from engine.config.parse import Range
from engine.config.schema import Config, Count, check_group_name
from engine.data.dataset import plan_data
from engine.errors import UserError, key_error
from engine.report.write import write_report
from engine.runs.records import load_records
from engine.sweeps.critical import Budget, Outcome, Trial, evaluation_steps, measure_steps
from engine.sweeps.sweep import check_groups, make_plans, train_trials
from engine.system.terminal import say

# The study launches the same job as train.py -m. No module of engine may import train.py.
from train import sweep_job

# Warm-up is a number of steps, so that it is equal at all batches.
DEFAULTS = (
    "group=critical", "epochs=30", "data.holdout=5000", "data.test_size=0", "model.ghost_batch=32",
    "scheduler=constant", "scheduler.warmup_steps=10",
)  # fmt: skip
DECIDED = ("max_steps", "eval_every", "stop_at_target", "plan")


@dataclass(frozen=True)
class Arguments:
    """The study's own keys."""

    trials: Annotated[int, Range(low=3)] = 5
    seeds: Count = 3
    factor: Annotated[float, Range(low=1, low_open=True)] = 2.0


class Study:
    """A checked command: the configurations of its optimizers and batches.

    Args:
        given: the command's arguments.

    """

    def __init__(self, given: Sequence[str]) -> None:
        own = [g for g in given if g.partition("=")[0] in Arguments.__dataclass_fields__]
        self.arguments = read_arguments(own, Arguments, None)
        self.command = read_study([g for g in given if g not in own])
        self.name = self.command.jobs[0].config.group
        check_group_name(f"{self.name}-search")
        check_groups([self.name])
        self.target = self.command.jobs[0].config.target_accuracy
        plans = make_plans([checked(job) for job in self.command.jobs], plan_data)
        self.jobs = {(j.config.optimizer.label, j.config.batch): j for j in self.command.jobs}
        self.epoch_steps = {plan.batch: plan.steps_per_epoch for plan in plans}

    def run(self) -> None:
        """Train what is missing."""
        config, smallest = self.command.jobs[0].config, min(self.epoch_steps)
        epoch = self.epoch_steps[smallest]
        budget = Budget(
            self.arguments.trials, self.arguments.seeds, self.arguments.factor, config.seed,
            first_steps=config.epochs * epoch, first_evaluation=evaluation_steps(epoch),
            warmup_steps=config.scheduler.warmup_steps,
        )  # fmt: skip
        own = {
            name: job.config.optimizer.base_lr
            for (name, batch), job in self.jobs.items() if batch == smallest
        }  # fmt: skip
        measure_steps(own, list(self.epoch_steps), budget, self.train, say)

    def train(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Train the runs of a round that are missing; return the outcomes of all."""
        summaries = train_trials(list(map(self.overrides, trials)), self.command, sweep_job)
        return [Outcome.of(summary) for summary in summaries]

    def overrides(self, trial: Trial) -> list[str]:
        """Return the overrides of a run."""
        job = self.jobs[trial.optimizer, trial.batch]
        decided = {
            "optimizer.base_lr": repr(trial.base_lr),
            "seed": trial.seed,
            "max_steps": trial.max_steps,
            "eval_every": f"{trial.eval_steps}steps",
            # As many as the steps take. The rate is constant, so more would change nothing.
            "epochs": -(-self.least_steps(trial) // self.epoch_steps[trial.batch]),
            "group": self.name if trial.reported else f"{self.name}-search",
        }
        kept = [o for o in job.overrides if not any(sets(key, o) for key in decided)]
        return [*kept, *(f"{key}={value}" for key, value in decided.items())]

    def least_steps(self, trial: Trial) -> int:
        """Return the steps that the epochs of a run must have: its own, and its warm-up."""
        return max(trial.max_steps, self.command.jobs[0].config.scheduler.warmup_steps)

    def report(self) -> None:
        """Write the reports of both groups, as far as they have runs, and print the last one."""
        groups = [g for g in (f"{self.name}-search", self.name) if load_records(g)]
        for text in [write_report(group, self.target) for group in groups][-1:]:
            print(text)


def checked(job: Job) -> Job:
    """Return a job whose epochs have steps enough for warm-up, as those of every run have."""
    config = job.config
    epochs = max(config.epochs, config.scheduler.warmup_steps)
    return dataclasses.replace(job, config=dataclasses.replace(config, epochs=epochs))


def read_study(given: Sequence[str]) -> CommandLine:
    """Return the checked command line of a study, with one job per optimizer and batch.

    Raises UserError on a mistake.
    """
    if decided := next((g for g in given for key in DECIDED if sets(key, g)), None):
        raise UserError(f"{decided}: scripts.critical decides this key; leave it out")
    if not any(sets("target_accuracy", g) for g in given):
        allowed = "must be the accuracy in % to reach, such as target_accuracy=70"
        raise key_error("target_accuracy", None, allowed)
    other = next((g for g in given if sets("scheduler", g) and g != "scheduler=constant"), None)
    if other is not None:
        raise UserError(
            f"{other}: must be scheduler=constant; a decay would depend on the steps at which a "
            "run ends"
        )
    added = [o for o in DEFAULTS if not any(sets(o.partition("=")[0], g) for g in given)]
    words = ["-m", *given, *added, "stop_at_target=true"]
    command = read_command_line(words, "train", Config)
    if command.answer is not None:
        raise UserError("scripts.critical: cannot show a configuration; use train.py")
    cells = {(job.config.optimizer.label, job.config.batch) for job in command.jobs}
    if len(cells) < len(command.jobs):
        raise UserError(
            "scripts.critical: only optimizer and batch may have several values, each given once"
        )
    if command.jobs[0].config.report:
        allowed = "must be false; python -m scripts.report writes a page of the results"
        raise key_error("report", True, allowed)
    if command.jobs[0].config.scheduler.warmup_steps is None:
        allowed = "must be a number of steps, which is equal at all batches"
        raise key_error("scheduler.warmup_steps", None, allowed)
    return command


def main() -> int:
    """Run the study and write its report; return the exit status."""
    given = sys.argv[1:]
    if {"--help", "-h"} & set(given):
        print((__doc__ or "").strip())
        return 0
    study = Study(given)
    try:
        study.run()
    except BaseException:
        # After Ctrl-C or a failed run, the report shows what is finished.
        study.report()
        raise
    study.report()
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
