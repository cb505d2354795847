"""The fused CPU path: norms and update of one tensor after the other, while each is in cache.

It passes over memory about twice. The update is torch's fused SGD kernel, which computes

    u = +-g + weight_decay * w;  v <- momentum * v + (1 - dampening) * u;  w <- w - lr * v

With its weight_decay = d / a and its dampening = 1 - a * (1 - dampening), this is a LARS step (for
a and d see rule.py) under every momentum_scaling. A Nesterov step takes two calls of the kernel. No
temporary tensor is needed.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .norms import full_dtype, host_norm
from .rule import Rule, gains, trust_ratio_of_numbers

_LARGEST = torch.finfo(torch.float32).max
Columns = tuple[list[float], list[float], list[float], list[float]]


def update(
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    rule: Rule,
    factor: float,
    gradient_norms: list[float] | None,
    record: bool,
) -> Columns:
    """Update tensors in place and return the columns of `LayerStatistics`.

    Args:
        weights: CPU tensors of one dtype.
        grads: their gradients.
        buffers: their momentum buffers; empty if momentum is 0.
        rule: the hyper-parameters.
        factor: multiplies the gradients: sign, loss scale and clipping.
        gradient_norms: norms of `grads` before `factor`, if they are known.
        record: whether to return the columns; they are empty otherwise.

    """
    lr = float(rule.lr)
    columns: Columns = ([], [], [], [])
    if not rule.adapt:
        if record:
            known = [host_norm(g) for g in grads] if gradient_norms is None else gradient_norms
            count = len(weights)
            columns = (
                [host_norm(weight) for weight in weights],
                [abs(factor) * norm for norm in known],
                [1.0] * count,
                [lr] * count,
            )
        gain, rate = gains(rule, lr, 1.0)
        _apply(weights, grads, buffers, rule, gain * factor, gain * rule.weight_decay, rate)
        return columns
    decayed = rule.trust_norm == "decayed"
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        gradient_norm = math.nan
        if gradient_norms is not None:
            gradient_norm = abs(factor) * gradient_norms[i]
        elif record or not decayed:
            gradient_norm = abs(factor) * host_norm(grad)
        weight_norm, other_norm = host_norm(weight), gradient_norm
        if decayed:
            full = grad.to(full_dtype(grad, weight)) * factor
            other_norm = host_norm(full.add_(weight, alpha=rule.weight_decay))
        ratio, decay = trust_ratio_of_numbers(rule, lr, weight_norm, other_norm)
        gain, rate = gains(rule, lr, ratio)
        buffer = buffers[i : i + 1]
        _apply([weight], [grad], buffer, rule, gain * factor, gain * decay, rate)
        if record:
            row = (weight_norm, gradient_norm, ratio, lr * ratio)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    return columns


def _apply(
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    rule: Rule,
    a: float,
    d: float,
    rate: float,
) -> None:
    """Update tensors that share a, d and rate, with the kernel if it can express the step."""
    size, remaining = abs(a), list(range(len(weights)))
    # On this path the norm of a gradient below 1e-38 is exact, so its factor may exceed fp32.
    fits = size < _LARGEST and rate < _LARGEST and size * rate < _LARGEST
    if fits and _kernel_can(rule, size, d, rate, weights[0].dtype):
        linear = [i for i in remaining if same_memory(weights[i], grads[i], buffers[i : i + 1])]
        if linear:
            lists = [weights, grads, buffers] if buffers else [weights, grads]
            _kernel_step([[row[i] for i in linear] for row in lists], rule, a, d, rate)
        remaining = sorted(set(remaining) - set(linear))
    for i in remaining:
        dtype = full_dtype(weights[i], grads[i], *buffers[i : i + 1]) if fits else torch.float64
        step = grads[i].to(dtype) * a
        if d:
            step.add_(weights[i], alpha=d)
        if rule.momentum != 0:
            buffer = buffers[i].to(dtype)
            buffer.mul_(rule.momentum).add_(step, alpha=1.0 - rule.dampening)
            if buffer is not buffers[i]:
                buffers[i].copy_(buffer)
            step = step.add_(buffer, alpha=rule.momentum) if rule.nesterov else buffer
        weights[i].sub_(step, alpha=rate)


def _kernel_step(lists: list[list[Tensor]], rule: Rule, a: float, d: float, rate: float) -> None:
    """Update tensors with torch's fused SGD kernel. `lists`: weights, gradients, momentum buffers.

    The kernel's own Nesterov step adds u without the factor `a`. Another one is taken in two calls:

        w' <- w - rate * u;  v <- momentum * v + (1 - dampening) * u;  w <- w' - rate * momentum * v

    The second call computes u from w', as (a * g + d * w') / (1 - rate * d).
    """
    size, maximize = abs(a), a < 0
    decay = d / size if d else 0.0
    if rule.momentum == 0:
        _kernel(lists[:2], decay, 0.0, rate * size, 0.0, maximize)
    elif size == 1.0 or not rule.nesterov:
        dampening = 1.0 - (1.0 - rule.dampening) * size
        _kernel(lists, decay, rule.momentum, rate, dampening, maximize, rule.nesterov)
    else:
        dampening = 1.0 - (1.0 - rule.dampening) * size / (1.0 - rate * d)
        _kernel(lists[:2], decay, 0.0, rate * size, 0.0, maximize)
        _kernel(lists, decay, rule.momentum, rate * rule.momentum, dampening, maximize)


def _kernel(
    lists: list[list[Tensor]],
    weight_decay: float,
    momentum: float,
    lr: float,
    dampening: float,
    maximize: bool,
    nesterov: bool = False,
) -> None:
    torch._fused_sgd_(
        lists[0], lists[1], lists[2] if len(lists) > 2 else [], weight_decay=weight_decay,
        momentum=momentum, lr=lr, dampening=dampening, nesterov=nesterov, maximize=maximize,
        is_first_step=False,
    )  # fmt: skip


def _kernel_can(rule: Rule, size: float, d: float, rate: float, dtype: torch.dtype) -> bool:
    """Return True if the kernel's hyper-parameters can express the step precisely enough."""
    if not _kernel_updates(dtype):
        return False
    if size == 0.0:
        return d == 0.0 and not rule.nesterov
    if rule.momentum == 0 or size == 1.0:
        return True
    # The kernel computes `size` as 1 - dampening, with a relative error of 1e-16 / size.
    if dtype is torch.float64 or size < 1e-9:
        return False
    # A Nesterov step stores w between its two calls, and computes u from it.
    return not rule.nesterov or (dtype is torch.float32 and abs(rate * d) <= 0.5)


@functools.cache
def _kernel_updates(dtype: torch.dtype) -> bool:
    """Return True if the kernel stores what it computes: torch 2.6 loses vectors of half types."""
    if dtype not in (torch.float16, torch.bfloat16):
        return True
    weight, grad = (torch.ones(64, dtype=dtype, device="cpu") for _ in range(2))
    _kernel([[weight], [grad]], 0.0, 0.0, 0.5, 0.0, maximize=False)
    return bool((weight == 0.5).all())


def same_memory(weight: Tensor, grad: Tensor, buffers: list[Tensor]) -> bool:
    """Return True if the tensors have one dtype and one memory order.

    Fused kernels require it: they iterate over memory and read all lists as the weights' dtype.
    """
    dtype = weight.dtype
    if grad.dtype is not dtype or (buffers and buffers[0].dtype is not dtype):
        return False
    tensors = [weight, grad, *buffers]
    if all(t.is_contiguous() for t in tensors):
        return True
    return weight.dim() == 4 and all(
        t.is_contiguous(memory_format=torch.channels_last) for t in tensors
    )
