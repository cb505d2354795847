"""The paths with stacked coefficients: tensor by tensor, and by multi-tensor (foreach) calls.

Neither syncs with the host, so both run on any device and inside a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import Rule


def update_one_by_one(
    targets: list[Tensor],
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    rule: Rule,
    a: Tensor,
    d: Tensor | None,
    rate: Tensor | None,
    differentiable: bool = False,
) -> list[Tensor]:
    """Update tensor by tensor; return the new momentum buffers.

    Args:
        targets: tensors to update in place.
        weights: their values before the step; the same tensors unless `differentiable`.
        grads: their gradients.
        buffers: their momentum buffers; empty if momentum is 0.
        rule: the hyper-parameters.
        a: factors of the gradients, 1-D.
        d: factors of the weights, 1-D; None for no weight decay.
        rate: factors of the buffers, 1-D; None if they are all 1.
        differentiable: make new buffers instead of updating in place, for autograd.

    """
    new_buffers: list[Tensor] = []
    for i, (target, weight, grad) in enumerate(zip(targets, weights, grads, strict=True)):
        step = grad * a[i] if d is None else grad * a[i] + weight * d[i]
        if rule.momentum != 0:
            buffer = buffers[i]
            if differentiable:
                buffer = buffer * rule.momentum + step * (1 - rule.dampening)
            else:
                buffer.mul_(rule.momentum).add_(step, alpha=1 - rule.dampening)
            new_buffers.append(buffer)
            step = step + buffer * rule.momentum if rule.nesterov else buffer
        target.sub_(step if rate is None else step * rate[i])
    return new_buffers


def update_by_foreach(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    rule: Rule,
    a: Tensor,
    d: Tensor | None,
    rate: Tensor | None,
) -> None:
    """Update all tensors in place, with a fixed number of calls.

    torch's multi-tensor kernels support addcmul if the 0-d factors come first (pytorch#172731). One
    launch then covers dozens of tensors. Releases before 2026 need a launch for each tensor.

    Args:
        params: weights to update in place.
        grads: their gradients.
        buffers: their momentum buffers; empty if momentum is 0.
        rule: the hyper-parameters.
        a: factors of the gradients, 1-D.
        d: factors of the weights, 1-D; None for no weight decay.
        rate: factors of the buffers, 1-D; None if they are all 1.

    """
    if rule.momentum != 0:
        torch._foreach_mul_(buffers, rule.momentum)
        torch._foreach_addcmul_(buffers, list(a.unbind()), grads, value=1 - rule.dampening)
        if d is not None:
            torch._foreach_addcmul_(buffers, list(d.unbind()), params, value=1 - rule.dampening)
        if not rule.nesterov:
            if rate is None:
                torch._foreach_sub_(params, buffers)
            else:
                torch._foreach_addcmul_(params, list(rate.unbind()), buffers, value=-1)
            return
    # Subtract the terms one by one. The decay comes first, because it needs the old weights.
    if d is not None:
        factors = d if rate is None else d * rate
        torch._foreach_addcmul_(params, list(factors.unbind()), params, value=-1)
    factors = a if rate is None else a * rate
    torch._foreach_addcmul_(params, list(factors.unbind()), grads, value=-1)
    if rule.momentum != 0 and rate is None:
        torch._foreach_add_(params, buffers, alpha=-rule.momentum)
    elif rule.momentum != 0 and rate is not None:
        torch._foreach_addcmul_(params, list(rate.unbind()), buffers, value=-rule.momentum)
