"""Muon for the hidden weights of a network and AdamW for its other parameters, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a
weight matrix by a nearby matrix whose singular values are about 1. With the gradient g of a step:

    v <- momentum * v + (1 - momentum) * g
    u  = (1 - momentum) * g + momentum * v    with Nesterov momentum, otherwise v
    w <- (1 - lr * weight_decay) * w - lr * factor * NS(u)

NS is five Newton-Schulz iterations in bfloat16, whose bits depend on the machine. The factor
depends on the shape of w (`adjust_lr`). torch.optim.Muon computes all of this for matrices only, so
the weight of a convolution, [out, in, h, w], is passed to it as a matrix [out, in * h * w] that
shares its memory.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from engine.errors import key_error

# torch 2.9 was the first version with Muon.
HAS_MUON = hasattr(torch.optim, "Muon")
# Options of a group that both torch optimizers, or one of them, take from it.
MUON_OPTIONS = ("lr", "weight_decay", "momentum", "nesterov", "adjust_lr_fn")
ADAMW_OPTIONS = ("lr", "weight_decay", "betas", "eps", "fused")


class MuonAdamW(Optimizer):
    """Take torch's Muon step in groups with `muon=True`, and torch's AdamW step in the others.

    Both decays are decoupled from the gradient. The state has the shape and memory layout of its
    parameter: `momentum_buffer` under Muon; `step`, `exp_avg` and `exp_avg_sq` under AdamW.

    Args:
        params: parameter groups, such as those of `muon_groups`; a group without `muon` is AdamW's.
        lr: learning rate of groups that have none.
        weight_decay: weight decay of groups that have none.
        momentum: Muon's momentum.
        nesterov: use Nesterov momentum in Muon.
        adjust_lr: factor on Muon's rate for a matrix of A rows and B columns: "original",
            sqrt(max(1, A / B)), or "match_rms_adamw", 0.2 * sqrt(max(A, B)).
        betas: decays of AdamW's averages.
        eps: added to the denominator of AdamW's update.
        fused: use AdamW's fused kernel.

    """

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr: str = "original",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "adjust_lr_fn": adjust_lr, "betas": betas, "eps": eps, "fused": fused, "muon": False,
            # LARSWrapper looks for this option.
            "decoupled_weight_decay": True,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the closure's loss, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_muon([group for group in self.param_groups if group["muon"]])
        self._step_adamw([group for group in self.param_groups if not group["muon"]])
        return loss

    def _step_muon(self, groups: list[dict[str, Any]]) -> None:
        # The matrices are made at each step, because `model.to` and `zero_grad` replace memory and
        # gradients.
        state: dict[Tensor, dict[str, Tensor]] = {}
        matrices = []
        for group in groups:
            options = {name: group[name] for name in MUON_OPTIONS}
            matrices.append({"params": [], **options})
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                matrix = as_matrix(weight.detach(), weight)
                matrix.grad = as_matrix(weight.grad, weight, may_copy=True)
                matrices[-1]["params"].append(matrix)
                state[matrix] = {"momentum_buffer": as_matrix(self._momentum_of(weight), weight)}
        if state:
            muon = torch.optim.Muon(matrices)
            muon.state.update(state)
            muon.step()

    def _momentum_of(self, weight: Tensor) -> Tensor:
        """Return a weight's momentum buffer in the memory layout of the weight."""
        state = self.state[weight]
        buffer = state.get("momentum_buffer")
        if buffer is None:
            state["momentum_buffer"] = torch.zeros_like(weight)
        elif buffer.stride() != weight.stride():
            # A state_dict keeps the layout that it was saved in.
            state["momentum_buffer"] = torch.empty_like(weight).copy_(buffer)
        return state["momentum_buffer"]

    def _step_adamw(self, groups: list[dict[str, Any]]) -> None:
        if groups:
            adamw = AdamW([{name: g[name] for name in ("params", *ADAMW_OPTIONS)} for g in groups])
            adamw.state = self.state
            adamw.step()


def as_matrix(tensor: Tensor, weight: Tensor, may_copy: bool = False) -> Tensor:
    """Return a tensor [out, ...] as a matrix [out, -1] that shares its memory.

    The columns are in the order of the weight's memory. It is the order of the dimensions, or
    (height, width, in) under channels_last. The order of columns does not matter to Newton-Schulz,
    except for rounding.

    Args:
        tensor: the weight, or a tensor of its shape.
        weight: the weight, which determines the order of the columns.
        may_copy: copy a tensor in another memory layout; False raises RuntimeError.

    """
    inner = sorted(range(1, weight.ndim), key=weight.stride, reverse=True)
    ordered = tensor.permute(0, *inner)
    size = (len(tensor), -1)
    return ordered.reshape(size) if may_copy else ordered.view(size)


def hidden_weights(model: nn.Module, first_last: bool = False) -> set[Tensor]:
    """Return the weights of convolutions and linear layers that Muon trains.

    Args:
        model: the model.
        first_last: include the first convolution and the last linear layer.

    """
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    if not first_last:
        convolutions, linears = convolutions[1:], linears[:-1]
    return {*convolutions, *linears}


def muon_groups(
    groups: list[dict[str, Any]], hidden: Collection[Tensor], inner_lr_scale: float
) -> list[dict[str, Any]]:
    """Split the groups of `parameter_groups` into those of Muon and those of AdamW.

    Args:
        groups: groups with (name, parameter) pairs.
        hidden: the weights that Muon trains.
        inner_lr_scale: AdamW's rate as a multiple of Muon's.

    """
    split = []
    for group in groups:
        for muon in (True, False):
            pairs = [pair for pair in group["params"] if (pair[1] in hidden) == muon]
            scale = group["lr_scale"] * (1.0 if muon else inner_lr_scale)
            if pairs:
                split.append({**group, "params": pairs, "muon": muon, "lr_scale": scale})
    return split


def check_torch(key: str) -> None:
    """Raise UserError, which names the key that chose Muon, if this version of torch has none."""
    if not HAS_MUON:
        allowed = f"needs torch.optim.Muon of torch 2.9 or newer, and this is {torch.__version__}"
        raise key_error(key, "muon", allowed)
