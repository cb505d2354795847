"""The state that training changes and a checkpoint saves, and the test that it is finite."""

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
    """Everything that an optimizer step changes.

    Attributes:
        model: the model itself, neither compiled nor distributed.
        optimizer: the optimizer over its parameters.
        scheduler: the learning-rate schedule.
        ema: the weight average; None if the run keeps none.
        noise: the noise-scale averages; None if the run does not estimate it.

    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: WarmupLR
    ema: Average | None
    noise: NoiseScale | None

    def copy(self) -> dict[str, Any]:
        """Return a copy on the CPU in the layout of a checkpoint, random states included."""
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
    """Return a deep copy of nested containers with tensors on the CPU.

    Other values are shared, because training does not change them in place.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value


def is_finite(*states: Any) -> bool:
    """Return True if all tensors are finite in nested containers and objects with a state_dict.

    A finite training loss does not imply this. Training does not use batch norm's running
    statistics, an infinite variance only makes outputs zero, and no step follows the last update.
    """
    checks = [torch.isfinite(tensor).all() for state in states for tensor in _tensors(state)]
    # Step counts may be on another device than the weights. Each device is read once.
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
