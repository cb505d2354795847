"""The paths whose coefficients are stacked tensors: one by one, and by foreach.

No value is read by the host, so both may run on any device and inside a CUDA graph.
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
    """Update tensor by tensor, through autograd where asked; return the new momentum buffers.

    `weights` are the targets' values before the step. `a`, `d` and `rate` are 1-D; d is None where
    nothing decays, rate where it is 1 everywhere.
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
    """Update all tensors with a fixed number of calls.

    addcmul with the 0-d factors first is what torch's multi-tensor kernels take (pytorch#172731):
    a launch then covers dozens of tensors. In releases before 2026 each tensor has its own.
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
    # The same sum term by term: w has to be its own first term while it is still the old w.
    if d is not None:
        factors = d if rate is None else d * rate
        torch._foreach_addcmul_(params, list(factors.unbind()), params, value=-1)
    factors = a if rate is None else a * rate
    torch._foreach_addcmul_(params, list(factors.unbind()), grads, value=-1)
    if rule.momentum != 0 and rate is None:
        torch._foreach_add_(params, buffers, alpha=-rule.momentum)
    elif rule.momentum != 0 and rate is not None:
        torch._foreach_addcmul_(params, list(rate.unbind()), buffers, value=-rule.momentum)
