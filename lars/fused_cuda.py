"""The fused CUDA path: five launches of Triton kernels for any number of tensors.

It passes over memory about twice. Two launches compute the norms of a list of tensors (weights,
gradients) and one updates the weights. The ratios need a few more small launches. The kernels find
the tensors in tables of addresses, which are copied to the device asynchronously and only if an
address has changed. If Triton or its compiler is missing, `usable` returns False and the foreach
path is used instead.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from .rule import Rule

_BLOCK = 4096
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if the kernels run on this device and dtype.

    They are tried once. A failure is shown as a warning.
    """
    if dtype not in _DTYPES:  # Triton passes scalars to kernels as fp32, too coarse for fp64
        return False
    probe = torch.tensor([3.0, 4.0], dtype=dtype, device=device)
    try:
        return Chunking([2], device, dtype).norms("probe", [probe]).item() == 5.0
    except Exception as error:  # the exception for a missing compiler depends on the system
        warnings.warn(f"LARS falls back to foreach: Triton failed with {error!r}", stacklevel=2)
        return False


class Chunking:
    """The layout of a list of tensors in chunks of `_BLOCK` elements, and its address tables.

    The constructor waits for copies to the device. No other method does.

    Args:
        sizes: numbers of elements of the tensors.
        device: device of the tensors.
        dtype: dtype of the tensors, one of `_DTYPES`.

    """

    def __init__(self, sizes: list[int], device: torch.device, dtype: torch.dtype) -> None:
        from . import kernels

        self._kernels = kernels
        self._dtype = getattr(kernels.tl, str(dtype).removeprefix("torch."))
        self.sizes, self._device = sizes, device
        # Explicitly on the CPU, because torch's default device may be another.
        counts = torch.tensor([-(-size // _BLOCK) for size in sizes], device="cpu")
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        tensor_of = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts)
        start_of = torch.arange(len(tensor_of), device="cpu").sub_(first[tensor_of]).mul_(_BLOCK)
        self._first_chunk = first.to(device)
        size_of = torch.tensor(sizes, device=device)
        self._chunks = (tensor_of.to(device), start_of.to(device), size_of)
        self._grid = (len(tensor_of),)
        self._tables: dict[str, tuple[list[int], Tensor]] = {}
        self._spare: list[Tensor] = []
        self._captured: list[Tensor] = []

    def norms(self, role: str, tensors: list[Tensor]) -> Tensor:
        """Return the 2-norms of dense tensors, stacked in fp32. The result is deterministic.

        `role` is the name of the list, under which its address table is kept.
        """
        table = self._table(role, tensors)
        partial = torch.empty(self._grid, dtype=torch.float32, device=self._device)
        norms = torch.empty(len(self.sizes), dtype=torch.float32, device=self._device)
        with self._on_device():
            if partial.numel():
                self._kernels.sum_squares[self._grid](
                    table, *self._chunks, partial, DTYPE=self._dtype, BLOCK=_BLOCK
                )
            self._kernels.finish_norms[norms.shape](partial, self._first_chunk, norms, BLOCK=1024)
        return norms

    def update(
        self,
        weights: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor],
        rule: Rule,
        a: Tensor,
        d: Tensor | None,
        rate: Tensor | None,
    ) -> None:
        """Update all tensors in one launch.

        Args:
            weights: the tensors, of the sizes and the dtype of this chunking.
            grads: their gradients, of the same dtype and memory order.
            buffers: their momentum buffers, likewise; empty if momentum is 0.
            rule: the hyper-parameters.
            a: factors of the gradients, 1-D.
            d: factors of the weights, 1-D; None for no weight decay.
            rate: factors of the buffers, 1-D; None if they are all 1.

        """
        tables = [self._table("weights", weights), self._table("grads", grads)]
        tables.append(self._table("buffers", buffers) if buffers else tables[0])
        if not self._grid[0]:
            return
        with self._on_device():
            self._kernels.update[self._grid](
                *tables,
                *self._chunks,
                a,
                a if d is None else d,
                a if rate is None else rate,
                float(rule.momentum),
                1.0 - rule.dampening,
                DTYPE=self._dtype,
                BLOCK=_BLOCK,
                DECAYS=d is not None,
                HAS_RATE=rate is not None,
                HAS_MOMENTUM=bool(buffers),
                NESTEROV=rule.nesterov,
            )

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        if self._device.type == "cuda":
            return torch.cuda.device(self._device)
        return contextlib.nullcontext()

    def _table(self, role: str, tensors: list[Tensor]) -> Tensor:
        """Return the addresses of a list of tensors as int64 on the device."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        known, table = self._tables.get(role, (None, None))
        on_cuda = self._device.type == "cuda"
        if on_cuda and torch.cuda.is_current_stream_capturing():
            return self._table_to_replay(addresses, table if known == addresses else None)
        if table is None or known != addresses:
            host = torch.tensor(addresses, device="cpu")
            table = host.pin_memory().to(self._device, non_blocking=True) if on_cuda else host
            self._tables[role] = (addresses, table)
        while on_cuda and len(self._spare) < 4:
            spare = torch.empty(len(addresses), dtype=torch.int64, device="cpu")
            self._spare.append(spare.pin_memory())
        return table

    def _table_to_replay(self, addresses: list[int], table: Tensor | None) -> Tensor:
        """Return a table for a CUDA graph during its capture.

        The memory that a replay reads is kept for the lifetime of this object.
        """
        if table is None:
            # Pinned memory cannot be allocated during a capture, so eager steps reserve some.
            if not self._spare:
                raise RuntimeError(
                    "LARS can capture at most four steps after each eager step: "
                    "take an eager step first"
                )
            pinned = self._spare.pop().copy_(torch.tensor(addresses, device="cpu"))
            self._captured.append(pinned)
            table = pinned.to(self._device, non_blocking=True)
        self._captured.append(table)
        return table
