"""Passes a sweep's jobs to Hydra's launcher: serially in this process, or joblib, submitit, Ray.

The caller chooses the jobs, not Hydra's sweeper, so that only missing runs are launched. A job's
outcome is read from its run's summary, never from the launcher.
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
from engine.errors import UserError
from engine.system.resources import available_cpus

Task = Callable[[DictConfig], None]


def launch_jobs(task: Task, jobs: Sequence[Job], hydra_overrides: Sequence[str]) -> None:
    """Run the jobs with a launcher.

    Args:
        task: trains one run from its composed configuration.
        jobs: the runs.
        hydra_overrides: overrides of Hydra's own keys, which choose the launcher.

    """
    # A launcher's workers may start in another directory and must find the project's modules.
    paths = [str(CONF.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    if paths[0] not in os.pathsep.join(paths[1:]).split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    with made_launcher(task, hydra_overrides) as (launcher, config):
        threads = threads_each(config.hydra.launcher, len(jobs))
        overrides = []
        for job in jobs:
            divided = threads is not None and job.config.threads is None
            overrides.append(job.overrides + ([f"threads={threads}"] if divided else []))
        launcher.launch(overrides, initial_job_idx=0)


def check_launcher(hydra_overrides: Sequence[str]) -> None:
    """Raise UserError if the launcher cannot be made with these overrides."""
    try:
        with made_launcher(lambda composed: None, hydra_overrides):
            pass
    except (HydraException, ImportError, RuntimeError) as error:
        raise UserError(f"{' '.join(hydra_overrides)}: {error}") from error


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
    """Return the CPU threads of each job if a launcher runs several jobs on this machine at once.

    Returns None if a job does not share the machine, or a scheduler assigns its CPUs.
    """
    name, cpus = launcher["_target_"].rpartition(".")[2], available_cpus()
    if name == "RayLauncher":
        return max(1, int(launcher["ray"]["remote"].get("num_cpus", 1)))
    if name == "LocalLauncher":
        at_once = jobs
    elif name == "JoblibLauncher":
        # joblib reads -1 as all CPUs, -2 as all but one.
        at_once = launcher["n_jobs"] or 1
        at_once = at_once if at_once > 0 else max(1, cpus + 1 + at_once)
    else:
        return None
    return max(1, cpus // min(at_once, jobs))
