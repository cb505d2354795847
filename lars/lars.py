"""LARS, layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017, arXiv 1708.03888).

For each parameter tensor w with gradient g (the paper's eq. 6 and algorithm 1):

    local = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)
    v     = momentum * v + lr * local * (g + weight_decay * w)
    w     = w - v

Departures: `local` is 1 where |w| or |g| is 0, so that a tensor that starts at zero still trains
(the paper leaves 0/0 open); `eps` guards the division; groups with `adapt=False` use `local` 1,
which makes them SGD; `dampening` and `nesterov` are as in torch.optim.SGD, applied to the scaled
update lr * local * (g + weight_decay * w).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class LARS(Optimizer):
    """SGD whose rate is scaled, tensor by tensor, by the ratio of weight norm to gradient norm.

    Args:
        params: parameters, (name, parameter) pairs or groups; see `lars.parameter_groups`.
        lr: the global rate, at least 0.
        momentum: 0 to below 1.
        dampening: the part of each new update that is left out of the momentum buffer, 0 to 1.
        weight_decay: L2 penalty, at least 0; it enters the trust ratio, as in the paper.
        nesterov: look ahead by one momentum step; needs momentum and no dampening.
        trust_coefficient: the paper's eta, above 0.
        eps: added to the trust ratio's denominator, at least 0.
        adapt: whether the trust ratio is applied.

    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        adapt: bool = True,
    ) -> None:
        """Make the optimizer; raise ValueError on a wrong argument."""
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must be at least 0 and below 1")
        if not 0 <= dampening <= 1:
            raise ValueError(f"dampening={dampening}: must be at least 0 and at most 1")
        if not trust_coefficient > 0:
            raise ValueError(f"trust_coefficient={trust_coefficient}: must be above 0")
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("nesterov=True: needs momentum above 0 and dampening=0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, w: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        update = grad.add(w, alpha=group["weight_decay"])
        update.mul_(group["lr"] * trust_ratio(w, grad, group))
        if group["momentum"] != 0:
            state = self.state[w]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = update.clone()
            else:
                kept = 1 - group["dampening"]
                state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=kept)
            buffer = state["momentum_buffer"]
            update = update.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        w.sub_(update)


def trust_ratio(w: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor | float:
    """Return the paper's local rate for one tensor, on its device; 1 where a norm is 0."""
    if not group["adapt"]:
        return 1.0
    weight_norm = torch.linalg.vector_norm(w)
    gradient_norm = torch.linalg.vector_norm(grad)
    ratio = group["trust_coefficient"] * weight_norm
    ratio = ratio / (gradient_norm + group["weight_decay"] * weight_norm + group["eps"])
    return torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, 1.0)
