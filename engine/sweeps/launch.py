"""A sweep's jobs to Hydra's launcher: one by one in this process, or joblib, submitit, Ray.

Which jobs there are is decided by the caller and not by Hydra's sweeper, so that only what is
missing is launched. What became of a job is read from its run's summary, never from the launcher.
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
    """Hand the jobs to the launcher that the overrides of Hydra's own keys choose."""
    # Workers of a launcher start elsewhere and must find the project's modules.
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
    """Raise UserError where the launcher does not take its keys."""
    try:
        with made_launcher(lambda composed: None, hydra_overrides):
            pass
    except (HydraException, ImportError, RuntimeError) as error:
        raise UserError(f"{' '.join(hydra_overrides)}: {error}") from error


@contextlib.contextmanager
def made_launcher(
    task: Task, hydra_overrides: Sequence[str]
) -> Iterator[tuple[Launcher, DictConfig]]:
    """Make the launcher, beside the configuration it was made from."""
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(
            "train", list(hydra_overrides), RunMode.MULTIRUN, with_log_configuration=False
        )
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        yield Plugins.instance().instantiate_launcher(context, task, config), config


def threads_each(launcher: Any, jobs: int) -> int | None:
    """Divide this machine's CPUs among the jobs that a launcher runs on it at once.

    None where a job has the machine, or what a scheduler gave it, to itself.
    """
    kind, cpus = launcher["_target_"].rpartition(".")[2], available_cpus()
    if kind == "RayLauncher":
        return max(1, int(launcher["ray"]["remote"].get("num_cpus", 1)))
    if kind == "LocalLauncher":
        at_once = jobs
    elif kind == "JoblibLauncher":
        # joblib counts from the other end below zero: -1 is every CPU, -2 all but one.
        at_once = launcher["n_jobs"] or 1
        at_once = at_once if at_once > 0 else max(1, cpus + 1 + at_once)
    else:
        return None
    return max(1, cpus // min(at_once, jobs))
