"""The gradient noise scale: at which batch another example begins to add less than its share.

McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training", arXiv
1812.06162. With G the true gradient and Sigma the covariance of one example's gradient, the
"simple" noise scale is (section 2.2)

    B_simple = tr(Sigma) / |G|^2

A batch's gradient has E|G_B|^2 = |G|^2 + tr(Sigma) / B, so two sizes give both (appendix A.1),
without bias: here those of one step, its first micro-batch b and its whole batch B,

    |G|^2     = (B |G_B|^2 - b |G_b|^2) / (B - b)
    tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)

Either alone is very noisy and the ratio of two noisy numbers is biased, so both are averaged over
the steps, apart, before they are divided. These are the loss' gradients: weight decay, clipping and
trust ratios come after them. Batch norm makes an example's gradient depend on its group; |G|^2 and
Sigma are then those of the micro-batches' own loss. Of several ranks each measures a first pass of
its own: the mean of their |G_b|^2 is then one of which 1 / b is the mean of their 1 / b.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.system.distributed import add_over_ranks

# Averages over about the last 50 steps.
SMOOTHING = 0.98


@dataclass(frozen=True)
class NoiseEstimate:
    """tr(Sigma), the variance of one example's gradient, and |G|^2, both averaged over steps."""

    gradient_variance: float
    gradient_squared: float

    @property
    def noise_scale(self) -> float | None:
        """Return their ratio in examples; None where either is lost in the other, or no step.

        Both are differences of measured norms, so that few steps can leave one below 0.
        """
        if not (self.gradient_squared > 0 and 0 < self.gradient_variance < math.inf):
            return None
        return self.gradient_variance / self.gradient_squared


class NoiseScale:
    """The averages over a run's steps; they stay on the device."""

    def __init__(self, device: torch.device) -> None:
        """Start without a step."""
        # Sums with falling weights of tr(Sigma), |G|^2 and 1: the last makes them averages.
        self.sums = torch.zeros(3, device=device)

    def update(
        self, first_norm: Tensor | None, whole_norm: Tensor, first: float, whole: int
    ) -> Tensor:
        """Take in a step: the norms of its mean gradients over `first` and over `whole` examples.

        A step whose batch is too small for two passes has no first norm and changes nothing.
        Returns the sums, for `estimates`.
        """
        if first_norm is None:
            return self.sums
        small, big = first_norm**2, whole_norm**2
        squared = (whole * big - first * small) / (whole - first)
        variance = (small - big) / (1 / first - 1 / whole)
        estimate = torch.stack([variance, squared, torch.ones_like(squared)])
        return self.sums.lerp_(estimate.to(self.sums.dtype), 1 - SMOOTHING)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resume needs."""
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.sums.copy_(state["sums"])


def mean_first_pass(
    norm: Tensor | None, sizes: Sequence[int], like: Tensor
) -> tuple[Tensor | None, float]:
    """Combine the ranks' first passes: the root of their mean squared norm, and their size.

    norm: this rank's own, None where its part went through in one pass; sizes: those of every rank
    that has one; like: a number on the run's device.
    """
    if not sizes:
        return None, 0
    square = torch.zeros_like(like) if norm is None else norm**2
    add_over_ranks(square)
    return (square / len(sizes)).sqrt(), statistics.harmonic_mean(sizes)


def estimates(sums: Tensor) -> list[NoiseEstimate]:
    """Turn the sums after some steps, float [steps, 3], into estimates; one read of the device."""
    return [
        NoiseEstimate(*((variance / weight, squared / weight) if weight else (math.nan, math.nan)))
        for variance, squared, weight in sums.tolist()
    ]
