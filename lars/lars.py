"""The LARS optimizer: the interface of torch.optim around the update of `rule.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable

from .bucket import (
    Bucket,
    as_tensor,
    check_not_capturing,
    choose_path,
    gradient_of,
    path_on,
    rate_on,
    wrong_shape,
)
from .layerwise import LayerwiseOptimizer, run_step
from .norms import refuse_hidden_shard
from .presets import ABOVE_ZERO, OPTIONS, complete, fill_from_preset
from .rule import Rule
from .values import make_plain, number


class LARS(LayerwiseOptimizer):
    r"""Implement LARS (layer-wise adaptive rate scaling) for SGD with momentum.

    Source: Yang You, Igor Gitman and Boris Ginsburg, "Large Batch Training of Convolutional
    Networks", arXiv 1708.03888. For each parameter tensor w with gradient g, a step computes::

        u = g + weight_decay * w
        ratio = trust_coefficient * ||w|| / (||g|| + weight_decay * ||w|| + eps)
        v = momentum * v + (1 - dampening) * lr * ratio * u
        w = w - v

    v is the state `momentum_buffer`; after the first step it is lr * ratio * u. With nesterov,
    w = w - (lr * ratio * u + momentum * v). The paper calls lr gamma (the global learning rate),
    trust_coefficient eta, weight_decay beta and ratio lambda (the local learning rate).

    The paper does not define the ratio if a norm is 0. It is 1 here, so that a tensor that is
    initialized to zero trains. This is the only departure of the default variant, "paper".

    Every argument but `params` is the default of a group option with the same name. A group option
    may be changed between steps. A step does not modify `p.grad`. If the attribute `telemetry` is
    True, `layer_statistics()` and `grad_norm` are available after each step.

    Args:
        params: tensors, (name, tensor) pairs, or parameter groups as `parameter_groups` makes them.
        lr: global learning rate: a number of 0 or more, or a tensor with one element.
        momentum: factor of the momentum buffer. At 0 there is no buffer.
        dampening: fraction of each update, but the first, that is left out of the buffer, as in
            torch.optim.SGD.
        weight_decay: factor of w in u. The decay is coupled (L2), not decoupled.
        nesterov: use Nesterov momentum. It needs momentum above 0 and dampening 0.
        variant: key of `PRESETS`, the settings of a published implementation. It sets the options
            from `trust_coefficient` to `adapt` that are None. Departures from "paper":

            - "blog": eps 1e-15, momentum_scaling "none", zero_norm "raw".
            - "quadra": eps 1e-8, momentum_scaling "trust", zero_norm "skip", adapt "decayed".
            - "torchlars": eps 1e-8, momentum_scaling "trust".
            - "braintools": eps 1e-8, momentum_scaling "trust", trust_norm "decayed".
            - "pytorch-lars": trust_coefficient 0.1, trust_weight_decay "momentum",
              momentum_scaling "none", zero_norm "raw".
            - "pytorch-lars-v1": trust_coefficient 0.1, trust_weight_decay "momentum",
              zero_norm "raw".
            - "timm": eps 1e-8, momentum_scaling "trust", adapt "decayed".
            - "larc": trust_coefficient 0.02, eps 1e-8, momentum_scaling "trust",
              zero_norm "skip", trust_clip True.
        trust_coefficient: factor of the ratio. "paper": 0.001.
        eps: added to the denominator of the ratio. "paper": 0.
        trust_norm: denominator of the ratio, without eps. "separate" ("paper"):
            ||g|| + weight_decay * ||w||. "decayed": ||u||.
        trust_weight_decay: factor of ||w|| in the "separate" denominator: a number of 0 or more,
            "weight_decay" ("paper") or "momentum" for the value of that option.
        momentum_scaling: where lr and ratio enter. The settings differ once lr ("trust") or ratio
            ("none") changes. "classic" ("paper"): both before the buffer, as above.
            "trust": v = momentum * v + (1 - dampening) * ratio * u, w = w - lr * v.
            "none": v = momentum * v + (1 - dampening) * u, w = w - lr * ratio * v.
        zero_norm: treatment of a tensor if ||w|| is 0, or ||g|| is ("decayed": ||u||).
            "one" ("paper"): ratio 1. "skip": ratio 1, no weight decay and no trust_clip.
            "raw": the formula, so that 0/0 is NaN and a tensor of zeros stays zero.
        trust_clip: replace the ratio by min(ratio / lr, 1), as LARC does. "paper": False.
        adapt: whether there is a trust ratio. True ("paper"). False: ratio 1, as in SGD.
            "decayed": True in groups whose weight_decay is not 0, else False.
        clip_norm: scale the group's gradients by min(1, clip_norm / norm), with the norm over the
            gradients of all groups. None: do not clip.
        clip_value: clamp each gradient element to [-clip_value, clip_value], after clip_norm and
            before the ratio. None: do not clamp.
        foreach: use multi-tensor calls. If foreach and fused are None, this is the path of tensors
            that are not on the CPU, of DTensors and of capturable groups.
        fused: pass over memory about twice. On the CPU this is torch's fused SGD kernel, and the
            default. On CUDA it is a Triton kernel, or foreach if Triton does not work. If one of
            foreach and fused is False and neither is True, tensors are updated one by one.
        maximize: ascend along the gradient: g is replaced by -g.
        capturable: allow a step in a CUDA graph. On CUDA lr must then be a tensor on the device.
            Take one eager step before the capture.
        differentiable: let autograd go through the step, one tensor at a time. It excludes foreach
            and fused.

    Raises:
        ValueError: the constructor or `add_param_group` gets an invalid option.
        RuntimeError: `step` finds a sparse gradient, a gradient or buffer whose shape is not that
            of its parameter, a shard whose whole norm it cannot know (FSDP1, fairscale, Megatron),
            or a CUDA graph capture that it does not support.

    """

    # Norm of all gradients, unscaled and before clipping. None unless clipping or telemetry is on.
    grad_norm: Tensor | None = None
    _chunkings: dict[Any, Any] | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        variant: str = "paper",
        trust_coefficient: float | None = None,
        eps: float | None = None,
        trust_norm: str | None = None,
        trust_weight_decay: float | str | None = None,
        momentum_scaling: str | None = None,
        zero_norm: str | None = None,
        trust_clip: bool | None = None,
        adapt: bool | str | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        make_plain(defaults, OPTIONS & defaults.keys())
        complete({**defaults, "params": []})
        super().__init__(params, defaults)

    def _complete(self, group: dict[str, Any]) -> None:
        """Fill in and check a group's options. One that is None has the value of its variant."""
        complete(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or loaded state. Options that it lacks get their default values."""
        super().__setstate__(state)
        for group in self.param_groups:
            fill_from_preset(group)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the closure's loss, or None without a closure.

        The step is skipped if GradScaler has found an infinite gradient.

        Args:
            closure: evaluates the model again, computes the gradients and returns the loss. It is
                called once, before the step.

        """
        return run_step(self, closure)

    def _take_step(self) -> None:
        buckets: list[Bucket] = self._make_buckets()
        self.grad_norm = self._clip(buckets, getattr(self, "grad_scale", None))
        statistics = [bucket.update(self.telemetry) for bucket in buckets]
        for bucket in buckets:
            if bucket.group["differentiable"] and bucket.buffers:
                self._keep_buffers(bucket)
        self._record(statistics)
        if self.grad_norm is None and self._statistics:
            self.grad_norm = _global_norm([as_tensor(s.gradient_norm) for s in self._statistics])

    def _init_group(self, group: dict[str, Any], position: int) -> list[Bucket]:
        """Sort a group's parameters into buckets; create missing momentum buffers as zeros.

        `position` is the index of the group's first parameter among those of all groups.
        """
        make_plain(group, OPTIONS & group.keys())
        rule = Rule.from_group(group)
        path = choose_path(group)
        needs_norms = rule.adapt or self.telemetry or any(group[clip] for clip in ABOVE_ZERO)
        buckets: dict[Any, Bucket] = {}
        for index, param in enumerate(group["params"]):
            if needs_norms:
                refuse_hidden_shard(param)
            if param.grad is None:
                continue
            grad = gradient_of(param)
            buffer, fresh = None, False
            if rule.momentum != 0:
                buffer = self.state[param].get("momentum_buffer")
                if fresh := buffer is None:
                    check_not_capturing(param, "a first step: take one eagerly before")
                    buffer = self.state[param]["momentum_buffer"] = torch.zeros_like(param.detach())
                elif buffer.shape != param.shape:
                    raise wrong_shape(param, buffer, "momentum buffer")
            # A first update is not dampened, so with dampening it needs a separate bucket.
            alone = fresh and rule.dampening != 0
            buffer_dtype = None if buffer is None else buffer.dtype
            kind = (param.device, param.dtype, grad.dtype, buffer_dtype, alone)
            if kind not in buckets:
                own_rule = replace(rule, dampening=0.0) if alone else rule
                lr = rate_on(param, rule.lr, group["capturable"])
                if lr is not rule.lr:
                    own_rule = replace(own_rule, lr=lr)
                sign = -1.0 if group["maximize"] else 1.0
                own_path = path_on(param, path)
                buckets[kind] = Bucket(group, own_rule, own_path, factor=sign)
            buckets[kind].add(param, position + index, grad, buffer)
        for kind, bucket in buckets.items():
            if bucket.path == "triton":
                self._chunkings = {} if self._chunkings is None else self._chunkings
                bucket.make_chunking(self._chunkings, (position, *kind))
        return list(buckets.values())

    def _clip(self, buckets: list[Bucket], grad_scale: Tensor | None) -> Tensor | None:
        """Unscale and clip the gradients; return their global norm if a group clips, else None."""
        total = None
        if any(b.group["clip_norm"] or b.group["clip_value"] for b in buckets):
            total = _global_norm([bucket.total_gradient_norm() for bucket in buckets])
            if grad_scale is not None:
                total = total / grad_scale.to(total.device)
        for bucket in buckets:
            if grad_scale is not None:
                bucket.scale(1.0 / grad_scale)
            clip_norm, clip_value = (bucket.group[k] for k in ("clip_norm", "clip_value"))
            if total is not None and clip_norm:
                bucket.scale(torch.clamp(number(clip_norm) / total, max=1.0))
            if clip_value:
                bucket.clip_by_value(number(clip_value))
        return total

    def _keep_buffers(self, bucket: Bucket) -> None:
        for param, buffer in zip(bucket.params, bucket.buffers, strict=True):
            whole = torch.view_as_complex(buffer) if param.is_complex() else buffer
            self.state[param]["momentum_buffer"] = whole


def _global_norm(norms: list[Tensor]) -> Tensor:
    """Return the 2-norm over all elements of 0-d or 1-D tensors, on the first tensor's device."""
    flat = [n.reshape(-1).to(norms[0].device) for n in norms]
    return torch.linalg.vector_norm(torch.cat(flat))
