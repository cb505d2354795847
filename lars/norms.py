"""Norms of lists of tensors: one stacked tensor a list, in at least fp32, never read by the host.

A DTensor (FSDP2, tensor parallel) counts with the norm of the whole tensor: its local shards'
squares are summed over the mesh dimensions that it is not replicated on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
# On the CPU torch adds up squares one after the other, in a few lanes of fp32, so that the norm of
# millions of elements is too small: by 1 % at 1e8, 4 % at 3e8. Above the first size here the sum is
# taken in parts of the second, which are added up in fp64: right to 2e-5, and as fast. ResNets stay
# below it.
_LARGE, _PART = 1 << 22, 1 << 19


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; does not import torch.distributed to find out."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "device_mesh")


# How libraries mark a parameter of which this process holds a part, and the part is a plain tensor:
# torch's FSDP1 (torch/distributed/fsdp/_common_utils.py), fairscale's FSDP, Megatron's layers.
_MARKS = {
    "_is_flat_param": "FSDP1 has put its parameters into flat ones",
    "_fsdp_flattened": "FSDP1 with use_orig_params=True has left a shard of it",
    "_is_sharded": "fairscale's FSDP has left a shard of it",
    "tensor_model_parallel": "Megatron has left a shard of it",
}


def refuse_hidden_shard(param: Tensor) -> None:
    """Raise RuntimeError for a parameter whose norm is not this tensor's, and no DTensor's."""
    marks = param.__dict__
    if not marks:
        return
    for mark, why in _MARKS.items():
        # FSDP1's shards have one dimension: with more, NO_SHARD has left the parameter whole.
        whole = mark == "_fsdp_flattened" and param.dim() > 1
        if mark != "_is_flat_param" and torch.distributed.is_available():
            alone = torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1
            whole = whole or alone
        if marks.get(mark) is True and not whole:
            raise RuntimeError(
                f"LARS cannot take the norm of a parameter whole: {why}. Shard by FSDP2's "
                "fully_shard, whose DTensors it knows, or set adapt=False and no clipping"
            )


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp16 and bf16 norms are summed in fp32: 65504 is soon squared past fp16."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def full_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which a step over these tensors loses nothing: at least fp32."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        if tensor.dtype is not dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return norm_dtype(dtype)


def in_full(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors themselves, or copies of those that are of another dtype."""
    return [tensor.to(dtype) for tensor in tensors]


def stacked_norms(tensors: list[Tensor], params: list[Tensor], foreach: bool) -> Tensor:
    """2-norms of local tensors as one 1-D tensor; `params` are the parameters they belong to."""
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
    """Norms of whole tensors from norms of local shards: one all-reduce for each kind of shard."""
    kinds: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for index, param in enumerate(params):
        if is_dtensor(param):
            # Not by `is_shard`, which is False for what FSDP2 makes of a tensor-parallel shard.
            sharded = tuple(d for d, p in enumerate(param.placements) if not p.is_replicate())
            kinds.setdefault((param.device_mesh, sharded), []).append(index)
    if not kinds:
        return norms
    squares = norms.square()
    for (mesh, sharded), indices in kinds.items():
        # Under CPU offload the shards are on the CPU, and a mesh of GPUs sums on GPUs alone.
        part = squares[indices].to(mesh.device_type)
        for dimension in sharded:
            torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
        squares[indices] = part.to(squares.device)
    return squares.sqrt()


def memory_order(tensor: Tensor) -> Tensor | None:
    """A flat view in the order of memory, or None where a tensor does not fill its memory."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1).view(-1)
    return None


def host_norm(tensor: Tensor) -> float:
    """2-norm of a CPU tensor as a number."""
    if tensor.dtype is torch.float32 and (flat := memory_order(tensor)) is not None:
        # The fastest reduction there is. Its sum of squares is fp32, so one close to what fp32
        # can hold, too small as well as too large, is worked out again below.
        if flat.numel() > _LARGE:
            square = math.fsum(torch.dot(part, part).item() for part in flat.split(_PART))
        else:
            square = torch.dot(flat, flat).item()
        if 1e-30 < square < 1e37:
            return math.sqrt(square)
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
