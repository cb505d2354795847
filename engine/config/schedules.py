"""The keys of each learning-rate schedule. training/plan.py derives steps and rates from them."""

from typing import Annotated, Literal

from engine.config.keys import (
    Fraction,
    NotNegative,
    NotNegativeCount,
    Positive,
    PositiveFraction,
    configuration,
    key,
)
from engine.config.parse import Range
from engine.errors import key_error


@configuration
class ScheduleConfig:
    """What every schedule has: a name, and a check of its keys."""

    name: str

    @property
    def multiplier(self) -> float | None:
        """Return the peak rate as a multiple of base_lr; None if the schedule does not set it."""
        return None

    def check(self, epochs: int) -> None:
        """Raise UserError for values that are valid separately but not together, or too large."""


@configuration
class WarmupConfig(ScheduleConfig):
    """The keys of a linear warm-up, with which every schedule but one begins."""

    warmup_epochs: NotNegative | None = key(
        "epochs of linear warm-up; null: warmup_steps, or else warmup_fraction"
    )
    warmup_fraction: Fraction = key("warm-up as a fraction of the epochs")
    warmup_multiplier: Positive | None = key("peak rate / base_lr with lr_scaling=none; null: 1")
    warmup_steps: NotNegativeCount | None = key(
        "warm-up in optimizer steps, if warmup_epochs is null", default=None, kw_only=True
    )

    @property
    def multiplier(self) -> float | None:
        """Return `warmup_multiplier`."""
        return self.warmup_multiplier

    def check(self, epochs: int) -> None:
        """Raise UserError for values that are valid separately but not together, or too large."""
        given = self.warmup_epochs
        if given is not None and given > epochs:
            raise key_error("scheduler.warmup_epochs", given, f"must be at most epochs={epochs}")
        if given is not None and self.warmup_steps is not None:
            allowed = f"must be null if scheduler.warmup_epochs={given:g} is given"
            raise key_error("scheduler.warmup_steps", self.warmup_steps, allowed)


@configuration
class ConstantConfig(WarmupConfig):
    """Warm-up, then the peak rate to the end."""

    name: Literal["constant"]


@configuration
class DecayConfig(WarmupConfig):
    """The keys of a decay from the peak rate to a final rate, after warm-up."""

    min_lr: NotNegative = key("the last step's rate")
    final_fraction: Fraction | None = key(
        "the last step's rate as a fraction of the peak rate, which needs min_lr=0; null: min_lr",
        default=None,
        kw_only=True,
    )

    def check(self, epochs: int) -> None:
        """Raise UserError also if both keys set the final rate."""
        super().check(epochs)
        if self.min_lr and self.final_fraction is not None:
            allowed = f"must be null if scheduler.min_lr={self.min_lr:g} sets the final rate"
            raise key_error("scheduler.final_fraction", self.final_fraction, allowed)


@configuration
class CosineConfig(DecayConfig):
    """Warm-up, then half a period of a cosine."""

    name: Literal["cosine"]


@configuration
class PolynomialConfig(DecayConfig):
    """Warm-up, then polynomial decay."""

    name: Literal["polynomial"]
    power: Positive = key("exponent of the decay; 1: a straight line")


@configuration
class OneCycleConfig(DecayConfig):
    """A linear rise from `start_fraction` of the peak rate, then a linear decay."""

    name: Literal["onecycle"]
    start_fraction: Fraction | None = key(
        "the first step's rate as a fraction of the peak; null: base_lr"
    )


@configuration
class MultistepConfig(WarmupConfig):
    """Warm-up, then the rate is multiplied by `gamma` after every `step_size` epochs."""

    name: Literal["multistep"]
    step_size: Annotated[float, Range(low=1e-6)] | None = key(
        "epochs between two drops of the rate; null: step_fraction"
    )
    step_fraction: Annotated[float, Range(low=1e-6, high=1)] = key(
        "step_size as a fraction of the epochs"
    )
    gamma: PositiveFraction = key("factor of each drop")


@configuration
class TVLARSConfig(ScheduleConfig):
    """A sigmoid that falls from the first step on, without warm-up."""

    name: Literal["tvlars"]
    alpha: Positive = key("1 / alpha is the largest value of the sigmoid; 1: the paper's")
    steepness: Positive = key("how fast the rate falls, in 1 / epoch; lambda in the paper")
    delay_epochs: NotNegative | None = key(
        "epochs until half of the fall, if alpha=1; null: delay_fraction"
    )
    delay_fraction: Fraction = key("delay_epochs as a fraction of the epochs")
    gamma_min: NotNegative = key("added to the sigmoid: the last rates, as a factor")

    def delay(self, epochs: int) -> float:
        """Return the delay in epochs, for a run of `epochs`."""
        return self.delay_fraction * epochs if self.delay_epochs is None else self.delay_epochs


Schedules = (
    PolynomialConfig
    | MultistepConfig
    | OneCycleConfig
    | CosineConfig
    | ConstantConfig
    | TVLARSConfig
)
