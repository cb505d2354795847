"""Tensors that take one step together, and the step's stages over them.

A bucket is what one group has on one device, each of its lists in one dtype: gradients, and loaded
buffers, may be of another than their weights. The lists hold local, real views: a DTensor's shard,
a complex tensor as pairs. The stages, in order: gradient norms where clipping or
telemetry asks for them early, value clipping, the update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import fused_cpu, fused_cuda
from .norms import full_dtype, host_norm, in_full, is_dtensor, norm_dtype, stacked_norms
from .rule import Rule, gains, trust_ratio_of_tensors
from .stacked import update_by_foreach, update_one_by_one

Values = Tensor | list[float]


class LayerStatistics(NamedTuple):
    """What telemetry keeps of a bucket: norms after loss scale and clipping, ratios, rates."""

    positions: list[int]
    weight_norm: Values
    gradient_norm: Values
    trust_ratio: Values
    effective_rate: Values


@dataclass
class Bucket:
    """Parallel lists, and the rule and path they are updated by.

    The paths: "single" and "foreach" (stacked.py), "fused" (fused_cpu.py), and "triton"
    (fused_cuda.py), which has a chunking.
    """

    group: dict[str, Any]
    rule: Rule
    path: str
    params: list[Tensor] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    gradient_norms: Values | None = None
    # What the gradient is multiplied by before the rule sees it: sign, loss scale, clipping.
    factor: float | Tensor = 1.0
    chunking: fused_cuda.Chunking | None = None

    def add(self, param: Tensor, position: int, grad: Tensor, buffer: Tensor | None) -> None:
        """Take in a parameter, with its gradient and its momentum buffer where it has one."""
        tensors = [param, grad] if buffer is None else [param, grad, buffer]
        if is_dtensor(param):
            tensors = [_local(t, param) for t in tensors]
        if param.is_complex():
            # Autograd hands out gradients whose conjugation is still to be done.
            tensors = [torch.view_as_real(t.resolve_conj()) for t in tensors]
        self.params.append(param)
        self.positions.append(position)
        self.weights.append(tensors[0])
        self.grads.append(tensors[1])
        self.buffers += tensors[2:]

    def make_chunking(self, chunkings: dict[Any, fused_cuda.Chunking], key: Any) -> None:
        """Find or make the Triton path's chunking; go by foreach if layouts or dtypes are mixed."""
        for i in range(len(self.weights)):
            if not fused_cpu.same_memory(self.weights[i], self.grads[i], self.buffers[i : i + 1]):
                self.path = "foreach"
                return
        sizes = [weight.numel() for weight in self.weights]
        if key not in chunkings or chunkings[key].sizes != sizes:
            first = self.weights[0]
            chunkings[key] = fused_cuda.Chunking(sizes, first.device, first.dtype)
        self.chunking = chunkings[key]

    def scale(self, factor: Tensor) -> None:
        """Multiply the factor by a 0-d tensor."""
        if self.path == "fused":
            self.factor = float(self.factor) * factor.item()
        else:
            self.factor = self.factor * factor.to(self.weights[0].device, non_blocking=True)

    @property
    def full(self) -> torch.dtype:
        """The dtype that loses nothing of any list."""
        return full_dtype(self.weights[0], self.grads[0], *self.buffers[:1])

    def _stacked_norms(self, role: str, tensors: list[Tensor]) -> Tensor:
        """2-norms of a list that runs parallel to the bucket's parameters; `role` names it."""
        if self.chunking is not None:
            return self.chunking.norms(role, tensors)
        return stacked_norms(tensors, self.params, foreach=self.path == "foreach")

    def total_gradient_norm(self) -> Tensor:
        """2-norm of all raw gradients here; their norms are kept for the rule."""
        if self.path == "fused":
            self.gradient_norms = [host_norm(grad) for grad in self.grads]
        else:
            self.gradient_norms = self._stacked_norms("grads", self.grads)
        return torch.linalg.vector_norm(as_tensor(self.gradient_norms))

    def clip_by_value(self, limit: float) -> None:
        """Replace the gradients by clamped copies of what they stand for."""
        self.grads = [(g * self.factor).clamp(-limit, limit) for g in self.grads]
        self.factor, self.gradient_norms = 1.0, None

    def update(self, record: bool) -> LayerStatistics | None:
        """Take the step; return what telemetry wants of it."""
        columns: tuple[Values, ...]
        if self.path == "fused":
            known = self.gradient_norms
            assert not isinstance(known, Tensor)
            lists = (self.weights, self.grads, self.buffers)
            columns = fused_cpu.update(*lists, self.rule, float(self.factor), known, record)
        else:
            columns = self._update_stacked(record)
        if self.path in ("fused", "triton"):
            # Neither kernel tells autograd that what it has saved of the weights is stale now.
            torch.autograd.graph.increment_version(self.weights)
        return LayerStatistics(self.positions, *columns) if record else None

    def trust_ratios(self, record: bool = False) -> tuple[Tensor, Tensor | float, Tensor, Tensor]:
        """Stacked ratios, weight decay, weight norms and gradient norms.

        Norms that neither the rule nor `record` asks for are left empty.
        """
        rule, decay = self.rule, self.rule.weight_decay
        factor: Any = self.factor
        first = self.weights[0]
        weight_norms = gradient_norms = first.new_empty(0)
        if rule.adapt or record:
            weight_norms = self._stacked_norms("weights", self.weights)
        if record or (rule.adapt and rule.trust_norm == "separate"):
            known = self.gradient_norms
            raw_norms = (
                known if isinstance(known, Tensor) else self._stacked_norms("grads", self.grads)
            )
            is_sign = isinstance(factor, float) and abs(factor) == 1.0
            gradient_norms = raw_norms if is_sign else raw_norms * abs(factor)
        if not rule.adapt:
            ones = torch.ones(len(self.weights), dtype=norm_dtype(first.dtype), device=first.device)
            return ones, decay, weight_norms, gradient_norms
        other_norms = gradient_norms
        if rule.trust_norm == "decayed":
            grads, weights = (in_full(tensors, self.full) for tensors in (self.grads, self.weights))
            sums = [g * factor + w * decay for g, w in zip(grads, weights, strict=True)]
            other_norms = stacked_norms(sums, self.params, foreach=self.path != "single")
        ratios, decays = trust_ratio_of_tensors(rule, weight_norms, other_norms)
        return ratios, decays, weight_norms, gradient_norms

    def _update_stacked(self, record: bool) -> tuple[Tensor, ...]:
        rule, targets = self.rule, self.weights
        differentiable = self.group["differentiable"]
        if differentiable:
            # Autograd keeps what the norms and the decay read; the update is in place.
            self.weights = [weight.clone() for weight in targets]
        ratios, decay, weight_norms, gradient_norms = self.trust_ratios(record)
        gain, rate = gains(rule, rule.lr, ratios)
        unscaled = isinstance(self.factor, float) and self.factor == 1.0
        a = stack(gain if unscaled else gain * self.factor, ratios)
        d = stack(gain * decay, ratios) if isinstance(decay, Tensor) or decay else None
        b = None if rule.momentum_scaling == "classic" else stack(rate, ratios)
        if self.chunking is not None:
            self.chunking.update(self.weights, self.grads, self.buffers, rule, a, d, b)
            return weight_norms, gradient_norms, ratios, ratios * rule.lr if record else ratios
        # A factor in fp16 would lose what is below 6e-8: half types take the step in fp32.
        dtype = self.full
        lists = (self.weights, self.grads, self.buffers)
        weights, grads, buffers = (in_full(tensors, dtype) for tensors in lists)
        a, d, b = a.to(dtype), d if d is None else d.to(dtype), b if b is None else b.to(dtype)
        if differentiable:
            new = update_one_by_one(
                targets, weights, grads, buffers, rule, a, d, b, differentiable=True
            )
            self.buffers = [n.to(old.dtype) for n, old in zip(new, self.buffers, strict=True)]
        else:
            if self.path == "foreach":
                update_by_foreach(weights, grads, buffers, rule, a, d, b)
            else:
                update_one_by_one(weights, weights, grads, buffers, rule, a, d, b)
            for own, updated in ((self.weights, weights), (self.buffers, buffers)):
                if own and own[0] is not updated[0]:
                    torch._foreach_copy_(own, updated)
        return weight_norms, gradient_norms, ratios, ratios * rule.lr if record else ratios


def gradient_of(param: Tensor) -> Tensor:
    """A parameter's gradient, in a kind of numbers that has norms and that the parameter has."""
    grad = param.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise RuntimeError("LARS does not support sparse gradients: norms need all of them")
    if grad.shape != param.shape:
        raise wrong_shape(param, grad, "gradient")
    if grad.is_neg():  # autograd may hand one out whose sign is still to be changed
        grad = grad.resolve_neg()
    if grad.dtype is not param.dtype:
        if not (grad.is_floating_point() or grad.is_complex()):
            return grad.to(param.dtype)
        if param.is_complex() and not grad.is_complex():
            return grad.to(torch.promote_types(param.dtype, grad.dtype))
    return grad


def wrong_shape(param: Tensor, tensor: Tensor, what: str) -> RuntimeError:
    """The error for a tensor that is not of its parameter's shape: kernels take it so."""
    return RuntimeError(
        f"The {what} has shape {tuple(tensor.shape)}, its parameter {tuple(param.shape)}: the "
        "parameter was resized, or a checkpoint has its parameters in another order"
    )


def _local(tensor: Any, param: Any) -> Tensor:
    # A gradient may come in another placement than its parameter's, from tensor parallelism.
    if tensor.placements != param.placements:
        tensor = tensor.redistribute(param.device_mesh, param.placements)
    return tensor.to_local()


def as_tensor(values: Values) -> Tensor:
    """Numbers of the fused CPU path in the precision they have; a tensor as it is."""
    if isinstance(values, Tensor):
        return values
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def stack(value: Tensor | float, like: Tensor) -> Tensor:
    """Repeat a number or 0-d tensor along a 1-D tensor; a 1-D tensor is left as it is."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value
    return torch.ones_like(like) * value


def choose_path(group: dict[str, Any]) -> str:
    """Pick the path for a group: what it asks for, else the fastest that is safe for all of it."""
    params = [p for p in group["params"] if p.grad is not None]
    distributed = any(is_dtensor(p) for p in params)
    if group["differentiable"]:
        return "single"
    if group["foreach"] or (group["fused"] and not all(_has_memory(p) for p in params)):
        return "foreach"
    if group["fused"]:
        return "fused"
    if group["foreach"] is False or group["fused"] is False:
        return "single"
    if any(type(p) not in (Tensor, torch.nn.Parameter) and not is_dtensor(p) for p in params):
        return "single"
    on_cpu = all(p.device.type == "cpu" for p in params)
    return "fused" if on_cpu and not distributed and not group["capturable"] else "foreach"


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is no DTensor, FakeTensor or other subclass that stands for its values."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def path_on(param: Tensor, path: str) -> str:
    """Turn "fused" into what it is on a parameter's device."""
    if path != "fused":
        return path
    if param.device.type == "cpu":
        return "fused"
    usable = param.device.type == "cuda" and fused_cuda.usable(param.device, param.dtype)
    return "triton" if usable else "foreach"


def check_not_capturing(param: Tensor, what: str) -> None:
    """Raise RuntimeError inside a CUDA graph's capture: `what` cannot be replayed."""
    if param.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"LARS cannot be captured in a CUDA graph with {what}")
