"""Runs a sweep: claims its runs, trains them, and always writes a report.

Runs are trained in this process, in several processes at once (children.py), or by Hydra's
launcher (launch.py). Outcomes are read from the runs' directories, so a job that died
affects neither the other runs nor the table.
"""

import contextlib
import functools
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.cli import CommandLine
from engine.config.compose import Job, make_jobs
from engine.config.hydra_rules import is_launchers
from engine.config.schema import Config, DataConfig
from engine.data.dataset import Dataset, load_data, plan_data
from engine.errors import UserError, key_error
from engine.report.html import NO_PLOTLY, has_plotly, write_html
from engine.report.write import write_report
from engine.runs.claims import plan_threads
from engine.runs.records import FAILED, FINISHED, MISSING, RESULTS, check_inside
from engine.runs.run import Run, reason_of
from engine.sweeps.children import train_in_processes
from engine.sweeps.launch import Task, check_launcher, launch_jobs
from engine.sweeps.parallel import Way, choose_way
from engine.sweeps.progress import SweepProgress
from engine.system.lock import RunBusy, holder
from engine.system.signals import leaving
from engine.training.plan import Plan, check_plan, make_plan

# A run whose worker died may not be at fault, since another run may have killed the worker.
LAUNCHES = 2
POLL_SECONDS = 2.0


def run_sweep(command: CommandLine, task: Task) -> int:
    """Check and claim every run, train the missing ones, write tables; return the exit status.

    Raises UserError before anything is written if any run is impossible.
    """
    jobs = distinct(command.jobs or [])
    planned = any(job.config.plan for job in jobs)
    plans = make_plans(jobs, plan_data if planned else load_data)
    if planned:
        for job, plan in zip(jobs, plans, strict=True):
            print(f"{Run(job.config).name}\n{plan.describe()}\n")
        return 0
    check_groups({job.config.group for job in jobs})
    check_launcher(command.hydra_overrides)
    if jobs[0].config.report and not has_plotly():
        advice = "installed before the sweep ends, it still counts"
        print(f"report=true: {NO_PLOTLY}; {advice}", file=sys.stderr, flush=True)
    claimed, way = claim_missing(jobs, plans, command.hydra_overrides)
    try:
        train_missing(jobs, claimed, way, command.hydra_overrides, task)
    finally:
        # After Ctrl-C too, the table shows the runs that are finished.
        reported = report(jobs)
    failures = [text for job in jobs if (text := failure(Run(job.config)))]
    for text in failures:
        print(text, file=sys.stderr)
    return 1 if failures or not reported else 0


def check_groups(groups: Iterable[str]) -> None:
    """Raise UserError if the report of a group could not be written."""
    for group in groups:
        check_inside(group)
        if (RESULTS / group).exists() and not (RESULTS / group).is_dir():
            raise key_error("group", group, f"{RESULTS / group} must be a directory for its tables")


def make_plans(
    jobs: Sequence[Job], read: Callable[[DataConfig], Dataset] = load_data
) -> list[Plan]:
    """Return each job's plan; raise UserError if a run is impossible.

    Checks that need no data come first, before any image is read.

    Args:
        jobs: the runs.
        read: loads a data set, or only its sizes.

    """
    for job in jobs:
        check_plan(job.config)
    training_size = functools.cache(lambda data: len(read(data).train))
    return [make_plan(job.config, training_size(job.config.data)) for job in jobs]


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs without duplicates; raise UserError if two would share a directory."""
    found: dict[Path, Job] = {}
    for job in jobs:
        directory = Run(job.config).directory
        other = found.setdefault(directory, job)
        if other.config != job.config:
            differing = sorted(set(other.overrides) ^ set(job.overrides))
            allowed = f"give one of them; both name the run {directory.name}"
            raise UserError(f"{', '.join(differing)}: {allowed}")
    return list(found.values())


def claim_missing(
    jobs: Sequence[Job], plans: Sequence[Plan], hydra_overrides: Sequence[str]
) -> tuple[dict[Run, Job], Way]:
    """Claim the runs that are not finished; return their jobs, and how to train them.

    Raises UserError if a run's directory cannot be written, or too many runs are to train at once.

    Args:
        jobs: the sweep's runs.
        plans: their plans.
        hydra_overrides: overrides of Hydra's own keys, which choose the launcher.

    """
    pending, pending_plans = {}, []
    for job, plan in zip(jobs, plans, strict=True):
        run = Run(job.config)
        if job.config.resume and run.finished():
            print(f"finished  {run.name}: {run.outcome()}")
        else:
            pending[run] = job
            pending_plans.append(plan)
    print(f"sweep     {len(jobs)} runs, {len(jobs) - len(pending)} finished already", flush=True)
    way = choose_way(list(pending.values()), pending_plans, hydra_overrides, len(jobs))
    if way.line:
        print(way.line, flush=True)
    for run, job in pending.items():
        run.claim(job.arguments)
        plan_threads(job.config, run.directory, way.threads, way.replaces)
    return pending, way


@leaving()
def train_missing(
    jobs: Sequence[Job],
    pending: Mapping[Run, Job],
    way: Way,
    hydra_overrides: Sequence[str],
    task: Task,
) -> None:
    """Launch the jobs of claimed runs until each has an outcome or was launched `LAUNCHES` times.

    Waits for runs that other processes train, and takes a run over if its process dies.

    Args:
        jobs: the sweep's runs.
        pending: the job of each claimed run.
        way: how to train them.
        hydra_overrides: overrides of Hydra's own keys, which choose the launcher.
        task: trains one run from its composed configuration.

    """
    if not pending:
        return
    runs, mode = [Run(job.config) for job in jobs], jobs[0].config.progress
    if any(map(is_launchers, hydra_overrides)):
        # A launcher returns when all runs have ended, so a bar would never move.
        mode = "off"
    progress = SweepProgress(runs, way.at_once or 1, mode)
    with progress.shown():
        _train_missing(pending, way, hydra_overrides, task, progress.run_ended)


def _train_missing(
    pending: Mapping[Run, Job],
    way: Way,
    hydra_overrides: Sequence[str],
    task: Task,
    ended: Callable[[], None],
) -> None:
    before = {run: run.settled_at() for run in pending}
    launches: Counter[Run] = Counter()
    announced = False
    while pending:
        held = [run for run in pending if holder(run.directory)]
        free = [run for run in pending if run not in held and launches[run] < LAUNCHES]
        # First launch all runs together, then the unfinished ones separately, so that no run can
        # fail because of another one.
        free = free if not launches else free[:1]
        if free:
            launches.update(free)
            if way.at_once is not None:
                train_in_processes([(run, pending[run]) for run in free], way.at_once, ended)
            else:
                launch([pending[run] for run in free], hydra_overrides, task, ended)
        elif held:
            if not announced:
                print(f"waiting   for {len(held)} runs that other processes train", flush=True)
            announced = True
            time.sleep(POLL_SECONDS)
        else:
            return
        # A different time, not a later one, since the clock may have been set back. 0 means that
        # the run has no outcome.
        pending = {r: job for r, job in pending.items() if r.settled_at() in (0, before[r])}


def launch(
    jobs: Sequence[Job], hydra_overrides: Sequence[str], task: Task, ended: Callable[[], None]
) -> None:
    """Train the jobs with Hydra's launcher; print what it raises.

    A launcher that lost a worker raises for all jobs. Their files show each outcome.

    Args:
        jobs: the runs.
        hydra_overrides: overrides of Hydra's own keys, which choose the launcher.
        task: trains one run from its composed configuration.
        ended: called after each run that trains in this process.

    """
    try:
        launch_jobs(task, jobs, hydra_overrides, ended)
    except Exception as error:
        print(f"launcher: {type(error).__name__}: {error}", file=sys.stderr)


def train_trials(
    lists: Sequence[Sequence[str]], command: CommandLine, task: Task
) -> list[dict[str, Any]]:
    """Train the trials of a search that are missing; return the summaries of all.

    Exits with status 1 if any trial failed: a choice among fewer trials would not be fair.

    Args:
        lists: the overrides of each trial.
        command: the search's command line, which chooses the launcher and `parallel`.
        task: trains one run from its composed configuration.

    """
    # A run's own overrides leave out what concerns the whole search.
    shared = [*command.hydra_overrides, f"parallel={command.jobs[0].config.parallel}"]
    jobs = make_jobs("train", Config, [[*overrides, *shared] for overrides in lists])
    plans = make_plans(jobs)
    check_groups({job.config.group for job in jobs})
    check_launcher(command.hydra_overrides)
    pending, way = claim_missing(jobs, plans, command.hydra_overrides)
    train_missing(jobs, pending, way, command.hydra_overrides, task)
    failures = [text for job in jobs if (text := failure(Run(job.config)))]
    if failures:
        advice = "run the same command again to retry the failed trials"
        print(*failures, advice, sep="\n", file=sys.stderr)
        raise SystemExit(1)
    summaries = [Run(job.config).summary() for job in jobs]
    return [summary for summary in summaries if summary is not None]


def report(jobs: Sequence[Job]) -> bool:
    """Write and print the report of each job's group; return False if one failed."""
    succeeded, html = True, jobs[0].config.report
    # The target is this command's: earlier runs may have had another one, or none.
    for group, target in {job.config.group: job.config.target_accuracy for job in jobs}.items():
        try:
            print(write_report(group, target))
            if html and has_plotly():
                print(f"written   {write_html([group], target)}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            succeeded = False
    return succeeded


def failure(run: Run) -> str | None:
    """Return what stopped a run and the path of its log; None if it is finished."""
    summary = run.summary() or {"status": MISSING, "error": None}
    if summary["status"] in FINISHED:
        # With resume=false, a refused run keeps its earlier outcome. Its log has the reason.
        if run.config.resume or not run.log.exists():
            return None
        summary = {"status": FAILED, "error": None}
    place, reason = run.directory, summary["error"]
    if run.log.exists():
        place = run.log
        reason = reason or run.log.read_text(encoding="utf-8").strip().rpartition("\n")[2]
    return f"{summary['status']}: {place}: {reason or 'it wrote no summary'}"


@contextlib.contextmanager
def report_failure(config: Config, arguments: list[str]) -> Iterator[None]:
    """Write an exception inside the block to the run's log, so that the sweep continues.

    A run that was refused before it started gets a summary with the status failed.

    Args:
        config: the run's configuration.
        arguments: the arguments of train.py that train this run by itself.

    """
    try:
        yield
    except BrokenPipeError:
        # The reader of the output closed it. The command ends, but the run has not failed.
        raise
    except RunBusy as error:
        print(f"waiting   {error}", file=sys.stderr)
    except Exception as error:
        run = Run(config)
        run.record_failure(traceback.format_exc(), reason_of(error), arguments)
        print(f"failed    {run.name}: {error}; see {run.log}", file=sys.stderr, flush=True)
