"""Whether a run's state is finite: what no loss shows before it is evaluated, or too late.

Batch norm's running statistics are not used while training, a variance that overflows only makes
outputs zero, and the last update of all is followed by no step that would see it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def is_finite(*states: Any) -> bool:
    """Tell whether all tensors in nested states, or what has a state_dict, are finite."""
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
