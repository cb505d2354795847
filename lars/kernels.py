"""Triton kernels that process many tensors in one launch, by a table of their addresses.

Only `fused_cuda` imports this module, and only if Triton is installed. A chunk is BLOCK elements of
one tensor in memory order. For each chunk, `tensor_of` is the tensor's index and `start_of` the
chunk's first element; `size_of` is the number of elements of each tensor.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def sum_squares(
    table,
    tensor_of,
    start_of,
    size_of,
    partial,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write each chunk's sum of squares, in fp32, to `partial`."""
    chunk = tl.program_id(0)
    tensor = tl.load(tensor_of + chunk)
    offsets = tl.load(start_of + chunk) + tl.arange(0, BLOCK)
    address = tl.load(table + tensor).to(tl.pointer_type(DTYPE))
    inside = offsets < tl.load(size_of + tensor)
    values = tl.load(address + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(partial + chunk, tl.sum(values * values))


@triton.jit
def finish_norms(partial, first_chunk, norms, BLOCK: tl.constexpr):
    """Add up each tensor's chunks in a fixed order, and write the square root to `norms`."""
    tensor = tl.program_id(0)
    end = tl.load(first_chunk + tensor + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.load(first_chunk + tensor), end, BLOCK):
        chunks = start + tl.arange(0, BLOCK)
        total += tl.load(partial + chunks, mask=chunks < end, other=0.0)
    tl.store(norms + tensor, tl.sqrt(tl.sum(total)))


@triton.jit
def update(
    weights,
    grads,
    buffers,
    tensor_of,
    start_of,
    size_of,
    a_of,
    d_of,
    rate_of,
    momentum,
    undampened,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    DECAYS: tl.constexpr,
    HAS_RATE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
):
    """Take the step of `rule.py` in fp32; round once, when weights and buffers are stored."""
    chunk = tl.program_id(0)
    tensor = tl.load(tensor_of + chunk)
    offsets = tl.load(start_of + chunk) + tl.arange(0, BLOCK)
    inside = offsets < tl.load(size_of + tensor)
    weight_at = tl.load(weights + tensor).to(tl.pointer_type(DTYPE)) + offsets
    grad_at = tl.load(grads + tensor).to(tl.pointer_type(DTYPE)) + offsets
    weight = tl.load(weight_at, mask=inside, other=0.0).to(tl.float32)
    step = tl.load(a_of + tensor) * tl.load(grad_at, mask=inside, other=0.0).to(tl.float32)
    if DECAYS:
        step += tl.load(d_of + tensor) * weight
    if HAS_MOMENTUM:
        buffer_at = tl.load(buffers + tensor).to(tl.pointer_type(DTYPE)) + offsets
        old = tl.load(buffer_at, mask=inside, other=0.0).to(tl.float32)
        buffer = momentum * old + undampened * step
        tl.store(buffer_at, buffer.to(DTYPE), mask=inside)
        if NESTEROV:
            step += momentum * buffer
        else:
            step = buffer
    if HAS_RATE:
        step *= tl.load(rate_of + tensor)
    tl.store(weight_at, (weight - step).to(DTYPE), mask=inside)
