"""The part of an epoch that is done: what a run that stops between two steps has to keep.

Weights, optimizer and schedule are the checkpoint's; order and augmentation follow from seed and
epoch. What is left is here: the sums that become the epoch's row and curves.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# LARS' telemetry after one step: that step, and by parameter name its figures as 0-d tensors.
LayerStatistics = tuple[int, dict[str | int, dict[str, Tensor]]]


@dataclass
class PartialEpoch:
    """An epoch's sums after `len(rates)` of its steps.

    losses, gradient_norms: float32 [steps of the epoch]; noise: float32 [steps, 3], the sums of
    `NoiseScale`; all are 0 beyond the steps done. correct: int64 [], examples classified right.
    seconds: of training steps.
    """

    losses: Tensor
    gradient_norms: Tensor
    noise: Tensor
    correct: Tensor
    rates: list[float] = dataclasses.field(default_factory=list)
    layers: list[LayerStatistics] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def of_no_steps(cls, steps: int, device: torch.device) -> "PartialEpoch":
        """Begin an epoch of so many steps."""
        return cls(
            losses=torch.zeros(steps, device=device),
            gradient_norms=torch.zeros(steps, device=device),
            noise=torch.zeros(steps, 3, device=device),
            correct=torch.zeros((), dtype=torch.int64, device=device),
        )

    def to(self, device: torch.device) -> "PartialEpoch":
        """Return it with its sums on a device."""
        names = ("losses", "gradient_norms", "noise", "correct")
        moved = {name: getattr(self, name).to(device) for name in names}
        return dataclasses.replace(self, **moved)

    def is_finite(self, steps: slice) -> bool:
        """Tell whether the losses and gradients of some steps are; one read of the device."""
        return bool(torch.isfinite(self.losses[steps] + self.gradient_norms[steps]).all())

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as a checkpoint holds them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
