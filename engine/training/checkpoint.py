"""A run's state on the disk: saved whole or not at all, loaded whole or not at all.

Order and augmentation are drawn from seed and epoch (data/augment.py), so the epoch and the steps
done in it are all that a resume needs of them; torch's random states are kept for models that draw
while they train. The file ends in a checksum; the one before it is kept until the run is finished.
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
from engine.training.loop import PartialEpoch, Progress
from engine.training.setup import Setup
from engine.training.state import State, copied, is_finite

FORMAT = "large-batch-cifar checkpoint"
# Version 1 has neither checksum nor partial epoch; all else is the same.
VERSION = 2
# What must be finite, or the run has diverged.
STATES = ("model", "optimizer", "ema")
CPU = torch.device("cpu")
START_OVER = "resume=false starts afresh"
# What a state that was made by other code, or damaged, may raise where it is put to use.
MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class DamagedCheckpoint(UserError):
    """The file is missing, cut short, altered, or no checkpoint at all."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds; `epoch` counts the finished epochs, `partial` is the next."""

    path: Path
    config: Config
    classes: tuple[str, ...]
    normalization: Normalization
    epoch: int
    history: list[dict[str, Any]]
    diverged: bool
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    random_states: dict[str, Any]
    ema: dict[str, Any] | None
    noise_scale: dict[str, Any] | None
    partial: PartialEpoch | None

    def describe(self) -> str:
        """Say how far the run had come."""
        text = f"after epoch {self.epoch} of {self.config.epochs}"
        if self.partial is None:
            return text
        done, steps = len(self.partial.rates), len(self.partial.losses)
        return f"{text} and step {done} of {steps} of the next"

    def resume(self, setup: Setup, state: State) -> Progress:
        """Put what is saved into a new state, and return how far the run had come.

        Raises UserError where the training images are not those that the run began with, or where
        the state does not fit.
        """
        if setup.data.classes != self.classes:
            differ = differences("data.root", setup.data.classes, "the checkpoint", self.classes)
            allowed = f"began with other classes; {differ}; {START_OVER}"
            raise key_error("checkpoint", self.path, allowed)
        if setup.normalization != self.normalization:
            allowed = f"began with other images of the same classes; {START_OVER}"
            raise key_error("checkpoint", self.path, allowed)
        self.restore(state)
        return Progress(self.config.epochs, self.history, self.partial, self.diverged)

    def restore(self, state: State) -> None:
        """Put what is saved into a new state; raise UserError where it does not fit."""
        self.restore_model(state.model)
        try:
            state.optimizer.load_state_dict(self.optimizer)
            state.scheduler.load_state_dict(self.scheduler)
            # A run with an average has it in every checkpoint: without it, the file is no fit.
            if state.ema is not None:
                state.ema.load_state_dict(self.ema or {})
            if state.noise is not None:
                state.noise.load_state_dict(self.noise_scale or {})
            torch.set_rng_state(self.random_states["cpu"])
            if torch.cuda.is_available() and self.random_states["cuda"]:
                # The run may have begun where there were more GPUs.
                states = self.random_states["cuda"][: torch.cuda.device_count()]
                torch.cuda.set_rng_state_all(states)
        except MISFITS as error:
            allowed = f"does not fit the run ({type(error).__name__}); {START_OVER}"
            raise key_error("checkpoint", self.path, allowed) from error

    def restore_evaluated(self, model: nn.Module) -> None:
        """Put in what the run's accuracy is of: the weights' average where it kept one."""
        if self.config.ema.decay is None:
            return self.restore_model(model)
        prefix = "module."
        state = {
            k.removeprefix(prefix): v for k, v in (self.ema or {}).items() if k.startswith(prefix)
        }
        return self.restore_model(model, state)

    def restore_model(self, model: nn.Module, state: dict[str, Any] | None = None) -> None:
        """Put the weights and buffers into a model; raise UserError where they do not fit."""
        try:
            model.load_state_dict(self.model if state is None else state)
        except MISFITS as error:
            name = self.config.model.name
            raise key_error("checkpoint", self.path, f"holds another model than {name}") from error


@contextlib.contextmanager
def background_writes() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Yield what calls a function next to training: on a GPU a write takes as long as an epoch.

    One function runs at a time, and the block is left once the last is done. What stopped one is
    raised by the next call or on leaving, whatever else was under way.
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
    """Write everything a resume needs; the file before is kept as `previous_of` it.

    write: of `background_writes`, to write it next to training; what it holds is copied before this
    returns. Raises OSError, then that of an earlier call.
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
        "partial": None if partial is None else copied(partial.state_dict()),
    }
    write(lambda: write_checkpoint(path, content))


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; the one before stays where it is until this was read back."""

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
    """Read a run's checkpoint, or the one before where it is damaged; None where there is neither.

    What is damaged is replaced, so that it cannot become the one before. Raises UserError where no
    file is whole, unless the command would as soon `start_over`.
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
        before = f", and so is {previous.name}" if previous.exists() else ""
        advice = "remove it" if path.is_dir() else START_OVER
        raise UserError(f"{damage}{before}; {advice}") from error
    print(f"{damage}; {previous.name} is used instead", file=sys.stderr)
    os.replace(previous, path)
    return saved


def load_checkpoint(path: Path, device: torch.device = CPU) -> Checkpoint:
    """Read a checkpoint; raise UserError where there is none, or something else, or a part of one.

    device: where its tensors come to lie; `restore` copies them to where a run computes.

    Only tensors and plain values are read (`weights_only`), so that no file can run code, and none
    whose checksum disagrees.
    """
    if not path.is_file():
        raise _damaged(path, "is a directory" if path.is_dir() else "there is no such file")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            summed = checksum_agrees(file)
            # A foreign file gets its one line below; torch has more to say about pickles.
            warnings.simplefilter("ignore")
            content = None
            if summed is not False:
                content = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:
        # A damaged archive fails in as many ways as it can be damaged.
        raise _damaged(
            path, f"cut short, damaged or no checkpoint ({type(error).__name__})"
        ) from error
    if summed is False:
        raise _damaged(path, "is damaged (its checksum disagrees)")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(path, "is not a checkpoint of this project")
    version = content.get("version")
    if version not in (1, VERSION):
        raise key_error("checkpoint", path, f"has format {version}; this version reads {VERSION}")
    if summed is None and version == VERSION:
        raise _damaged(path, "is damaged (its checksum is gone)")
    try:
        saved = _read_content(path, content)
        whole = saved.epoch == len(saved.history) <= saved.config.epochs
        whole = whole and (saved.partial is None or saved.epoch < saved.config.epochs)
    except (*MISFITS, UserError) as error:
        raise _damaged(path, f"is damaged ({error})") from error
    if not whole:
        raise _damaged(path, f"is damaged (epoch {saved.epoch})")
    if summed is None:
        print(f"checkpoint={path}: of an older version, without a checksum", file=sys.stderr)
    return saved


def _damaged(path: Path, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(str(key_error("checkpoint", path, what)))


def _read_content(path: Path, content: dict[str, Any]) -> Checkpoint:
    # Random states are the CPU's wherever the rest goes.
    states = content["random_states"]
    return Checkpoint(
        path=path,
        config=Config.from_hydra(content["config"]),
        classes=tuple(content["classes"]),
        normalization=Normalization(tuple(content["mean"]), tuple(content["std"])),
        epoch=content["epoch"],
        history=content["history"],
        # Of an older version, or stopped in the midst of an epoch, it may not know yet.
        diverged=content["diverged"] or not is_finite(*(content.get(key) for key in STATES)),
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
