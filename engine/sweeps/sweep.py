"""Several runs from one command: claimed first, launched by Hydra, reported whatever happened.

Hydra's launcher decides where the runs go; their outcomes are read from their directories, so a
job that died, in this process or elsewhere, costs neither the other runs nor the table.
"""

import contextlib
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from engine.cli import CommandLine
from engine.config.compose import Job
from engine.config.schema import Config, DataConfig
from engine.data.dataset import Dataset, load_data, plan_data
from engine.errors import UserError, key_error
from engine.report.write import write_report
from engine.runs.records import FAILED, FINISHED, MISSING, RESULTS, check_inside
from engine.runs.run import Run, reason_of
from engine.sweeps.launch import Task, check_launcher, launch_jobs
from engine.system.lock import RunBusy, holder
from engine.system.signals import leaving
from engine.training.plan import Plan, check_plan, make_plan

# A run whose worker died without a word may have been the victim of another's death.
LAUNCHES = 2
POLL_SECONDS = 2.0


def run_sweep(command: CommandLine, task: Task) -> int:
    """Check and claim every run, train what is missing, write the tables; return the exit status.

    Raises UserError, before anything is made, where any of the runs cannot be.
    """
    jobs = distinct(command.jobs or [])
    planned = any(job.config.plan for job in jobs)
    plans = make_plans(jobs, plan_data if planned else load_data)
    if planned:
        for job, plan in zip(jobs, plans, strict=True):
            print(f"{Run(job.config).name}\n{plan.describe()}\n")
        return 0
    for group in {job.config.group for job in jobs}:
        check_inside(group)
        if (RESULTS / group).exists() and not (RESULTS / group).is_dir():
            raise key_error("group", group, f"{RESULTS / group} must be a directory for its tables")
    check_launcher(command.hydra_overrides)
    claimed = claim_missing(jobs)
    try:
        train_missing(claimed, command.hydra_overrides, task)
    finally:
        # Also after Ctrl-C: what is done by then is worth its table.
        reported = report(jobs)
    failures = [text for job in jobs if (text := failure(Run(job.config)))]
    for text in failures:
        print(text, file=sys.stderr)
    return 1 if failures or not reported else 0


def make_plans(
    jobs: Sequence[Job], read: Callable[[DataConfig], Dataset] = load_data
) -> list[Plan]:
    """Work out each job's plan; raise UserError, if it can before it reads any picture."""
    for job in jobs:
        check_plan(job.config)
    return [make_plan(job.config, len(read(job.config.data).train)) for job in jobs]


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """Drop jobs that are there twice; raise UserError where two would share a directory."""
    found: dict[Path, Job] = {}
    for job in jobs:
        directory = Run(job.config).directory
        other = found.setdefault(directory, job)
        if other.config != job.config:
            rivals = set(other.overrides) ^ set(job.overrides)
            raise UserError(f"{', '.join(sorted(rivals))}: both are the run {directory.name}")
    return list(found.values())


def claim_missing(jobs: Sequence[Job]) -> dict[Run, Job]:
    """Claim the runs that are not finished; raise UserError where one's place cannot be written."""
    waiting = {}
    for job in jobs:
        run = Run(job.config)
        if job.config.resume and run.finished():
            print(f"finished  {run.name}: {run.outcome()}")
        else:
            waiting[run] = job
    print(f"sweep     {len(jobs)} runs, {len(jobs) - len(waiting)} finished already", flush=True)
    for run, job in waiting.items():
        run.claim(job.arguments)
    return waiting


@leaving()
def train_missing(waiting: Mapping[Run, Job], hydra_overrides: Sequence[str], task: Task) -> None:
    """Launch the jobs of claimed runs; return when each has an outcome, or none is left to try.

    A run that another process trains is waited for, and taken over if that process dies.
    """
    before = {run: run.settled_at() for run in waiting}
    launches: Counter[Run] = Counter()
    told = False
    while waiting:
        held = [run for run in waiting if holder(run.directory)]
        free = [run for run in waiting if run not in held and launches[run] < LAUNCHES]
        # All at once first; whatever that left undone alone, so that no run is another's victim.
        free = free if not launches else free[:1]
        if free:
            launches.update(free)
            try:
                launch_jobs(task, [waiting[run] for run in free], hydra_overrides)
            except Exception as error:
                # A launcher that lost a worker raises for all jobs; their files tell them apart.
                print(f"launcher: {type(error).__name__}: {error}", file=sys.stderr)
        elif held:
            if not told:
                print(f"waiting   for {len(held)} runs that other processes train", flush=True)
            told = True
            time.sleep(POLL_SECONDS)
        else:
            return
        # Another time, not a later one: the clock may have been put back. 0: under way again.
        waiting = {r: job for r, job in waiting.items() if r.settled_at() in (0, before[r])}


def report(jobs: Iterable[Job]) -> bool:
    """Write and show the tables of each job's group; tell whether that went well."""
    well = True
    # Runs that were finished before may have been given another target, or none.
    for group, target in {job.config.group: job.config.target_accuracy for job in jobs}.items():
        try:
            print(write_report(group, target))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            well = False
    return well


def failure(run: Run) -> str | None:
    """Word what stopped a run and where its own log is; None where it is finished."""
    summary = run.summary() or {"status": MISSING, "error": None}
    if summary["status"] in FINISHED:
        # One that was to be trained again and was refused keeps its outcome, and says why here.
        if run.config.resume or not run.log.exists():
            return None
        summary = {"status": FAILED, "error": None}
    place, reason = run.directory, summary["error"]
    if run.log.exists():
        place = run.log
        reason = reason or run.log.read_text(encoding="utf-8").strip().rpartition("\n")[2]
    return f"{summary['status']}: {place}: {reason or 'it left no summary'}"


@contextlib.contextmanager
def report_failure(config: Config, arguments: list[str]) -> Iterator[None]:
    """Write what stops a run of a sweep to the run's own log, and let the sweep go on.

    A run that was refused before it started has no summary yet; it then gets one.
    """
    try:
        yield
    except BrokenPipeError:
        # The reader of our output left, and with it the command ends: no fault of the run's.
        raise
    except RunBusy as error:
        print(f"waiting   {error}", file=sys.stderr)
    except Exception as error:
        run = Run(config)
        # A full disk may have stopped the run; then the line here is all there is.
        with contextlib.suppress(OSError):
            run.log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
            if run.summary() is None:
                run.arguments = arguments
                run.finish(FAILED, reason_of(error))
        print(f"failed    {run.name}: {error}; see {run.log}", file=sys.stderr, flush=True)
