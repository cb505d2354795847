"""Passes a sweep's jobs to Hydra's launcher: serially in this process, or joblib, submitit, Ray.

The caller chooses the jobs, not Hydra's sweeper, so that only missing runs are launched. A job's
outcome is read from its run's summary, never from the launcher. Several processes without a
launcher are started by children.py.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from engine.config.compose import CONF, Job
from engine.config.hydra_rules import one_line
from engine.errors import UserError
from engine.system.resources import RUNS_AT_ONCE, available_cpus

Task = Callable[[DictConfig], None]


def launch_jobs(
    task: Task,
    jobs: Sequence[Job],
    hydra_overrides: Sequence[str],
    ended: Callable[[], None] = lambda: None,
) -> None:
    """Run the jobs with a launcher.

    Args:
        task: trains one run from its composed configuration.
        jobs: the runs.
        hydra_overrides: overrides of Hydra's own keys, which choose the launcher.
        ended: called after each job that runs in this process.

    """
    os.environ["PYTHONPATH"] = python_path()
    with made_launcher(task, hydra_overrides) as (launcher, config):
        # The workers on this machine inherit the variable.
        with environment(RUNS_AT_ONCE, launched_at_once(config.hydra.launcher, len(jobs))):
            lists = [job.overrides for job in jobs]
            if _name(config.hydra.launcher) != "BasicLauncher":
                launcher.launch(lists, initial_job_idx=0)
                return
            for index, overrides in enumerate(lists):
                launcher.launch([overrides], initial_job_idx=index)
                ended()


def python_path() -> str:
    """Return PYTHONPATH with the project's folder, for processes that start in another one."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(filter(None, [str(CONF.parent), *paths])))


@contextlib.contextmanager
def environment(name: str, value: int | None) -> Iterator[None]:
    """Set an environment variable inside the block, or remove it if the value is None."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = str(value)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def launcher_threads(hydra_overrides: Sequence[str], jobs: int) -> int | None:
    """Return the CPU threads of each job under the launcher that these overrides choose.

    Returns None if a scheduler assigns the CPUs.
    """
    with made_launcher(lambda composed: None, hydra_overrides) as (_, config):
        return threads_each(config.hydra.launcher, max(1, jobs))


def check_launcher(hydra_overrides: Sequence[str]) -> None:
    """Raise UserError if the launcher cannot be made with these overrides."""
    try:
        with made_launcher(lambda composed: None, hydra_overrides):
            pass
    except (HydraException, ImportError, RuntimeError) as error:
        allowed = f"the launcher cannot be made: {one_line(error)}"
        raise UserError(
            f"{' '.join(hydra_overrides)}: {allowed}; fix or remove its keys"
        ) from error


@contextlib.contextmanager
def made_launcher(
    task: Task, hydra_overrides: Sequence[str]
) -> Iterator[tuple[Launcher, DictConfig]]:
    """Yield the launcher and the configuration that it was made from."""
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(
            "train", list(hydra_overrides), RunMode.MULTIRUN, with_log_configuration=False
        )
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        yield Plugins.instance().instantiate_launcher(context, task, config), config


def threads_each(launcher: Any, jobs: int) -> int | None:
    """Return the CPU threads of each job; None if a scheduler assigns its CPUs."""
    if _name(launcher) == "RayLauncher":
        return _ray_cpus(launcher)
    at_once = launched_at_once(launcher, jobs)
    return None if at_once is None else max(1, available_cpus() // at_once)


def launched_at_once(launcher: Any, jobs: int) -> int | None:
    """Return how many jobs a launcher runs on this machine at once; None if a scheduler decides."""
    name, cpus = _name(launcher), available_cpus()
    if name == "BasicLauncher":
        return 1
    if name == "LocalLauncher":
        return jobs
    if name == "JoblibLauncher":
        # joblib reads -1 as all CPUs, -2 as all but one.
        workers = launcher["n_jobs"] or 1
        workers = workers if workers > 0 else max(1, cpus + 1 + workers)
    elif name == "RayLauncher":
        workers = (launcher["ray"]["init"].get("num_cpus") or cpus) // _ray_cpus(launcher)
    else:
        return None
    return max(1, min(workers, jobs))


def _name(launcher: Any) -> str:
    return str(launcher["_target_"]).rpartition(".")[2]


def _ray_cpus(launcher: Any) -> int:
    """Return the CPUs that Ray gives each job."""
    return max(1, int(launcher["ray"]["remote"].get("num_cpus", 1)))
