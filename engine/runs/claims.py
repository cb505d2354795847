"""The CPU threads of each run, in its `.hydra/claim.json`, decided once and kept by every resume.

Other threads sum in another order, which changes the last bits of a run. So a sweep decides the
threads when it claims a run, the process that begins the run writes what it uses, and whatever
resumes the run reads it: another sweep, one with fewer pending runs, or train.py alone.
"""

import dataclasses
import json
from pathlib import Path

from engine.config.schema import Config
from engine.runs import records
from engine.system.distributed import world_size
from engine.system.files import previous_of, write_text_atomically
from engine.system.lock import holder
from engine.system.resources import in_sweep


def claimed_threads(directory: Path) -> int | None:
    """Return the threads that a run's claim holds; None if there is no claim, or a damaged one."""
    try:
        claim = json.loads(_path(directory).read_text(encoding="utf-8"))
        threads = claim["threads"]
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return threads if type(threads) is int and 1 <= threads <= 1024 else None


def write_threads(directory: Path, threads: int) -> None:
    """Write a run's claim. Its directory and `.hydra` in it must exist."""
    write_text_atomically(_path(directory), json.dumps({"threads": threads}) + "\n")


def plan_threads(config: Config, directory: Path, threads: int | None, replaces: bool) -> None:
    """Write the threads that a sweep decided for a run that gives none, unless it has begun.

    Args:
        config: the run's configuration.
        directory: the run's directory.
        threads: the decided threads; None if the run's own machine decides.
        replaces: True to replace an earlier decision for a run that has not begun.

    """
    if config.threads is not None or holder(directory) or _has_begun(config, directory):
        return
    if config.resume and not replaces and claimed_threads(directory) is not None:
        return
    if threads is None:
        _path(directory).unlink(missing_ok=True)
    else:
        write_threads(directory, threads)


def with_claimed_threads(config: Config, directory: Path) -> Config:
    """Return the configuration with the threads of the run's claim, if the command gives none.

    Outside of a sweep a run that starts from scratch (resume=false) ignores the claim. So do
    several ranks, whose threads depend on how many of them share a machine.
    """
    if config.threads is not None or world_size() > 1:
        return config
    if not (config.resume or records.restarted(directory) or in_sweep()):
        return config
    return dataclasses.replace(config, threads=claimed_threads(directory))


def _has_begun(config: Config, directory: Path) -> bool:
    """Return True if the run has a checkpoint that it would resume from."""
    checkpoint = directory / records.CHECKPOINT
    saved = checkpoint.exists() or previous_of(checkpoint).exists()
    return saved and (config.resume or records.restarted(directory))


def _path(directory: Path) -> Path:
    # Run.start removes files such as `.name.suffix` from the run's directory itself.
    return directory / ".hydra" / "claim.json"
