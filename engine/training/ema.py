"""Exponential moving average of a model's weights, which is evaluated in addition to them."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """An exponential moving average of weights and buffers: old * decay + new * (1 - decay).

    Batch norm's running statistics are averaged too, because measuring them for the averaged
    weights would take a pass over the training split at each evaluation. Integer buffers, such as
    batch norm's step count, are copied. The first update copies everything.

    AveragedModel's update synchronizes with a CUDA device at every step, so this class replaces it.

    Args:
        model: the model, which is copied.
        decay: weight of the old average, above 0 and below 1.

    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the model's weights after a step."""
        self.move(model)
        self.n_averaged += 1

    @torch.no_grad()
    def move(self, model: nn.Module) -> None:
        """Update the averaged weights and buffers on the device; a CUDA graph can capture this."""
        averaged = [*self.module.parameters(), *self.module.buffers()]
        present = [*model.parameters(), *model.buffers()]
        if int(self.n_averaged) == 0:
            torch._foreach_copy_(averaged, present)
            return
        pairs = list(zip(averaged, present, strict=True))
        moved = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moved], [p for _, p in moved], 1 - self.decay)
        for old, new in pairs:
            if not old.is_floating_point():
                old.copy_(new)
