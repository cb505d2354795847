"""The learning-rate schedules by name, and the arguments of each schedule's class.

Functions here take and return plain values. plan.py decides the steps and rates of a run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import schedulers
from engine.config import schedules as c
from engine.errors import UserError, key_error

Options = dict[str, float]


class Length(NamedTuple):
    """The length of a run in epochs and optimizer steps, and the peak of its warm-up."""

    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    peak_lr: float


class Schedule(NamedTuple):
    """The class of a schedule and how to derive its arguments.

    Attributes:
        make: the class, called with the run's steps, its warm-up, if any, and the options.
        options: returns further arguments of the class from the configuration and the length.

    """

    make: Callable[..., schedulers.WarmupLR]
    options: Callable[[Any, Length], Options] = lambda config, length: {}


def decay_options(config: c.DecayConfig, length: Length) -> Options:
    """Return the last rate; raise UserError if it is above the peak."""
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
    """Return the steps between two drops of the rate and the factor of each drop.

    Raises UserError if warm-up does not end before the first drop.
    """
    epochs = config.step_size
    if epochs is None:
        epochs = config.step_fraction * length.epochs
    steps = epochs * length.steps_per_epoch
    if length.warmup_steps >= steps:
        allowed = f"below the {steps:g} steps after which the rate drops"
        raise warmup_error(config, length.warmup_steps, allowed)
    return {"step_size": steps, "gamma": config.gamma}


def tvlars_options(config: c.TVLARSConfig, length: Length) -> Options:
    """Return the sigmoid's parameters, and the steps of an epoch, its unit of time."""
    return {
        "steps_per_epoch": length.steps_per_epoch,
        "alpha": config.alpha,
        "steepness": config.steepness,
        "delay_epochs": config.delay(length.epochs),
        "gamma_min": config.gamma_min,
    }


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(schedulers.WarmupConstantLR),
    "cosine": Schedule(schedulers.WarmupCosineLR, decay_options),
    "polynomial": Schedule(schedulers.WarmupPolynomialLR, polynomial_options),
    "multistep": Schedule(schedulers.WarmupMultiStepLR, multistep_options),
    "onecycle": Schedule(schedulers.WarmupOneCycleLR, decay_options),
    "tvlars": Schedule(schedulers.TVLARSLR, tvlars_options),
}


def count_warmup_steps(config: c.ScheduleConfig, epochs: int, steps_per_epoch: int) -> int:
    """Return the optimizer steps of warm-up; 0 for a schedule without warm-up.

    The first of `warmup_steps`, `warmup_epochs` and `warmup_fraction` that is not None counts.
    """
    if not isinstance(config, c.WarmupConfig):
        return 0
    if config.warmup_steps is not None:
        return config.warmup_steps
    warmup_epochs = config.warmup_epochs
    if warmup_epochs is None:
        warmup_epochs = config.warmup_fraction * epochs
    return round(warmup_epochs * steps_per_epoch)


def warmup_error(config: c.WarmupConfig, steps: int, allowed: str) -> UserError:
    """Return the error for a warm-up of `steps` steps, with the key that set its length."""
    if config.warmup_steps is not None:
        return key_error("scheduler.warmup_steps", steps, f"must be {allowed}")
    key = "warmup_fraction" if config.warmup_epochs is None else "warmup_epochs"
    made = f"is {steps} steps, and must be {allowed}"
    return key_error(f"scheduler.{key}", getattr(config, key), made)
