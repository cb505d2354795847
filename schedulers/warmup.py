"""Gradual warm-up, then decay: one torch LRScheduler for each kind of decay.

The optimizer is made with the peak rate. For step s of S, with W warm-up steps:

    s <  W   start + (peak - start) * s / W
    s >= W   the decay at progress (s - W) / (S - 1 - W), so that step S - 1 is at the minimum

The first step therefore runs at `start_lr` and step W at the peak. Each rate depends on the step
alone, never on the rate before it, so a resumed run is on the same curve to the bit. A group with
an `lr_scale` runs at so many times these rates. A group that is added to a running optimizer joins
with the schedule's next step; the `lr` it was added with is its peak.
"""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from schedulers import decay
from schedulers.checks import check_count, check_number


class WarmupLR(LRScheduler):
    """Linear warm-up from `start_lr`, then a decay, which a subclass gives by `decayed`.

    A subclass says the same as text by `factor`, or by `formula` if there is no minimum.

    Args:
        optimizer: its groups' rates are their peaks; None is the curve alone, for `lr_at`.
        total_steps: optimizer steps in the whole run, at least 1.
        warmup_steps: optimizer steps of warm-up, 0 to `total_steps`.
        start_lr: the first step's rate in every group; None is each group's own peak.
        min_lr: the last step's rate in every group, where the decay has a minimum.

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
        """Set every group to the first step's rate; raise ValueError on a wrong argument."""
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
            _own_rate(group)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return every group's rate for the present step, its `lr_scale` included."""
        groups = self.optimizer.param_groups
        for group in groups[len(self.base_lrs) :]:
            _check_group(group)
            _own_rate(group)
            self.base_lrs.append(group.setdefault("initial_lr", float(group["lr"])))
        if len(groups) < len(self.base_lrs):
            raise ValueError(
                f"the schedule is of {len(self.base_lrs)} parameter groups and its optimizer has "
                f"{len(groups)}: add the missing ones to the optimizer, or make a new schedule"
            )
        return [
            self.lr_at(self.last_epoch, float(peak))
            * check_number("lr_scale", group.get("lr_scale", 1.0))
            for group, peak in zip(groups, self.base_lrs, strict=True)
        ]

    def lr_at(self, step: int, peak: float) -> float:
        """Return the rate of one step, counted from 0, under a given peak."""
        peak, step = check_number("peak", peak), check_count("step", step, least=0)
        if step < self.warmup_steps:
            start = peak if self.start_lr is None else self.start_lr
            return start + (peak - start) * step / self.warmup_steps
        decay_steps = self.total_steps - 1 - self.warmup_steps
        progress = (step - self.warmup_steps) / decay_steps if decay_steps > 0 else 0.0
        return self.decayed(peak, min(progress, 1.0), step)

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the rate after warm-up: `progress` runs from 0 to 1, `step` counts from 0."""
        raise NotImplementedError

    def formula(self) -> str:
        """Return the rate after warm-up as text, in `peak`, `final`, `step` and the factor's t."""
        last = self.total_steps - 1
        if self.warmup_steps >= last:
            return "none"
        return (
            f"final + (peak - final) {self.factor()}, t = (step - {self.warmup_steps}) "
            f"/ {last - self.warmup_steps}"
        )

    def factor(self) -> str:
        """Return the factor of a decay as text, in t, which runs from 0 to 1."""
        raise NotImplementedError


def _check_group(group: dict[str, Any]) -> None:
    """Raise ValueError if a group's peak or scale is no rate."""
    check_number("lr", group.get("initial_lr", group["lr"]))
    check_number("lr_scale", group.get("lr_scale", 1.0))


def _own_rate(group: dict[str, Any]) -> None:
    """Part a rate that is a tensor from those it is shared with: rates are written into it."""
    if isinstance(group["lr"], Tensor):
        group["lr"] = group["lr"].clone()


class WarmupConstantLR(WarmupLR):
    """Warm-up, then the peak rate to the end."""

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the peak."""
        return peak

    def formula(self) -> str:
        """Return that there is no decay."""
        return "none"


class WarmupCosineLR(WarmupLR):
    """Warm-up, then half a cosine down to `min_lr`."""

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the rate on the cosine."""
        return self.min_lr + (peak - self.min_lr) * decay.cosine(progress)

    def factor(self) -> str:
        """Return half a cosine."""
        return "(1 + cos(pi t)) / 2"


class WarmupPolynomialLR(WarmupLR):
    """Warm-up, then (1 - progress) ** power down to `min_lr`."""

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
        """Set every group to the first step's rate; `power` is above 0."""
        self.power = check_number("power", power, above_zero=True)
        super().__init__(optimizer, total_steps, warmup_steps, start_lr, min_lr, last_epoch)

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the rate on the polynomial."""
        return self.min_lr + (peak - self.min_lr) * decay.polynomial(progress, self.power)

    def factor(self) -> str:
        """Return the power of what is left of the way."""
        return f"(1 - t)^{self.power:g}"


class WarmupOneCycleLR(WarmupLR):
    """One triangle: up in a straight line to the peak, down in another to `min_lr`.

    Smith & Topin 2017 (arXiv 1708.07120), without the cycle of the momentum and without a last
    phase of its own: warm-up is the way up, and `warmup_steps` says where the peak is.
    """

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the rate on the way down."""
        return self.min_lr + (peak - self.min_lr) * (1.0 - progress)

    def factor(self) -> str:
        """Return a straight line."""
        return "(1 - t)"


class WarmupMultiStepLR(WarmupLR):
    """Warm-up, then the peak times gamma ** n, n whole intervals after the run's first step.

    The intervals are counted from the start of the run, as torch's StepLR counts them, so warm-up
    takes its steps from the first one. There is no minimum.
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
        """Set every group to the first step's rate; `step_size` is in optimizer steps."""
        self.step_size = check_number("step_size", step_size, above_zero=True)
        self.gamma = check_number("gamma", gamma, above_zero=True, most=1.0)
        super().__init__(optimizer, total_steps, warmup_steps, start_lr, 0.0, last_epoch)

    def decayed(self, peak: float, progress: float, step: int) -> float:
        """Return the rate on the staircase."""
        return peak * decay.multistep(step, self.step_size, self.gamma)

    def formula(self) -> str:
        """Return the staircase, which counts from the run's first step."""
        return f"peak x {self.gamma:g} ^ floor(step / {self.step_size:.6g})"
