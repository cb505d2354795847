"""The mathematics of one step: from norms to a trust ratio, from a ratio to three coefficients.

Every path, whatever it runs on, applies the same three numbers to a tensor:

    v <- momentum * v + (1 - dampening) * (a * g + d * w)
    w <- w - rate * v          (Nesterov: w - rate * (a * g + d * w + momentum * v))

`a` multiplies the raw gradient, so it also carries the sign of `maximize`, the loss scale and the
clipping; `d` multiplies the weights. How the paths do this is theirs; what a, d and rate are is
decided here, once for numbers (the fused CPU path) and once for stacked tensors.
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
    """One group's hyper-parameters, resolved to what a step needs."""

    lr: float | Tensor
    momentum: float
    dampening: float
    nesterov: bool
    # A number; a tensor only if autograd is to go through it.
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
        """Resolve the options that refer to other options of the group, and read tensors but lr.

        Only a weight decay that autograd is to go through stays a tensor.
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
    """Trust ratio and weight decay of one tensor.

    `other_norm` is ||g||, or ||g + weight_decay * w|| where trust_norm is "decayed".
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
        # Division as tensors do it: "raw" reproduces what its systems compute, NaN included.
        unbounded = math.inf if scaled_norm > 0.0 else math.nan
        ratio = scaled_norm / denominator if denominator != 0.0 else unbounded
    if rule.trust_clip:
        # At a rate of 0 only a NaN is below it.
        ratio = 1.0 if ratio >= lr else ratio / lr if lr else math.nan
    return ratio, rule.weight_decay


def trust_ratio_of_tensors(
    rule: Rule, weight_norm: Tensor, other_norm: Tensor
) -> tuple[Tensor, Tensor | float]:
    """`trust_ratio_of_numbers` for stacked norms, without a word from the host."""
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
        # A NaN that is overwritten below would still reach the gradient of what made it.
        denominator = denominator.masked_fill(vanishing, 1.0)
    ratio = rule.trust_coefficient * weight_norm / denominator
    if rule.zero_norm == "one":
        return _clip(rule, ratio.masked_fill_(vanishing, 1.0)), decay
    ratio = _clip(rule, ratio).masked_fill_(vanishing, 1.0)
    return ratio, (torch.ones_like(ratio) * decay).masked_fill(vanishing, 0.0) if decay else decay


def _clip(rule: Rule, ratio: Tensor) -> Tensor:
    # In place of a clamp: at a rate of 0 a ratio of 0 would become a NaN.
    return (ratio / rule.lr).masked_fill(ratio >= rule.lr, 1.0) if rule.trust_clip else ratio


def gains(rule: Rule, lr: Any, ratio: Any) -> tuple[Any, Any]:
    """What multiplies the gradient on its way into the buffer, and the buffer on its way out.

    Numbers give numbers, a tensor of ratios gives tensors; a gain of 1 is always a number.
    """
    if rule.momentum_scaling == "trust":
        return ratio, lr
    if rule.momentum_scaling == "classic":
        return lr * ratio, 1.0
    return 1.0, lr * ratio
