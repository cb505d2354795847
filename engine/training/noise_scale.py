"""The gradient noise scale: the batch size beyond which more examples give diminishing returns.

McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training", arXiv
1812.06162. With G the true gradient and Sigma the covariance of one example's gradient, the
"simple" noise scale is (section 2.2)

    B_simple = tr(Sigma) / |G|^2

A batch's gradient has E|G_B|^2 = |G|^2 + tr(Sigma) / B, so two batch sizes give unbiased estimates
of both (appendix A.1). Here they are a step's first micro-batch b and its whole batch B:

    |G|^2     = (B |G_B|^2 - b |G_b|^2) / (B - b)
    tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)

Each estimate is very noisy, and the ratio of two noisy numbers is biased, so each is averaged over
the steps before they are divided. The gradients are those of the loss, before weight decay,
clipping and trust ratios. Batch norm makes an example's gradient depend on its group; |G|^2 and
Sigma are then those of the loss per micro-batch. With several ranks each measures its own first
micro-batch. The mean of their |G_b|^2 is then used with b the harmonic mean of their sizes, because
the expectation is linear in 1 / b.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.system.distributed import add_over_ranks

# Weight of the old average; an average covers about the last 50 steps.
SMOOTHING = 0.98


@dataclass(frozen=True)
class NoiseEstimate:
    """Both estimates, averaged over steps.

    Attributes:
        gradient_variance: tr(Sigma), the variance of one example's gradient.
        gradient_squared: |G|^2, the squared norm of the true gradient.

    """

    gradient_variance: float
    gradient_squared: float

    @property
    def noise_scale(self) -> float | None:
        """Return B_simple in examples; None if an estimate is not positive or not finite.

        Both estimates are differences of measured norms, so after few steps one can be negative.
        """
        if not (self.gradient_squared > 0 and 0 < self.gradient_variance < math.inf):
            return None
        return self.gradient_variance / self.gradient_squared


class NoiseScale:
    """The exponential moving averages over a run's steps, kept on `device`."""

    def __init__(self, device: torch.device) -> None:
        # Exponentially weighted sums of tr(Sigma), |G|^2 and 1. Dividing by the last one gives the
        # averages.
        self.sums = torch.zeros(3, device=device)

    def update(
        self, first_norm: Tensor | None, whole_norm: Tensor, first: float, whole: int
    ) -> Tensor:
        """Add one step and return the sums, float [3], for `estimates`.

        Args:
            first_norm: norm of the mean gradient over the first micro-batch; None if the batch is
                too small for two, and then the sums do not change.
            whole_norm: norm of the mean gradient over the whole batch.
            first: examples in the first micro-batch.
            whole: examples in the whole batch.

        """
        if first_norm is None:
            return self.sums
        small, big = first_norm**2, whole_norm**2
        squared = (whole * big - first * small) / (whole - first)
        variance = (small - big) / (1 / first - 1 / whole)
        estimate = torch.stack([variance, squared, torch.ones_like(squared)])
        return self.sums.lerp_(estimate.to(self.sums.dtype), 1 - SMOOTHING)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the sums."""
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load saved sums; raise KeyError if there are none."""
        self.sums.copy_(state["sums"])


def mean_first_pass(
    norm: Tensor | None, sizes: Sequence[int], like: Tensor
) -> tuple[Tensor | None, float]:
    """Return the norm and size that stand for the first passes of all ranks.

    The norm is the root mean square of the ranks' norms, None if no rank has a first pass. The size
    is the harmonic mean.

    Args:
        norm: this rank's norm; None if its part of the batch took one pass.
        sizes: size of the first pass on every rank that has one.
        like: any 0-d tensor on the run's device.

    """
    if not sizes:
        return None, 0
    square = torch.zeros_like(like) if norm is None else norm**2
    add_over_ranks(square)
    return (square / len(sizes)).sqrt(), statistics.harmonic_mean(sizes)


def estimates(sums: Tensor) -> list[NoiseEstimate]:
    """Return the estimates after each step from the sums, float [steps, 3].

    This synchronizes with the device once.
    """
    return [
        NoiseEstimate(*((variance / weight, squared / weight) if weight else (math.nan, math.nan)))
        for variance, squared, weight in sums.tolist()
    ]
