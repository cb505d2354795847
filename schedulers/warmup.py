"""Linear warm-up, then decay: one torch LRScheduler per decay curve.

The optimizer is constructed with the peak learning rate. For step s of S, with W warm-up steps:

    s <  W   start + (peak - start) * s / W
    s >= W   the decay at progress (s - W) / (S - 1 - W), so step S - 1 runs at the minimum

The first step therefore runs at `start_lr` and step W at the peak. Each rate depends only on the
step and never on the previous rate, so a resumed run has bit-identical rates. A group's `lr_scale`
multiplies its rates. A group added to the optimizer later follows the schedule from the next
`step()` on; the `lr` it was added with is its peak.
"""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from schedulers import decay
from schedulers.checks import check_count, check_number


class WarmupLR(LRScheduler):
    """Linear warm-up from `start_lr`, then the decay that a subclass implements in `decayed`.

    A subclass also returns its decay as text: in `factor`, or in `formula` if it has no minimum.
    Raises ValueError if an argument is out of range.

    Args:
        optimizer: each group's `lr` is its peak. None gives the curve only, for `lr_at`.
        total_steps: optimizer steps in the whole run, at least 1.
        warmup_steps: optimizer steps of warm-up, 0 to `total_steps`.
        start_lr: rate of the first step, before `lr_scale`; None is the group's peak.
        min_lr: rate of the last step, before `lr_scale`, if the decay has a minimum.
        last_epoch: index of the last step done, as in LRScheduler; -1 starts a run.

    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        total_steps: int,
        warmup_steps: int = 0,
        start_lr: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = check_count("total_steps", total_steps, least=1)
        self.warmup_steps = check_count("warmup_steps", warmup_steps, 0, self.total_steps)
        self.start_lr = None if start_lr is None else check_number("start_lr", start_lr)
        self.min_lr = check_number("min_lr", min_lr)
        last_epoch = check_count("last_epoch", last_epoch, least=-1)
        if optimizer is None:
            return
        for group in optimizer.param_groups:
            _check_group(group)
        for group in optimizer.param_groups:
            _unshare_rate(group)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return each group's rate for the current step, times its `lr_scale`.

        Raises ValueError if the optimizer has lost a group since the last call.
        """
        groups = self.optimizer.param_groups
        for group in groups[len(self.base_lrs) :]:
            _check_group(group)
            _unshare_rate(group)
            self.base_lrs.append(group.setdefault("initial_lr", float(group["lr"])))
        if len(groups) < len(self.base_lrs):
            raise ValueError(
                f"the schedule has {len(self.base_lrs)} parameter groups but its optimizer has "
                f"{len(groups)}: add the missing ones to the optimizer, or make a new schedule"
            )
        return [
            self.lr_at(self.last_epoch, float(peak))
            * check_number("lr_scale", group.get("lr_scale", 1.0))
            for group, peak in zip(groups, self.base_lrs, strict=True)
        ]

    def lr_at(self, step: int, peak: float) -> float:
        """Return the rate of a step, counted from 0, for a group with this peak."""
        peak, step = check_number("peak", peak), check_count("step", step, least=0)
        if step < self.warmup_steps:
            start = peak if self.start_lr is None else self.start_lr
            return start + (peak - start) * step / self.warmup_steps
        decay_steps = self.total_steps - 1 - self.warmup_steps
        progress = (step - self.warmup_steps) / decay_steps if decay_steps > 0 else 0.0
        return self.decayed(peak, min(progress, 1.0), step)

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the rate of a step after warm-up.

        Args:
            peak: the group's peak rate.
            progress: 0 at the end of warm-up, 1 at the last step.
            step: optimizer step, counted from 0.

        """
        raise NotImplementedError

    def formula(self) -> str:
        """Return the rate after warm-up as a formula in `peak`, `final`, `step` and t."""
        last = self.total_steps - 1
        if self.warmup_steps >= last:
            return "none"
        return (
            f"final + (peak - final) {self.factor()}, t = (step - {self.warmup_steps}) "
            f"/ {last - self.warmup_steps}"
        )

    def factor(self) -> str:
        """Return the decay's factor as a formula in t, which runs from 0 to 1."""
        raise NotImplementedError


def _check_group(group: dict[str, Any]) -> None:
    """Raise ValueError if a group's peak or `lr_scale` is negative or not finite."""
    check_number("lr", group.get("initial_lr", group["lr"]))
    check_number("lr_scale", group.get("lr_scale", 1.0))


def _unshare_rate(group: dict[str, Any]) -> None:
    """Clone a tensor rate: groups may share one, and LRScheduler writes into it in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"] = group["lr"].clone()


class WarmupConstantLR(WarmupLR):
    """Warm-up, then the peak rate until the end."""

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the peak."""
        return peak

    def formula(self) -> str:
        """Return "none": there is no decay."""
        return "none"


class WarmupCosineLR(WarmupLR):
    """Warm-up, then half a cosine wave down to `min_lr`."""

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return min_lr + (peak - min_lr) * (1 + cos(pi * progress)) / 2."""
        return self.min_lr + (peak - self.min_lr) * decay.cosine(progress)

    def factor(self) -> str:
        """Return the cosine factor in t."""
        return "(1 + cos(pi t)) / 2"


class WarmupPolynomialLR(WarmupLR):
    """Warm-up, then a decay by (1 - progress) ** power down to `min_lr`.

    Args:
        power: exponent, above 0. The other arguments are WarmupLR's.

    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        total_steps: int,
        warmup_steps: int = 0,
        start_lr: float | None = None,
        min_lr: float = 0.0,
        power: float = 2.0,
        last_epoch: int = -1,
    ) -> None:
        self.power = check_number("power", power, above_zero=True)
        super().__init__(optimizer, total_steps, warmup_steps, start_lr, min_lr, last_epoch)

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return min_lr + (peak - min_lr) * (1 - progress) ** power."""
        return self.min_lr + (peak - self.min_lr) * decay.polynomial(progress, self.power)

    def factor(self) -> str:
        """Return the polynomial factor in t."""
        return f"(1 - t)^{self.power:g}"


class WarmupOneCycleLR(WarmupLR):
    """Linear rise to the peak, then linear decay to `min_lr`.

    This is the schedule of Smith & Topin 2017 (arXiv 1708.07120) without cyclic momentum and
    without a separate last phase. The warm-up is the rise, so the peak is at step `warmup_steps`.
    """

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return min_lr + (peak - min_lr) * (1 - progress)."""
        return self.min_lr + (peak - self.min_lr) * (1.0 - progress)

    def factor(self) -> str:
        """Return the linear factor in t."""
        return "(1 - t)"


class WarmupMultiStepLR(WarmupLR):
    """Warm-up, then the peak times gamma ** n after n whole intervals of `step_size` steps.

    Intervals count from the first step of the run, as in torch's StepLR, so they include warm-up.
    There is no minimum.

    Args:
        step_size: optimizer steps between two drops of the rate, above 0; may be a fraction.
        gamma: factor of each drop, above 0 and at most 1. The other arguments are WarmupLR's.

    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        total_steps: int,
        step_size: float,
        gamma: float = 0.1,
        warmup_steps: int = 0,
        start_lr: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        self.step_size = check_number("step_size", step_size, above_zero=True)
        self.gamma = check_number("gamma", gamma, above_zero=True, most=1.0)
        super().__init__(optimizer, total_steps, warmup_steps, start_lr, 0.0, last_epoch)

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return peak * gamma ** (number of whole intervals up to `step`)."""
        return peak * decay.multistep(step, self.step_size, self.gamma)

    def formula(self) -> str:
        """Return the rate as a formula in `peak` and `step`, counted from the run's first step."""
        return f"peak x {self.gamma:g} ^ floor(step / {self.step_size:.6g})"


class TVLARSLR(WarmupLR):
    """A sigmoid that falls from the start of the run, in place of a warm-up.

    The rate of step s is lr * (1 / (alpha + exp(steepness * (t - delay_epochs))) + gamma_min), with
    t = s / steps_per_epoch. Here a group's `lr` is not its largest rate, which is that of step 0.

    Source: Do et al., "Revisiting LARS for Large Batch Training Generalization of Neural Networks",
    arXiv 2309.14053. The rate does not depend on `total_steps`.

    Args:
        steps_per_epoch: optimizer steps in an epoch, above 0; may be a fraction.
        alpha: 1 / alpha is the limit of the first term long before the delay; above 0.
        steepness: how fast the rate falls, in 1 / epoch; above 0. The paper's lambda.
        delay_epochs: epoch at which the exponential is 1. The paper's d_e.
        gamma_min: limit of the factor long after the delay. The other arguments are WarmupLR's.

    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        total_steps: int,
        steps_per_epoch: float,
        alpha: float = 1.0,
        steepness: float = 0.1,
        delay_epochs: float = 0.0,
        gamma_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.steps_per_epoch = check_number("steps_per_epoch", steps_per_epoch, above_zero=True)
        self.alpha = check_number("alpha", alpha, above_zero=True)
        self.steepness = check_number("steepness", steepness, above_zero=True)
        self.delay_epochs = check_number("delay_epochs", delay_epochs)
        self.gamma_min = check_number("gamma_min", gamma_min)
        super().__init__(optimizer, total_steps, last_epoch=last_epoch)

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return `peak` times the factor of `decay.tvlars`."""
        epochs = step / self.steps_per_epoch
        curve = (self.alpha, self.steepness, self.delay_epochs, self.gamma_min)
        return peak * decay.tvlars(epochs, *curve)

    def formula(self) -> str:
        """Return the rate as a formula in `peak`, the rate of step 0, and t, in epochs."""
        return (
            f"peak x f(t) / f(0), f(t) = 1 / ({self.alpha:g} + exp({self.steepness:g} "
            f"(t - {self.delay_epochs:g}))) + {self.gamma_min:g}, t = step / "
            f"{self.steps_per_epoch:g}"
        )
