"""Name to learning-rate schedule, and the numbers that each schedule's class takes.

Plain values in and out: which steps and rates a run has is plan.py's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import schedulers
from engine.config import schedules as c
from engine.errors import UserError, key_error

Options = dict[str, float]


class Length(NamedTuple):
    """How long a run is, and its highest learning rate."""

    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    peak_lr: float


class Schedule(NamedTuple):
    """One kind of schedule.

    make: its class, called with the run's steps, its first rate and the options.
    options: what else the class takes, from the keys and the run's length.
    """

    make: Callable[..., schedulers.WarmupLR]
    options: Callable[[Any, Length], Options]


def constant_options(config: c.ConstantConfig, length: Length) -> Options:
    """Return no options."""
    return {}


def decay_options(config: c.DecayConfig, length: Length) -> Options:
    """Return the last rate; raise UserError if it lies above the peak."""
    min_lr = config.min_lr
    if config.final_fraction is not None:
        min_lr = config.final_fraction * length.peak_lr
    if min_lr > length.peak_lr:
        allowed = f"must be at most the peak rate {length.peak_lr:.6g}"
        raise key_error("scheduler.min_lr", min_lr, allowed)
    return {"min_lr": min_lr}


def polynomial_options(config: c.PolynomialConfig, length: Length) -> Options:
    """Return the last rate and the exponent."""
    return {**decay_options(config, length), "power": config.power}


def multistep_options(config: c.MultistepConfig, length: Length) -> Options:
    """Return the steps between two drops and their factor; raise UserError for a long warm-up."""
    epochs = config.step_size
    if epochs is None:
        epochs = config.step_fraction * length.epochs
    steps = epochs * length.steps_per_epoch
    if length.warmup_steps >= steps:
        allowed = f"below the {steps:g} steps after which the rate falls"
        raise warmup_error(config, length.warmup_steps, allowed)
    return {"step_size": steps, "gamma": config.gamma}


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(schedulers.WarmupConstantLR, constant_options),
    "cosine": Schedule(schedulers.WarmupCosineLR, decay_options),
    "polynomial": Schedule(schedulers.WarmupPolynomialLR, polynomial_options),
    "multistep": Schedule(schedulers.WarmupMultiStepLR, multistep_options),
    "onecycle": Schedule(schedulers.WarmupOneCycleLR, decay_options),
}


def count_warmup_steps(config: c.WarmupConfig, epochs: int, steps_per_epoch: int) -> int:
    """Return the optimizer steps of warm-up: as given, from epochs, or from the fraction."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    warmup_epochs = config.warmup_epochs
    if warmup_epochs is None:
        warmup_epochs = config.warmup_fraction * epochs
    return round(warmup_epochs * steps_per_epoch)


def warmup_error(config: c.WarmupConfig, steps: int, allowed: str) -> UserError:
    """Return the error of a warm-up that is too long, for the key that set its length."""
    if config.warmup_steps is not None:
        return key_error("scheduler.warmup_steps", steps, f"must be {allowed}")
    key = "warmup_fraction" if config.warmup_epochs is None else "warmup_epochs"
    made = f"is {steps} steps, and must be {allowed}"
    return key_error(f"scheduler.{key}", getattr(config, key), made)
