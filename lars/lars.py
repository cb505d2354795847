"""The optimizer: torch.optim's manners around the update of `rule.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from .bucket import (
    Bucket,
    LayerStatistics,
    as_tensor,
    check_not_capturing,
    choose_path,
    gradient_of,
    path_on,
    wrong_shape,
)
from .norms import refuse_hidden_shard
from .presets import ABOVE_ZERO, OPTIONS, complete, fill_from_preset
from .rule import Rule
from .values import make_plain, number


class LARS(Optimizer):
    r"""SGD with momentum whose rate for each tensor follows the ratio of two norms.

    Yang You, Igor Gitman and Boris Ginsburg, "Large Batch Training of Convolutional Networks",
    arXiv 1708.03888. For each parameter tensor,

        u = g + weight_decay * w
        ratio = trust_coefficient * ||w|| / (||g|| + weight_decay * ||w|| + eps)
        v = momentum * v + (1 - dampening) * lr * ratio * u
        w = w - v

    w: the weights; g: their gradient; v: `momentum_buffer`, whose first value is not dampened;
    lr: the paper's gamma, the global rate; trust_coefficient: its eta; weight_decay: its beta;
    ratio: its local rate lambda. With nesterov, w = w - (lr * ratio * u + momentum * v).

    The paper says nothing about a norm of 0. Here, such a tensor has ratio 1, so that one
    initialised to zero trains; this is the only departure of the default variant, "paper". The
    options below change the rule, and `variant` names sets of them; one given beside it wins.

    Args:
        params: tensors, (name, tensor) pairs or groups; see `parameter_groups`.
        variant: a key of `PRESETS`. They depart from the paper so (eps 1e-8 but where said):
            "blog": eps 1e-15, momentum_scaling "none", zero_norm "raw".
            "quadra": momentum_scaling "trust", zero_norm "skip", adapt "decayed".
            "torchlars": momentum_scaling "trust".
            "braintools": momentum_scaling "trust", trust_norm "decayed".
            "pytorch-lars": trust_coefficient 0.1, eps 0, trust_weight_decay "momentum",
                momentum_scaling "none", zero_norm "raw".
            "pytorch-lars-v1": the same with momentum_scaling "classic".
            "timm": momentum_scaling "trust", adapt "decayed".
            "larc": trust_coefficient 0.02, momentum_scaling "trust", zero_norm "skip", trust_clip.
        trust_norm: the denominator is "separate", as above, or "decayed", ||u||.
        trust_weight_decay: a number in place of weight_decay in the denominator, or
            "weight_decay" or "momentum", that option's value.
        momentum_scaling: where lr and ratio enter. "classic", as above: both before the buffer.
            "trust": v = momentum * v + ratio * u, w = w - lr * v. "none": v = momentum * v + u,
            w = w - lr * ratio * v. They differ once lr ("trust") or ratio ("none") moves.
        zero_norm: where ||w|| or the other norm is 0, "one": ratio 1; "skip": ratio 1 and no
            weight decay; "raw": no guard, so 0/0 is NaN and tensors of zeros stay zeros.
        trust_clip: ratio = min(ratio / lr, 1), as LARC has it (not on what zero_norm skips).
        adapt: False: ratio 1, plain SGD; "decayed": True in groups whose weight_decay is not 0.
        clip_norm: scale gradients by min(1, clip_norm / the norm of all gradients together).
        clip_value: then clamp each element to [-clip_value, clip_value]. Both before the ratio.
        foreach: multi-tensor calls; the default on CUDA and for DTensors.
        fused: near two passes over memory: on the CPU, where it is the default, by torch's fused
            SGD kernel; on CUDA by Triton's, or by foreach where Triton does not work.
        capturable: the step may be captured in a CUDA graph; lr is then a tensor, and one step
            has been taken before.

    All are per group but `params`; None is the variant's value. `p.grad` is never changed.
    Set `telemetry = True` for `layer_statistics()` and `grad_norm` after each step.
    """

    # GradScaler then leaves to step() both unscaling and skipping where a gradient is inf.
    _step_supports_amp_scaling = True
    # On the class, for copies and unpickled instances: torch carries only its own attributes over.
    telemetry: bool = False
    # The norm of all gradients, unscaled and before clipping, where clipping or telemetry is on.
    grad_norm: Tensor | None = None
    _statistics: tuple[LayerStatistics, ...] = ()
    _keys: tuple[str | int, ...] = ()
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
        """Check the options and make the groups."""
        defaults = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        make_plain(defaults, OPTIONS & defaults.keys())
        complete({**defaults, "params": []})
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it leaves out comes from the constructor, then from its variant."""
        super().add_param_group(param_group)
        try:
            complete(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or loaded state; options it does not know keep their defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            fill_from_preset(group)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` evaluates the model anew and returns the loss."""
        return run_step(self, closure)

    def _take_step(self) -> None:
        buckets: list[Bucket] = []
        position = 0
        for group in self.param_groups:
            buckets += self._init_group(group, position)
            position += len(group["params"])
        self.grad_norm = self._clip(buckets, getattr(self, "grad_scale", None))
        statistics = [bucket.update(self.telemetry) for bucket in buckets]
        for bucket in buckets:
            if bucket.group["differentiable"] and bucket.buffers:
                self._keep_buffers(bucket)
        self._statistics = tuple(s for s in statistics if s is not None)
        self._keys = self._make_keys() if self.telemetry else ()
        if self.grad_norm is None and self._statistics:
            self.grad_norm = _global_norm([as_tensor(s.gradient_norm) for s in self._statistics])

    def layer_statistics(self) -> dict[str | int, dict[str, Tensor]]:
        """0-d tensors on the parameters' devices, as the last step with `telemetry` on had them.

        The keys are parameter names, or where there are none indices as in state_dict(); a name
        that came before, as of a second model, has its index after it. Each holds weight_norm and
        gradient_norm (after loss scale and clipping), trust_ratio, and effective_rate,
        lr * trust_ratio.
        """
        statistics: dict[str | int, dict[str, Tensor]] = {}
        for part in self._statistics:
            columns = {k: as_tensor(v) for k, v in part._asdict().items() if k != "positions"}
            for row, position in enumerate(part.positions):
                values = {name: column[row] for name, column in columns.items()}
                statistics[self._keys[position]] = values
        return statistics

    def _make_keys(self) -> tuple[str | int, ...]:
        """A key for each parameter, by its position; two models' names may be the same."""
        keys: dict[str | int, None] = {}
        for group in self.param_groups:
            for name in group.get("param_names") or [None] * len(group["params"]):
                index = len(keys)
                key = index if name is None else f"{name} ({index})" if name in keys else name
                keys[key] = None
        return tuple(keys)

    def _init_group(self, group: dict[str, Any], position: int) -> list[Bucket]:
        """Sort a group's parameters into buckets; new momentum buffers are zeros."""
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
                    check_not_capturing(param, "its first step, which creates the buffers,")
                    buffer = self.state[param]["momentum_buffer"] = torch.zeros_like(param.detach())
                elif buffer.shape != param.shape:
                    raise wrong_shape(param, buffer, "momentum buffer")
            # A first gradient is not dampened, so where dampening matters it goes separately.
            alone = fresh and rule.dampening != 0
            buffer_dtype = None if buffer is None else buffer.dtype
            kind = (param.device, param.dtype, grad.dtype, buffer_dtype, alone)
            if kind not in buckets:
                if not group["capturable"]:
                    check_not_capturing(param, "capturable=False")
                if not isinstance(rule.lr, Tensor) or rule.lr.device != param.device:
                    check_not_capturing(param, "its rate elsewhere than in a tensor beside it")
                own_rule = replace(rule, dampening=0.0) if alone else rule
                if isinstance(rule.lr, Tensor) and rule.lr.device.type != "cpu":
                    own_rule = replace(own_rule, lr=rule.lr.to(param.device))
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
        """Unscale and clip; return the norm of all gradients where it had to be known."""
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


def run_step(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """Evaluate the closure, take the optimizer's step unless a gradient is inf; return the loss."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    if torch.compiler.is_compiling():
        _step_outside_graphs(optimizer)
    else:
        _step_if_finite(optimizer)
    return loss


def _step_if_finite(optimizer: Any) -> None:
    # GradScaler leaves it to the step to look; without any gradient it hands over the number 0.
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None or float(found_inf) == 0:
        optimizer._take_step()


@torch._disable_dynamo
def _step_outside_graphs(optimizer: Any) -> None:
    """Have torch.compile break its graph here, and the step run as it does without.

    The eager paths take as few passes over memory as a compiled step, and read the rate as it is:
    a traced step would be compiled again for each value of a rate that is a float, as torch's are.
    """
    _step_if_finite(optimizer)


def _global_norm(norms: list[Tensor]) -> Tensor:
    """2-norm over all elements of 0-d or 1-D tensors of norms, on the first one's device."""
    flat = [n.reshape(-1).to(norms[0].device) for n in norms]
    return torch.linalg.vector_norm(torch.cat(flat))
