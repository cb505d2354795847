"""The moving average of a model's weights, evaluated beside them."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """An exponential moving average of weights and buffers: old * decay + new * (1 - decay).

    Batch norm's running statistics are averaged with the weights that they were measured under;
    measuring them anew would take a pass over the training split at each evaluation. Its count of
    steps is no quantity to average, and is copied. The first update copies everything.

    torch's own update waits for a CUDA device at every step, so this has one of its own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copy the model."""
        super().__init__(model, use_buffers=True)
        self.decay = decay

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model's weights after a step."""
        self.move(model)
        self.n_averaged += 1

    @torch.no_grad()
    def move(self, model: nn.Module) -> None:
        """Do the part of an update that is on the device."""
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
