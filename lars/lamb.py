"""The LAMB optimizer: the step of Adam with a trust ratio per tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .bucket import LayerStatistics, check_not_capturing, gradient_of, local, rate_on, wrong_shape
from .layerwise import LayerwiseOptimizer, run_step
from .norms import full_dtype, in_full, is_dtensor, refuse_hidden_shard, stacked_norms
from .presets import check_capturable, check_choice, check_number
from .values import make_plain, number, plain

_CHOICES = ("adapt", "foreach", "maximize", "capturable")
_NUMBERS = ("lr", "eps", "weight_decay")
_BOUNDS = ("weight_norm_min", "weight_norm_max")


class LAMB(LayerwiseOptimizer):
    r"""Implement LAMB (layer-wise adaptive moments for batch training).

    Source: Yang You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76
    minutes", arXiv 1904.00962, Algorithm 2. For each parameter tensor w with gradient g, step t
    computes::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        r = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        u = r + weight_decay * w
        ratio = phi(||w||) / ||u||
        w = w - lr * ratio * u

    phi is the identity, unless `weight_norm_min` or `weight_norm_max` bounds it. The paper does not
    define the ratio if phi(||w||) or ||u|| is 0. It is 1 here, so that a tensor that is initialized
    to zero trains. The state of a tensor is m (`exp_avg`), v (`exp_avg_sq`) and t (`step`).

    Every argument but `params` is the default of a group option with the same name. A group option
    may be changed between steps. A step does not modify `p.grad`. If the attribute `telemetry` is
    True, `layer_statistics()` is available after each step.

    Args:
        params: tensors, (name, tensor) pairs, or parameter groups as `parameter_groups` makes them.
        lr: learning rate: a number of 0 or more, or a tensor with one element.
        betas: beta1 and beta2, in [0, 1).
        eps: added to the denominator of r.
        weight_decay: factor of w in u. The decay is decoupled: m and v do not contain it.
        weight_norm_min: lower bound of phi, the paper's gamma_l. None: none.
        weight_norm_max: upper bound of phi, the paper's gamma_u. None: none.
        adapt: whether there is a trust ratio. True: each tensor of the group has one. False: ratio
            1, as in AdamW. "decayed": True in groups whose weight_decay is not 0, else False.
        foreach: update tensors together by multi-tensor calls, the default, or, if False, one by
            one. The latter needs memory for one tensor in place of a copy of all weights.
        maximize: ascend along the gradient: g is replaced by -g.
        capturable: allow a step in a CUDA graph. On CUDA lr must then be a tensor on the device.
            Take one eager step before the capture.

    Raises:
        ValueError: the constructor or `add_param_group` gets an invalid option, or a complex
            parameter.
        RuntimeError: `step` finds a sparse gradient, a gradient or state whose shape is not that of
            its parameter, a shard whose whole norm it cannot know (FSDP1, fairscale, Megatron), or
            a CUDA graph capture that it does not support.

    """

    # `LARSWrapper` reads this.
    decoupled_weight_decay = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        weight_norm_min: float | None = None,
        weight_norm_max: float | None = None,
        adapt: bool | str = True,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        # torch's base class needs no `params` in the defaults, the checks do.
        self._complete(checked := {**defaults, "params": []})
        super().__init__(params, {name: checked[name] for name in defaults})

    def _complete(self, group: dict[str, Any]) -> None:
        """Check a group's options."""
        make_plain(group, (*_CHOICES, *_NUMBERS, *_BOUNDS))
        for name in _CHOICES:
            check_choice(name, group[name])
        for name in _NUMBERS:
            check_number(name, group[name])
        group["betas"] = _checked_betas(group["betas"])
        low, high = bounds = [group[name] for name in _BOUNDS]
        for name, value in zip(_BOUNDS, bounds, strict=True):
            if value is not None:
                check_number(name, value)
        if low is not None and high is not None and number(low) > number(high):
            raise ValueError(
                f"Invalid weight_norm_min value: {low!r}; must be at most weight_norm_max={high!r}"
            )
        check_capturable(group)
        if any(param.is_complex() for param in group["params"]):
            raise ValueError("LAMB does not support complex parameters: use torch.view_as_real")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or loaded state. Options that it lacks get their default values."""
        super().__setstate__(state)
        # torch adds this option, which LAMB does not have, to the defaults of every optimizer.
        for options in (self.defaults, *self.param_groups):
            options.pop("differentiable", None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the closure's loss, or None without a closure.

        The step is skipped if GradScaler has found an infinite gradient.

        Args:
            closure: evaluates the model again, computes the gradients and returns the loss. It is
                called once, before the step.

        """
        return run_step(self, closure)

    def _take_step(self) -> None:
        grad_scale = getattr(self, "grad_scale", None)
        self._record([b.update(grad_scale, self.telemetry) for b in self._make_buckets()])

    def _init_group(self, group: dict[str, Any], position: int) -> list[_Bucket]:
        """Sort a group's parameters into buckets; create missing state.

        `position` is the index of the group's first parameter among those of all groups.
        """
        make_plain(group, (*_NUMBERS, *_BOUNDS))
        lr = plain(group["lr"])
        if isinstance(lr, Tensor):
            lr = lr.squeeze()
        decay, adapt = number(group["weight_decay"]), group["adapt"]
        adapt = bool(decay != 0 if adapt == "decayed" else adapt)
        buckets: dict[Any, _Bucket] = {}
        for index, param in enumerate(group["params"]):
            if adapt or self.telemetry:
                refuse_hidden_shard(param)
            if param.grad is None:
                continue
            grad, state = gradient_of(param), self._state_of(param)
            first, second = state["exp_avg"], state["exp_avg_sq"]
            alone = index if group["foreach"] is False else None
            kind = (alone, param.device, param.dtype, grad.dtype, first.dtype, second.dtype)
            if kind not in buckets:
                rate = rate_on(param, lr, group["capturable"])
                buckets[kind] = _Bucket(group, rate, decay, adapt)
            buckets[kind].add(position + index, param, grad, first, second, state["step"])
        return list(buckets.values())

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        """Return a parameter's state, which is created if it is missing."""
        state = self.state[param]
        if not state:
            check_not_capturing(param, "a first step: take one eagerly before")
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(param.detach())
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != param.shape:
                raise wrong_shape(param, state[name], name)
        if state["step"].device != param.device:
            # load_state_dict leaves it on the device that the checkpoint was loaded to.
            state["step"] = state["step"].to(param.device)
        return state


@dataclass
class _Bucket:
    """Tensors of one group that are updated together: of one device, and of equal dtypes.

    Attributes:
        group: the parameter group.
        lr: its learning rate, a number or a 0-d tensor.
        decay: its weight decay.
        adapt: whether there is a trust ratio.
        positions: indices of the parameters among those of all groups.
        params: the parameters as the user passed them.
        weights, grads, firsts, seconds: local tensors of the weights, gradients, m and v.
        steps: their step counts, 0-d tensors.

    """

    group: dict[str, Any]
    lr: float | Tensor
    decay: float
    adapt: bool
    positions: list[int] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    firsts: list[Tensor] = field(default_factory=list)
    seconds: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)

    def add(self, position: int, param: Tensor, *tensors: Tensor) -> None:
        """Add a parameter with its gradient, m, v and step count."""
        *sharded, step = tensors
        sharded = [param, *sharded]
        if is_dtensor(param):
            sharded = [local(tensor, param) for tensor in sharded]
        self.positions.append(position)
        self.params.append(param)
        self.steps.append(step)
        lists = (self.weights, self.grads, self.firsts, self.seconds)
        for tensor, own in zip(sharded, lists, strict=True):
            own.append(tensor)

    def update(self, grad_scale: Tensor | None, record: bool) -> LayerStatistics | None:
        """Take the step; return its statistics if `record`, else None."""
        lists = (self.weights, self.grads, self.firsts, self.seconds)
        dtype = full_dtype(*(own[0] for own in lists))
        weights, grads, firsts, seconds = (in_full(own, dtype) for own in lists)
        if grad_scale is not None:
            inverse = 1.0 / grad_scale.to(grads[0].device, dtype)
            grads = list(torch._foreach_mul(grads, inverse))
        if self.group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        updates = self._updates(weights, grads, firsts, seconds)
        ones = torch.ones(len(weights), dtype=dtype, device=weights[0].device)
        weight_norms = gradient_norms = ratios = ones
        if record or self.adapt:
            weight_norms = self._norms(weights)
        if record:
            gradient_norms = self._norms(grads)
        if self.adapt:
            ratios = self._ratios(weight_norms, self._norms(updates))
        rates = ratios * self.lr
        # In this order torch's multi-tensor kernels support the 0-d factors.
        torch._foreach_addcmul_(weights, list(rates.to(dtype).unbind()), updates, value=-1)
        for own, new in ((self.weights, weights), (self.firsts, firsts), (self.seconds, seconds)):
            if own[0] is not new[0]:
                torch._foreach_copy_(own, new)
        if not record:
            return None
        return LayerStatistics(self.positions, weight_norms, gradient_norms, ratios, rates)

    def _updates(
        self,
        weights: list[Tensor],
        grads: list[Tensor],
        firsts: list[Tensor],
        seconds: list[Tensor],
    ) -> list[Tensor]:
        """Update step counts, m and v; return u of each tensor.

        With roots c1 = 1 - beta1^t and c2 = sqrt(1 - beta2^t), r is computed as
        c2 / c1 * m / (sqrt(v) + c2 * eps), which needs fewer passes over memory.
        """
        beta1, beta2 = (number(beta) for beta in self.group["betas"])
        torch._foreach_add_(self.steps, 1)
        torch._foreach_lerp_(firsts, grads, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, grads, grads, value=1 - beta2)
        counts = torch.stack(self.steps).to(weights[0].dtype)
        correction1, correction2 = (_bias_correction(beta, counts) for beta in (beta1, beta2))
        root = correction2.sqrt()
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_add_(roots, list((root * number(self.group["eps"])).unbind()))
        quotients = torch._foreach_div(firsts, roots)
        updates = torch._foreach_mul(weights, self.decay)
        torch._foreach_addcmul_(updates, list((root / correction1).unbind()), quotients)
        return list(updates)

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        return stacked_norms(tensors, self.params, foreach=True)

    def _ratios(self, weight_norms: Tensor, update_norms: Tensor) -> Tensor:
        """Return phi(||w||) / ||u||, or 1 if one of the two is 0."""
        low, high = (self.group[name] for name in _BOUNDS)
        if low is not None or high is not None:
            weight_norms = weight_norms.clamp(
                None if low is None else number(low), None if high is None else number(high)
            )
        vanishing = torch.minimum(weight_norms, update_norms) == 0
        return (weight_norms / update_norms).masked_fill_(vanishing, 1.0)


def _bias_correction(beta: float, counts: Tensor) -> Tensor:
    """Return 1 - beta^t. In fp32 this form loses no digits if beta is close to 1."""
    return -torch.expm1(counts * (math.log(beta) if beta else -math.inf))


def _checked_betas(betas: Any) -> tuple[Any, ...]:
    """Return `betas` as Python numbers; raise ValueError unless they are two in [0, 1)."""
    values = [number(beta) for beta in betas] if isinstance(betas, tuple | list) else []
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not are_numbers or not all(0.0 <= value < 1.0 for value in values):
        raise ValueError(f"Invalid betas value: {betas!r}; must be two numbers in [0, 1)")
    return tuple(plain(beta) for beta in betas)
