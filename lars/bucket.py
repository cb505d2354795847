"""Buckets: tensors of one group that are updated together.

The tensors of a bucket are on one device. All its weights have one dtype, and so do all its
gradients and all its buffers; the three dtypes may differ. The lists hold local, real views: the
shard of a DTensor, and a complex tensor as pairs of numbers. The stages of a step are the gradient
norms (if clipping needs them), clipping by value, and the update.
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
    """The telemetry of a bucket, one value for each parameter.

    Attributes:
        positions: indices of the parameters among those of all groups.
        weight_norm: norms of the weights before the step.
        gradient_norm: norms of the gradients, unscaled and after clipping.
        trust_ratio: trust ratios.
        effective_rate: lr * trust_ratio.

    """

    positions: list[int]
    weight_norm: Values
    gradient_norm: Values
    trust_ratio: Values
    effective_rate: Values


@dataclass
class Bucket:
    """Tensors that take a step together, with the rule and the path of that step.

    Attributes:
        group: the parameter group.
        rule: the hyper-parameters.
        path: "single" or "foreach" (stacked.py), "fused" (fused_cpu.py) or "triton"
            (fused_cuda.py).
        params: the parameters as the user passed them.
        positions: their indices among the parameters of all groups.
        weights: local, real views of `params`.
        grads: their gradients, likewise.
        buffers: their momentum buffers, likewise; empty if momentum is 0.
        gradient_norms: norms of `grads`, once they are known.
        factor: multiplies the gradient before the rule: sign, loss scale and clipping.
        chunking: the Triton path's layout of the tensors.

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
    factor: float | Tensor = 1.0
    chunking: fused_cuda.Chunking | None = None

    def add(self, param: Tensor, position: int, grad: Tensor, buffer: Tensor | None) -> None:
        """Add a parameter with its gradient and its momentum buffer, if any.

        Args:
            param: the parameter, which may be a DTensor or complex.
            position: its index among the parameters of all groups.
            grad: its gradient, of the parameter's shape.
            buffer: its momentum buffer, or None if momentum is 0.

        """
        tensors = [param, grad] if buffer is None else [param, grad, buffer]
        if is_dtensor(param):
            tensors = [local(t, param) for t in tensors]
        if param.is_complex():
            # Autograd may return a lazily conjugated gradient.
            tensors = [torch.view_as_real(t.resolve_conj()) for t in tensors]
        self.params.append(param)
        self.positions.append(position)
        self.weights.append(tensors[0])
        self.grads.append(tensors[1])
        self.buffers += tensors[2:]

    def make_chunking(self, chunkings: dict[Any, fused_cuda.Chunking], key: Any) -> None:
        """Set the Triton path's chunking; use foreach instead if layouts or dtypes differ.

        `chunkings` caches the chunkings between steps, by `key`.
        """
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
        """Multiply `self.factor` by a 0-d tensor."""
        if self.path == "fused":
            self.factor = float(self.factor) * factor.item()
        else:
            self.factor = self.factor * factor.to(self.weights[0].device, non_blocking=True)

    @property
    def full(self) -> torch.dtype:
        """The dtype that holds every value of the three lists, at least fp32."""
        return full_dtype(self.weights[0], self.grads[0], *self.buffers[:1])

    def _stacked_norms(self, role: str, tensors: list[Tensor]) -> Tensor:
        """Return the 2-norms of tensors, one for each parameter; `role` is the list's name."""
        if self.chunking is not None:
            return self.chunking.norms(role, tensors)
        return stacked_norms(tensors, self.params, foreach=self.path == "foreach")

    def total_gradient_norm(self) -> Tensor:
        """Return the 2-norm of all gradients of the bucket before `factor`; keep their norms."""
        if self.path == "fused":
            self.gradient_norms = [host_norm(grad) for grad in self.grads]
        else:
            self.gradient_norms = self._stacked_norms("grads", self.grads)
        return torch.linalg.vector_norm(as_tensor(self.gradient_norms))

    def clip_by_value(self, limit: float) -> None:
        """Replace the gradients by copies, multiplied by `factor` and clamped to +-limit."""
        self.grads = [(g * self.factor).clamp(-limit, limit) for g in self.grads]
        self.factor, self.gradient_norms = 1.0, None

    def update(self, record: bool) -> LayerStatistics | None:
        """Take the step; return its statistics if `record`, else None."""
        columns: tuple[Values, ...]
        if self.path == "fused":
            known = self.gradient_norms
            assert not isinstance(known, Tensor)
            lists = (self.weights, self.grads, self.buffers)
            columns = fused_cpu.update(*lists, self.rule, float(self.factor), known, record)
        else:
            columns = self._update_stacked(record)
        if self.path in ("fused", "triton"):
            # Neither kernel reports to autograd that it has changed the weights in place.
            torch.autograd.graph.increment_version(self.weights)
        return LayerStatistics(self.positions, *columns) if record else None

    def trust_ratios(self, record: bool = False) -> tuple[Tensor, Tensor | float, Tensor, Tensor]:
        """Return the stacked trust ratios, weight decay, weight norms and gradient norms.

        Norms that neither the rule nor `record` needs are empty.
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
            # The update is in place, and autograd saves the weights that norms and decay read.
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
        # A factor below 6e-8 would underflow in fp16, so half types take the step in fp32.
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
    """Return a parameter's gradient as floating-point numbers, complex if the parameter is.

    Raises:
        RuntimeError: the gradient is sparse, or its shape is not the parameter's.

    """
    grad = param.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise RuntimeError("A step does not support sparse gradients: use dense ones")
    if grad.shape != param.shape:
        raise wrong_shape(param, grad, "gradient")
    if grad.is_neg():  # autograd may return a lazily negated gradient
        grad = grad.resolve_neg()
    if grad.dtype is not param.dtype:
        if not (grad.is_floating_point() or grad.is_complex()):
            return grad.to(param.dtype)
        if param.is_complex() and not grad.is_complex():
            return grad.to(torch.promote_types(param.dtype, grad.dtype))
    return grad


def wrong_shape(param: Tensor, tensor: Tensor, what: str) -> RuntimeError:
    """Return the error for a gradient or buffer whose shape is not that of its parameter."""
    return RuntimeError(
        f"The {what} has shape {tuple(tensor.shape)}, its parameter {tuple(param.shape)}: the "
        "parameter was resized, or a checkpoint has the parameters in another order"
    )


def local(tensor: Any, param: Any) -> Tensor:
    """Return this rank's shard of a DTensor that belongs to a parameter."""
    # Under tensor parallelism a gradient may have another placement than its parameter.
    if tensor.placements != param.placements:
        tensor = tensor.redistribute(param.device_mesh, param.placements)
    return tensor.to_local()


def as_tensor(values: Values) -> Tensor:
    """Return values as a tensor: a list of Python floats becomes fp64 on the CPU."""
    if isinstance(values, Tensor):
        return values
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def stack(value: Tensor | float, like: Tensor) -> Tensor:
    """Expand a number or 0-d tensor to the shape of a 1-D tensor; return a 1-D tensor as it is."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value
    return torch.ones_like(like) * value


def choose_path(group: dict[str, Any]) -> str:
    """Return a group's path: the one that its options name, else the fastest that is supported.

    The result is "single", "foreach" or "fused". `path_on` resolves "fused" for each device.
    """
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
    """Return True unless a tensor's class dispatches for itself, as DTensor and FakeTensor do."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def path_on(param: Tensor, path: str) -> str:
    """Return the path on a parameter's device: "fused" may become "triton" or "foreach"."""
    if path != "fused":
        return path
    if param.device.type == "cpu":
        return "fused"
    usable = param.device.type == "cuda" and fused_cuda.usable(param.device, param.dtype)
    return "triton" if usable else "foreach"


def rate_on(param: Tensor, lr: float | Tensor, capturable: bool) -> float | Tensor:
    """Return the learning rate for a parameter, a tensor on its device if `lr` is one on another.

    A tensor on the CPU stays there.

    Raises:
        RuntimeError: a CUDA graph that is being captured would freeze the rate.

    """
    if not capturable:
        check_not_capturing(param, "capturable=False: set it to True")
    if not isinstance(lr, Tensor) or lr.device != param.device:
        check_not_capturing(param, "lr that is not a tensor on the parameter's device")
    return lr.to(param.device) if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr


def check_not_capturing(param: Tensor, what: str) -> None:
    """Raise RuntimeError during a CUDA graph capture, because `what` cannot be replayed."""
    if param.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"A step cannot be captured in a CUDA graph with {what}")
