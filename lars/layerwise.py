"""What the optimizers with a trust ratio per tensor share: telemetry, and the manner of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .bucket import LayerStatistics, as_tensor


class LayerwiseOptimizer(Optimizer):
    """Base of LARS and LAMB.

    A subclass implements `_complete`, which checks the options of a group, `_init_group`, which
    sorts its parameters into buckets, and `_take_step`, which calls `_record`.

    Attributes:
        telemetry: if True, `layer_statistics()` is available after each step.

    """

    # GradScaler then leaves it to step() to unscale gradients and to skip a step with inf.
    _step_supports_amp_scaling = True
    # Class attributes, because torch copies and pickles only its own instance attributes.
    telemetry: bool = False
    _statistics: tuple[LayerStatistics, ...] = ()
    _keys: tuple[str | int, ...] = ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. An option that the group lacks has the constructor's value.

        Raises:
            ValueError: an option is invalid. The group is then not added.

        """
        super().add_param_group(param_group)
        try:
            self._complete(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _complete(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _init_group(self, group: dict[str, Any], position: int) -> list[Any]:
        raise NotImplementedError

    def _take_step(self) -> None:
        raise NotImplementedError

    def _make_buckets(self) -> list[Any]:
        """Return the buckets of all groups."""
        buckets, position = [], 0
        for group in self.param_groups:
            buckets += self._init_group(group, position)
            position += len(group["params"])
        return buckets

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or loaded state. Options that it lacks get their default values."""
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def layer_statistics(self) -> dict[str | int, dict[str, Tensor]]:
        """Return the statistics of each parameter in the last step, if `telemetry` was True.

        A key is a parameter name, or the index in state_dict() if there are no names. A name that
        occurs a second time, as with two models, is followed by its index: "weight (2)". Parameters
        without a gradient have no entry.

        Each value is a dictionary of 0-d tensors: weight_norm (before the step), gradient_norm
        (unscaled and after clipping), trust_ratio, and effective_rate, which is lr * trust_ratio.
        They are on the parameter's device. The fused CPU path of LARS returns them in fp64.
        """
        statistics: dict[str | int, dict[str, Tensor]] = {}
        for part in self._statistics:
            columns = {k: as_tensor(v) for k, v in part._asdict().items() if k != "positions"}
            for row, position in enumerate(part.positions):
                values = {name: column[row] for name, column in columns.items()}
                statistics[self._keys[position]] = values
        return statistics

    def _record(self, statistics: list[LayerStatistics | None]) -> None:
        """Keep the statistics of a step: None in the list, and no names, without telemetry."""
        self._statistics = tuple(s for s in statistics if s is not None)
        self._keys = self._make_keys() if self.telemetry else ()

    def _make_keys(self) -> tuple[str | int, ...]:
        """Return a unique key for each parameter, in order of position."""
        keys: dict[str | int, None] = {}
        for group in self.param_groups:
            for name in group.get("param_names") or [None] * len(group["params"]):
                index = len(keys)
                key = index if name is None else f"{name} ({index})" if name in keys else name
                keys[key] = None
        return tuple(keys)


def run_step(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """Call the closure, then `_take_step` unless a gradient is infinite; return the loss."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    if torch.compiler.is_compiling():
        _step_outside_graphs(optimizer)
    else:
        _step_if_finite(optimizer)
    return loss


def _step_if_finite(optimizer: Any) -> None:
    # GradScaler sets `found_inf` on the optimizer: a tensor, or the number 0 without any gradient.
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None or float(found_inf) == 0:
        optimizer._take_step()


@torch._disable_dynamo
def _step_outside_graphs(optimizer: Any) -> None:
    """Make torch.compile break its graph here and run the step eagerly.

    An eager step takes as few passes over memory as a compiled one. A traced step would be compiled
    again for each value of a float learning rate, as the steps of torch's optimizers are.
    """
    _step_if_finite(optimizer)
