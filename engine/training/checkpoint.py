"""Save and load a run's state; no checkpoint is ever saved or loaded in part.

Sample order and augmentation are functions of seed and epoch (data/augment.py), so a resume needs
only the epoch and the number of steps done in it. torch's random states are saved for models that
draw random numbers while they train. Each file ends in a SHA-256 checksum. The previous checkpoint
is kept until the run finishes.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from engine.config.schema import Config
from engine.data.augment import Normalization
from engine.data.folder import differences
from engine.errors import UserError, key_error
from engine.system.files import (
    check_written,
    checksum_agrees,
    previous_of,
    write_atomically,
    write_summed,
)
from engine.training.loop import Progress
from engine.training.metrics import PartialEpoch
from engine.training.setup import Setup
from engine.training.state import State, copied, is_finite

FORMAT = "large-batch-cifar checkpoint"
# Version 1 is version 2 without checksum and partial epoch.
VERSION = 2
# Keys of the states that must be finite; otherwise the run has diverged.
STATES = ("model", "optimizer", "ema")
CPU = torch.device("cpu")
START_OVER = "resume=false starts from scratch"
# Errors that loading a damaged state, or one from other code, can raise.
MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class DamagedCheckpoint(UserError):
    """The file is missing, truncated, altered or not a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file.
        config: configuration of the run that saved it.
        classes: names of the data set's classes.
        normalization: mean and standard deviation of the training split.
        epoch: number of finished epochs.
        history: one row per finished epoch, as in metrics.jsonl.
        diverged: True if the run has diverged.
        ended: True if the run has reached its target or its last step.
        model: state_dict of the model.
        optimizer: state_dict of the optimizer.
        scheduler: state_dict of the learning-rate schedule.
        random_states: torch's random states, of the CPU and of each CUDA device.
        ema: state_dict of the weight average; None if the run keeps none.
        noise_scale: state_dict of `NoiseScale`; None if the run does not estimate it.
        partial: the steps done of the next epoch; None between epochs.

    """

    path: Path
    config: Config
    classes: tuple[str, ...]
    normalization: Normalization
    epoch: int
    history: list[dict[str, Any]]
    diverged: bool
    ended: bool
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    random_states: dict[str, Any]
    ema: dict[str, Any] | None
    noise_scale: dict[str, Any] | None
    partial: PartialEpoch | None

    def describe(self) -> str:
        """Return the position of the run as text."""
        text = f"after epoch {self.epoch} of {self.config.epochs}"
        if self.ended and self.epoch < self.config.epochs:
            step = self.history[-1]["step"]
            return f"after step {step}, in epoch {self.epoch} of {self.config.epochs}"
        if self.partial is None:
            return text
        done, steps = len(self.partial.rates), len(self.partial.losses)
        return f"{text} and step {done} of {steps} of the next"

    def resume(self, setup: Setup, state: State) -> Progress:
        """Load the saved state into a new state and return the run's progress.

        Raises UserError if classes or normalization differ from those of the saved run, or if the
        state does not fit.
        """
        if setup.data.classes != self.classes:
            differ = differences("data.root", setup.data.classes, "the checkpoint", self.classes)
            allowed = f"was saved with other classes; {differ}; {START_OVER}"
            raise key_error("checkpoint", self.path, allowed)
        if setup.normalization != self.normalization:
            allowed = f"was saved with other training images of the same classes; {START_OVER}"
            raise key_error("checkpoint", self.path, allowed)
        self.restore(state)
        return Progress(self.config.epochs, self.history, self.partial, self.diverged, self.ended)

    def restore(self, state: State) -> None:
        """Load the saved state into a new state; raise UserError if it does not fit."""
        self.restore_model(state.model)
        try:
            state.optimizer.load_state_dict(self.optimizer)
            state.scheduler.load_state_dict(self.scheduler)
            # A run with a weight average saves it in every checkpoint. A file without one raises.
            if state.ema is not None:
                state.ema.load_state_dict(self.ema or {})
            if state.noise is not None:
                state.noise.load_state_dict(self.noise_scale or {})
            torch.set_rng_state(self.random_states["cpu"])
            if torch.cuda.is_available() and self.random_states["cuda"]:
                # The run may have started on a machine with more GPUs.
                states = self.random_states["cuda"][: torch.cuda.device_count()]
                torch.cuda.set_rng_state_all(states)
        except MISFITS as error:
            allowed = f"does not fit the run ({type(error).__name__}); {START_OVER}"
            raise key_error("checkpoint", self.path, allowed) from error

    def restore_evaluated(self, model: nn.Module) -> None:
        """Load the weights that the run's accuracy is measured with: the average if it keeps one.

        Raises UserError if they do not fit.
        """
        if self.config.ema.decay is None:
            return self.restore_model(model)
        prefix = "module."
        state = {
            k.removeprefix(prefix): v for k, v in (self.ema or {}).items() if k.startswith(prefix)
        }
        return self.restore_model(model, state)

    def restore_model(self, model: nn.Module, state: dict[str, Any] | None = None) -> None:
        """Load weights and buffers into a model; raise UserError if they do not fit.

        Args:
            model: the model to load into.
            state: what to load; None is the saved model.

        """
        try:
            model.load_state_dict(self.model if state is None else state)
        except MISFITS as error:
            name = self.config.model.name
            allowed = f"its weights do not fit model={name}; use another checkpoint"
            raise key_error("checkpoint", self.path, allowed) from error


@contextlib.contextmanager
def background_writes() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Yield a function that runs the function it is given in a background thread.

    On a GPU a write can take as long as an epoch, so training does not wait for it. Writes run one
    at a time, and the context exits when the last one has finished. An error in a write is raised
    by the next call or on exit, even while another exception leaves the context.
    """
    under_way: list[Future[None]] = []

    def start(write: Callable[[], None]) -> None:
        while under_way:
            under_way.pop().result()
        under_way.append(executor.submit(write))

    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as executor:
        try:
            yield start
        finally:
            while under_way:
                under_way.pop().result()


def save_checkpoint(
    path: Path,
    setup: Setup,
    state: State,
    progress: Progress,
    write: Callable[[Callable[[], None]], None] = lambda function: function(),
) -> None:
    """Save everything that a resume needs; keep the existing file at `previous_of(path)`.

    Raises OSError if the file cannot be written. In the background that is the error of an earlier
    call.

    Args:
        path: the checkpoint file.
        setup: parts of the run that training does not change.
        state: parts of the run that training changes; copied before this returns.
        progress: finished epochs and partial epoch; copied before this returns.
        write: calls the function that writes the file, such as that of `background_writes`.

    """
    partial = progress.part
    content = state.copy() | {
        "format": FORMAT,
        "version": VERSION,
        "config": setup.config.to_dict(),
        "classes": list(setup.data.classes),
        "mean": list(setup.normalization.mean),
        "std": list(setup.normalization.std),
        "epoch": len(progress.history),
        "history": list(progress.history),
        "diverged": progress.diverged,
        "ended": progress.ended,
        "partial": None if partial is None else copied(partial.state_dict()),
    }
    write(lambda: write_checkpoint(path, content))


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint and read it back; only then move the existing one to `previous_of`."""

    def keep_previous(written: Path) -> None:
        check_written(written)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, previous_of(path))

    write_atomically(
        path,
        lambda file: write_summed(file, lambda out: torch.save(content, cast(IO[bytes], out))),
        keep_previous,
    )


def load_latest(path: Path, start_over: bool = False) -> Checkpoint | None:
    """Return a run's checkpoint, or the previous one if it is damaged; None if neither exists.

    The previous file replaces a damaged one, so that the next save does not keep the damaged one.
    Raises UserError if neither file can be used, or if a newer version wrote the file.

    Args:
        path: the checkpoint file.
        start_over: return None, instead of raising, if both files are damaged.

    """
    previous = previous_of(path)
    if not path.exists() and not previous.exists():
        return None
    try:
        return load_checkpoint(path)
    except DamagedCheckpoint as error:
        damage = error
    try:
        saved = load_checkpoint(previous)
    except DamagedCheckpoint as error:
        if start_over and not path.is_dir():
            return None
        before = f", and {previous.name} cannot be used either" if previous.exists() else ""
        advice = "remove it" if path.is_dir() else START_OVER
        raise UserError(f"{damage}{before}; {advice}") from error
    print(f"{damage}; {previous.name} is used instead", file=sys.stderr)
    os.replace(previous, path)
    return saved


def load_checkpoint(path: Path, device: torch.device = CPU) -> Checkpoint:
    """Read a checkpoint.

    Only tensors and plain values are unpickled (`weights_only`), so a file cannot run code. A file
    with a wrong checksum is not unpickled at all. Raises DamagedCheckpoint if the file is missing,
    damaged or not a checkpoint, and UserError if a newer version wrote it.

    Args:
        path: the checkpoint file.
        device: device of the tensors; `restore` copies them to the run's device.

    """
    if not path.is_file():
        raise _damaged(path, "is a directory" if path.is_dir() else "there is no such file")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            summed = checksum_agrees(file)
            # torch warns about pickles at length; a foreign file gets its one-line error below.
            warnings.simplefilter("ignore")
            content = None
            if summed is not False:
                content = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        # A damaged archive can raise almost any exception.
        raise _damaged(
            path, f"is truncated, damaged or not a checkpoint ({type(error).__name__})"
        ) from error
    if summed is False:
        raise _damaged(path, "is damaged (its checksum does not match)")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(path, "is not a checkpoint of this project")
    version = content.get("version")
    if version not in (1, VERSION):
        allowed = f"has format {version}; this version reads formats 1 to {VERSION}"
        raise key_error("checkpoint", path, allowed)
    if summed is None and version == VERSION:
        raise _damaged(path, "is damaged (its checksum is missing)")
    try:
        saved = _read_content(path, content)
        whole = saved.epoch == len(saved.history) <= saved.config.epochs
        whole = whole and (saved.partial is None or saved.epoch < saved.config.epochs)
    except (*MISFITS, UserError) as error:
        raise _damaged(path, f"is damaged ({error})") from error
    if not whole:
        raise _damaged(path, f"is damaged (epoch {saved.epoch})")
    if summed is None:
        print(f"checkpoint={path}: has the old format 1, without a checksum", file=sys.stderr)
    return saved


def _damaged(path: Path, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(str(key_error("checkpoint", path, what)))


def _read_content(path: Path, content: dict[str, Any]) -> Checkpoint:
    # torch accepts random states on the CPU only, whatever device the file was loaded to.
    states = content["random_states"]
    return Checkpoint(
        path=path,
        config=Config.from_hydra(content["config"]),
        classes=tuple(content["classes"]),
        normalization=Normalization(tuple(content["mean"]), tuple(content["std"])),
        epoch=content["epoch"],
        history=content["history"],
        # An older version, or a run stopped within an epoch, may not have noticed the divergence.
        diverged=content["diverged"] or not is_finite(*(content.get(key) for key in STATES)),
        ended=content.get("ended", False),
        model=content["model"],
        optimizer=content["optimizer"],
        scheduler=content["scheduler"],
        ema=content.get("ema"),
        noise_scale=content.get("noise_scale"),
        partial=PartialEpoch(**content["partial"]) if content.get("partial") else None,
        random_states={
            "cpu": states["cpu"].cpu(),
            "cuda": [state.cpu() for state in states["cuda"]],
        },
    )
