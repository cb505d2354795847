"""The mathematics of one step: from norms to a trust ratio, from a ratio to three coefficients.

Every path applies the same three coefficients a, d and rate to a tensor:

    v <- momentum * v + (1 - dampening) * (a * g + d * w)
    w <- w - rate * v          (Nesterov: w - rate * (a * g + d * w + momentum * v))

`a` multiplies the raw gradient, so it includes the sign of `maximize`, the loss scale and the
clipping. `d` multiplies the weights. This module computes them, once for numbers (the fused CPU
path) and once for stacked tensors (all other paths).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .values import number, plain


@dataclass(frozen=True, slots=True)
class Rule:
    """The hyper-parameters of one group, as a step needs them.

    The fields are the options of `LARS` with the same names. Those that refer to other options are
    resolved. All are numbers, strings or bools, except `lr`, which may be a 0-d tensor, and
    `weight_decay` and `trust_weight_decay`, which are tensors if autograd goes through them.
    """

    lr: float | Tensor
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: Any
    trust_coefficient: float
    eps: float
    trust_norm: str
    trust_weight_decay: Any
    momentum_scaling: str
    zero_norm: str
    trust_clip: bool
    adapt: bool

    @classmethod
    def from_group(cls, group: dict[str, Any]) -> Rule:
        """Return the rule of a group.

        Options that are tensors become numbers, for which the host waits, except `lr` and a
        weight decay that autograd goes through.
        """
        lr, decay = plain(group["lr"]), group["weight_decay"]
        is_traced = isinstance(decay, Tensor) and decay.requires_grad and group["differentiable"]
        decay = decay.squeeze() if is_traced else number(decay)
        trust_decay = plain(group["trust_weight_decay"])
        if isinstance(trust_decay, str):
            trust_decay = decay if trust_decay == "weight_decay" else group[trust_decay]
        if trust_decay is not decay:
            trust_decay = number(trust_decay)
        return cls(
            lr=lr.squeeze() if isinstance(lr, Tensor) and lr.dim() else lr,
            momentum=number(group["momentum"]),
            dampening=number(group["dampening"]),
            nesterov=group["nesterov"],
            weight_decay=decay,
            trust_coefficient=number(group["trust_coefficient"]),
            eps=number(group["eps"]),
            trust_norm=group["trust_norm"],
            trust_weight_decay=trust_decay,
            momentum_scaling=group["momentum_scaling"],
            zero_norm=group["zero_norm"],
            trust_clip=group["trust_clip"],
            adapt=bool(decay != 0 if group["adapt"] == "decayed" else group["adapt"]),
        )


def trust_ratio_of_numbers(
    rule: Rule, lr: float, weight_norm: float, other_norm: float
) -> tuple[float, float]:
    """Return the trust ratio and the weight decay of one tensor.

    Args:
        rule: the hyper-parameters.
        lr: the learning rate as a number.
        weight_norm: ||w||.
        other_norm: ||g||, or ||g + weight_decay * w|| if trust_norm is "decayed".

    """
    vanishing = weight_norm == 0.0 or other_norm == 0.0
    if vanishing and rule.zero_norm == "skip":
        return 1.0, 0.0
    if vanishing and rule.zero_norm == "one":
        ratio = 1.0
    else:
        denominator = other_norm + rule.eps
        if rule.trust_norm == "separate":
            denominator += rule.trust_weight_decay * weight_norm
        scaled_norm = rule.trust_coefficient * weight_norm
        # Divide by 0 as tensors do: under "raw" the result must be inf or NaN, not an exception.
        unbounded = math.inf if scaled_norm > 0.0 else math.nan
        ratio = scaled_norm / denominator if denominator != 0.0 else unbounded
    if rule.trust_clip:
        # If lr is 0, the last case is a ratio of NaN: all others are at least 0.
        ratio = 1.0 if ratio >= lr else ratio / lr if lr else math.nan
    return ratio, rule.weight_decay


def trust_ratio_of_tensors(
    rule: Rule, weight_norm: Tensor, other_norm: Tensor
) -> tuple[Tensor, Tensor | float]:
    """Return the trust ratios and weight decays of tensors, without a host sync.

    As `trust_ratio_of_numbers`, for 1-D tensors of norms. The decay is 1-D under zero_norm "skip".
    """
    denominator, decay = other_norm, rule.weight_decay
    if rule.trust_norm == "separate" and rule.trust_weight_decay:
        share = rule.trust_weight_decay
        if isinstance(share, Tensor):
            denominator = denominator + weight_norm * share
        else:
            denominator = denominator.add(weight_norm, alpha=share)
    if rule.eps:
        denominator = denominator + rule.eps
    if rule.zero_norm == "raw":
        return _clip(rule, rule.trust_coefficient * weight_norm / denominator), decay
    vanishing = torch.minimum(weight_norm, other_norm) == 0
    if denominator.requires_grad:
        # Autograd would propagate a NaN from here even though the ratio is overwritten below.
        denominator = denominator.masked_fill(vanishing, 1.0)
    ratio = rule.trust_coefficient * weight_norm / denominator
    if rule.zero_norm == "one":
        return _clip(rule, ratio.masked_fill_(vanishing, 1.0)), decay
    ratio = _clip(rule, ratio).masked_fill_(vanishing, 1.0)
    return ratio, (torch.ones_like(ratio) * decay).masked_fill(vanishing, 0.0) if decay else decay


def _clip(rule: Rule, ratio: Tensor) -> Tensor:
    # Not clamp(ratio / lr, max=1), because at lr 0 a ratio of 0 would become NaN.
    return (ratio / rule.lr).masked_fill(ratio >= rule.lr, 1.0) if rule.trust_clip else ratio


def gains(rule: Rule, lr: Any, ratio: Any) -> tuple[Any, Any]:
    """Return the factor of u before the momentum buffer, and the factor of the buffer after it.

    For numbers the results are numbers. For a tensor of ratios, a factor that contains the ratio is
    a tensor; a factor of 1 is always a number.
    """
    if rule.momentum_scaling == "trust":
        return ratio, lr
    if rule.momentum_scaling == "classic":
        return lr * ratio, 1.0
    return 1.0, lr * ratio
