"""Norms of lists of tensors, stacked in one tensor of at least fp32, without a host sync.

The norm of a DTensor (FSDP2, tensor parallelism) is that of the whole tensor: the squares of its
shards are summed over the mesh dimensions on which it is not replicated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
# On the CPU, torch accumulates squares sequentially in a few fp32 lanes. The norm is then too small
# by 1 % at 1e8 elements and by 4 % at 3e8. Tensors of more than _LARGE elements are therefore split
# into parts of _PART, which are added up in fp64. This is as fast, with a relative error of 2e-5.
# The tensors of ResNets are smaller.
_LARGE, _PART = 1 << 22, 1 << 19


def is_dtensor(tensor: Tensor) -> bool:
    """Return True if a tensor is a DTensor, without importing torch.distributed."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "device_mesh")


# Attributes by which libraries mark a parameter that is a plain tensor but only a shard: torch's
# FSDP1 (torch/distributed/fsdp/_common_utils.py), fairscale's FSDP and Megatron's layers.
_MARKS = {
    "_is_flat_param": "it is a flat parameter of FSDP1",
    "_fsdp_flattened": "FSDP1 with use_orig_params=True keeps only a shard of it",
    "_is_sharded": "fairscale's FSDP keeps only a shard of it",
    "tensor_model_parallel": "Megatron keeps only a shard of it",
}


def refuse_hidden_shard(param: Tensor) -> None:
    """Raise RuntimeError if a parameter is a shard but no DTensor, so that its norm is unknown."""
    marks = param.__dict__
    if not marks:
        return
    for mark, why in _MARKS.items():
        # FSDP1's shards have one dimension. With more, the parameter is whole, by NO_SHARD.
        whole = mark == "_fsdp_flattened" and param.dim() > 1
        if mark != "_is_flat_param" and torch.distributed.is_available():
            alone = torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1
            whole = whole or alone
        if marks.get(mark) is True and not whole:
            raise RuntimeError(
                f"A step cannot take the norm of a whole parameter: {why}. Shard with FSDP2's "
                "fully_shard, whose DTensors are supported, or set adapt=False and do not clip"
            )


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for norms: fp32 for fp16 and bf16, because a square may exceed fp16."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def full_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype for a step over these tensors: their widest dtype, at least fp32."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        if tensor.dtype is not dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return norm_dtype(dtype)


def in_full(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the tensors in a dtype; those that have it already are not copied."""
    return [tensor.to(dtype) for tensor in tensors]


def stacked_norms(tensors: list[Tensor], params: list[Tensor], foreach: bool) -> Tensor:
    """Return the 2-norms of tensors as one 1-D tensor, of at least fp32.

    Args:
        tensors: local tensors of one dtype on one device.
        params: the parameters that they belong to. Norms are summed over the shards of DTensors.
        foreach: whether to use multi-tensor calls.

    """
    dtype = norm_dtype(tensors[0].dtype)
    large: set[int] = set()
    if dtype is torch.float32 and tensors[0].device.type == "cpu":
        large = {i for i, tensor in enumerate(tensors) if tensor.numel() > _LARGE}
    others = [tensor for i, tensor in enumerate(tensors) if i not in large] if large else tensors
    if foreach:
        norms = list(torch._foreach_norm(others, 2, dtype=dtype)) if others else []
    else:
        norms = [torch.linalg.vector_norm(t, dtype=dtype) for t in others]
    for index in sorted(large):
        norms.insert(index, _norm_in_parts(tensors[index]))
    return reduce_over_shards(torch.stack(norms), params)


def _norm_in_parts(tensor: Tensor) -> Tensor:
    flat = memory_order(tensor)
    parts = (tensor.reshape(-1) if flat is None else flat).split(_PART)
    norms = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts])
    return torch.linalg.vector_norm(norms, dtype=torch.float64).float()


def reduce_over_shards(norms: Tensor, params: list[Any]) -> Tensor:
    """Return the norms of whole tensors, given those of local shards.

    Tensors that are sharded over the same dimensions of one mesh share their all-reduces.
    """
    kinds: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for index, param in enumerate(params):
        if is_dtensor(param):
            # `is_shard` is False for the placement of FSDP2 over tensor parallelism.
            sharded = tuple(d for d, p in enumerate(param.placements) if not p.is_replicate())
            kinds.setdefault((param.device_mesh, sharded), []).append(index)
    if not kinds:
        return norms
    squares = norms.square()
    for (mesh, sharded), indices in kinds.items():
        # With CPU offload the shards are on the CPU, but a mesh of GPUs only reduces GPU tensors.
        part = squares[indices].to(mesh.device_type)
        for dimension in sharded:
            torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
        squares[indices] = part.to(squares.device)
    return squares.sqrt()


def memory_order(tensor: Tensor) -> Tensor | None:
    """Return a flat view in memory order, or None if a tensor is not dense in a known order."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).view(-1)
    return None


def host_norm(tensor: Tensor) -> float:
    """Return the 2-norm of a CPU tensor as a number."""
    if tensor.dtype is torch.float32 and (flat := memory_order(tensor)) is not None:
        # `dot` is the fastest reduction, but it adds squares in fp32. A sum near the limits of
        # fp32, small or large, is computed again in fp64 below.
        if flat.numel() > _LARGE:
            square = math.fsum(torch.dot(part, part).item() for part in flat.split(_PART))
        else:
            square = torch.dot(flat, flat).item()
        if 1e-30 < square < 1e37:
            return math.sqrt(square)
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
