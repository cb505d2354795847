"""What training moves and a resume needs back, made and handed around together; is it finite?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.training.cuda_graph import plain_state
from engine.training.ema import Average
from engine.training.noise_scale import NoiseScale
from schedulers import WarmupLR


@dataclass(frozen=True)
class State:
    """The network itself, neither compiled nor distributed, and all that moves with it."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: WarmupLR
    ema: Average | None
    noise: NoiseScale | None

    def copy(self) -> dict[str, Any]:
        """Return all of it as a checkpoint holds it, on the CPU and apart from what moves on."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return copied(
            {
                "model": self.model.state_dict(),
                "optimizer": plain_state(self.optimizer),
                "scheduler": self.scheduler.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "noise_scale": None if self.noise is None else self.noise.state_dict(),
                "random_states": {"cpu": torch.get_rng_state(), "cuda": cuda},
            }
        )


def copied(value: Any) -> Any:
    """Copy containers and tensors, these to the CPU; anything else is not changed in place."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value


def is_finite(*states: Any) -> bool:
    """Tell whether all tensors in nested states, or what has a state_dict, are finite.

    No loss shows them before they are evaluated, or too late: batch norm's running statistics are
    not used while training, a variance that overflows only makes outputs zero, and the last update
    of all is followed by no step that would see it.
    """
    checks = [torch.isfinite(tensor).all() for state in states for tensor in _tensors(state)]
    # Counts of steps may be elsewhere than the weights; each device is read once.
    devices = {check.device for check in checks}
    return all(
        bool(torch.stack([check for check in checks if check.device == device]).all())
        for device in devices
    )


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif hasattr(state, "state_dict"):
        yield from _tensors(state.state_dict())
    elif isinstance(state, dict):
        yield from (tensor for value in state.values() for tensor in _tensors(value))
    elif isinstance(state, list | tuple):
        yield from (tensor for value in state for tensor in _tensors(value))
