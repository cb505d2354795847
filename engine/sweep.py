"""Several runs from one command: claimed first, launched by Hydra, reported whatever happened.

Hydra's launcher decides where the runs go; their outcomes are read from their summaries, so a job
that died, in this process or elsewhere, costs neither the other runs nor the table.
"""

import contextlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence

from engine.cli import Job
from engine.data import load_data
from engine.parse import UserError
from engine.plan import make_plan
from engine.record import FINISHED, Run
from engine.report import write_report


def run_sweep(jobs: Sequence[Job], launch: Callable[[], object]) -> int:
    """Check and claim every run, launch them, write each group's tables; return the exit status.

    Raises UserError, before anything is made, where any of the runs cannot be.
    """
    plans = [make_plan(job.config, len(load_data(job.config.data).train)) for job in jobs]
    if any(job.config.plan for job in jobs):
        for job, plan in zip(jobs, plans, strict=True):
            print(f"{Run(job.config).name}\n{plan.describe()}\n")
        return 0
    runs = [Run(job.config) for job in jobs]
    done = sum(job.config.resume and run.finished() for job, run in zip(jobs, runs, strict=True))
    for job, run in zip(jobs, runs, strict=True):
        run.claim(job.overrides)
    print(f"sweep     {len(runs)} runs, {done} finished already")
    # Hydra writes multirun.yaml; the runs' own configurations are in their directories.
    with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
        if not any(argument.startswith("hydra.sweep.dir=") for argument in sys.argv):
            sys.argv.append(f"hydra.sweep.dir={scratch}")
        try:
            launch()
        except Exception:
            # A launcher that lost a worker raises for all jobs; the summaries tell them apart.
            traceback.print_exc()
        finally:
            for group in dict.fromkeys(job.config.group for job in jobs):
                print(write_report(group))
    failures = 0
    for run in runs:
        summary = run.summary() or {"status": "missing", "error": "it left no summary"}
        if summary["status"] not in FINISHED:
            failures += 1
            print(f"{summary['status']}: {run.directory}: {summary['error']}", file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def report_failure() -> Iterator[None]:
    """Print what stopped a run of a sweep, and let the sweep go on to the next."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
