"""What the tests of LARS and LAMB share: a small problem, a switch of optimizers, a recorder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Parameters = list[torch.nn.Parameter]


def problem(dtype: torch.dtype = torch.float32) -> tuple[Parameters, Any]:
    """Return the weight and the bias of a small regression, and a function for its loss."""
    torch.manual_seed(0)
    params = [
        torch.nn.Parameter(torch.randn(10, 5, dtype=dtype)),
        torch.nn.Parameter(torch.randn(10, dtype=dtype)),
    ]
    inputs = torch.randn(5, dtype=dtype)
    return params, lambda: (params[0].mv(inputs) + params[1]).abs().square().sum()


def weights_with_and_without_a_switch(
    first: Callable[[Parameters], Any], second: Callable[[Parameters], Any], options: dict[str, Any]
) -> list[Parameters]:
    """Return the weights after six steps of one optimizer, and with another one from step 3 on.

    Args:
        first: makes the optimizer.
        second: makes the other one, which loads the first one's state_dict.
        options: group options that change in that state_dict.

    """
    ends = []
    for switch in (False, True):
        params, loss_of = problem(torch.float64)
        optimizer = first(params)
        for step in range(6):
            if switch and step == 3:
                state = copy.deepcopy(optimizer.state_dict())
                for group in state["param_groups"]:
                    group.update(options)
                optimizer = second(params)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()
        ends.append(params)
    return ends


class Recorder(TorchDispatchMode):
    """Record calls that reach the dispatcher, and fail on those that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert "_local_scalar_dense" not in name, "the host reads a value"
        if "unbind" not in name and "detach" not in name:  # views launch no kernel
            self.calls.append(name)
        return func(*args, **(kwargs or {}))
