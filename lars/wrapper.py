"""Layer-wise trust ratios in front of any torch optimizer whose step needs no closure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .bucket import Bucket, gradient_of, stack
from .norms import in_full, is_dtensor
from .presets import check_options
from .rule import Rule

# A wrapper hands on gradients: what else a rule asks for belongs to the wrapped optimizer.
_PLAIN = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "momentum_scaling": "trust"}
# Those whose weight decay is no part of the gradient; others say so in their groups. Muon is new.
_DECOUPLED = tuple(
    getattr(torch.optim, name)
    for name in ("AdamW", "Adafactor", "Muon")
    if hasattr(torch.optim, name)
)


class LARSWrapper(Optimizer):
    """Scale each gradient, weight decay included, by its trust ratio; then step the optimizer.

        optimizer = LARSWrapper(torch.optim.Adam(model.parameters()), trust_coefficient=0.001)

    The wrapped optimizer sees ratio * (g + weight_decay * w) as the gradient and a weight decay
    of 0, which over SGD is LARS with momentum_scaling "trust". After the step, and also when it
    raises, `p.grad` and the weight decay are what they were. Decoupled weight decay is no part
    of a gradient: torch's optimizers that have it (AdamW, Adafactor, Muon), and others that say
    `decoupled_weight_decay` in their groups, are left to do it, unscaled. A step needs memory for
    one copy of the gradients, and with trust_norm "decayed" for another while it starts.

    The options mean what they mean for LARS. They are kept in the parameter groups, `eps` as
    `trust_eps`; the groups and the state are the wrapped optimizer's own. A closure is evaluated
    once, before anything is scaled.
    """

    # GradScaler then leaves to step() both unscaling and skipping where a gradient is inf.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        trust_norm: str = "separate",
        trust_weight_decay: float | str = "weight_decay",
        zero_norm: str = "one",
        trust_clip: bool = False,
        adapt: bool | str = True,
    ) -> None:
        """Take over the optimizer's groups and state, and add the options to each group."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch Optimizer, not {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError("optimizer must not be LBFGS, which evaluates the model within a step")
        self.optimizer = optimizer
        self._settings = {
            "trust_coefficient": trust_coefficient,
            "trust_eps": eps,
            "trust_norm": trust_norm,
            "trust_weight_decay": trust_weight_decay,
            "zero_norm": zero_norm,
            "trust_clip": trust_clip,
            "adapt": adapt,
        }
        for group in optimizer.param_groups:
            _check({**self._settings, **group})
        groups, state = optimizer.param_groups, optimizer.state
        super().__init__(groups, {**optimizer.defaults, **self._settings})
        optimizer.state = state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups, so that neither can run away from the other."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer, with the wrapper's options."""
        _check({**self._settings, **param_group})
        for key, value in self._settings.items():
            param_group.setdefault(key, value)
        self.optimizer.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """All there is to pickle; groups and state go with the wrapped optimizer."""
        names = ("defaults", "optimizer", "_settings")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled wrapper, or what load_state_dict read."""
        own = dict(state)
        inner: dict[str, Any] = {
            key: own.pop(key) for key in ("state", "param_groups") if key in own
        }
        super().__setstate__(own)
        if inner:  # from load_state_dict
            self.optimizer.__setstate__(inner)
        for group in self.param_groups:
            for key, value in self._settings.items():
                group.setdefault(key, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Scale, step, restore; `closure` evaluates the model anew and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item() != 0:
            return loss

        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads = [(p.grad, getattr(p, "grad_dtype", None)) for p in params]
        decays = [group.get("weight_decay") for group in self.param_groups]
        try:
            for group in self.param_groups:
                self._scale_group(group)
            self.optimizer.step()
        finally:
            for param, (grad, dtype) in zip(params, grads, strict=True):
                _set_gradient(param, grad, dtype)
            for group, decay in zip(self.param_groups, decays, strict=True):
                if decay is not None:
                    group["weight_decay"] = decay
        return loss

    def _scale_group(self, group: dict[str, Any]) -> None:
        """Put scaled copies in the place of a group's gradients, and its weight decay to 0."""
        decoupled = group.get("decoupled_weight_decay") or isinstance(self.optimizer, _DECOUPLED)
        decay = 0.0 if decoupled else group.get("weight_decay", 0.0)
        trust = {"eps": group["trust_eps"], "weight_decay": decay}
        if group["trust_weight_decay"] == "momentum":
            trust["trust_weight_decay"] = group.get("momentum", 0.0)
        if group["adapt"] == "decayed":
            # Also by the optimizer's own, decoupled decay.
            trust["adapt"] = group.get("weight_decay", 0.0) != 0
        rule = Rule.from_group({**group, **_PLAIN, **trust})
        sign = -1.0 if group.get("maximize") else 1.0
        buckets: dict[Any, Bucket] = {}
        for param in group["params"]:
            if param.grad is None:
                continue
            grad: Any = gradient_of(param)
            if is_dtensor(param):
                grad = grad.redistribute(param.device_mesh, param.placements)
            # At least of the weight's precision: a ratio times a gradient in fp16 may vanish.
            grad = grad.to(torch.promote_types(param.dtype, grad.dtype), copy=True)
            _set_gradient(param, grad, grad.dtype)
            kind = (param.device, param.dtype, grad.dtype)
            buckets.setdefault(kind, Bucket(group, rule, "foreach", factor=sign))
            buckets[kind].add(param, len(buckets[kind].params), grad, None)
        for bucket in buckets.values():
            grad_scale = getattr(self, "grad_scale", None)
            if grad_scale is not None:
                bucket.scale(1.0 / grad_scale)
            ratios, decays, _, _ = bucket.trust_ratios()
            # The optimizer applies the sign of maximize to all that it is given: take it back.
            weights, grads = (in_full(t, bucket.full) for t in (bucket.weights, bucket.grads))
            factors = stack(sign * ratios * bucket.factor, ratios).to(bucket.full)
            torch._foreach_mul_(grads, list(factors.unbind()))
            factors = stack(sign * ratios * decays, ratios).to(bucket.full)
            torch._foreach_addcmul_(grads, list(factors.unbind()), weights)
            if grads[0] is not bucket.grads[0]:
                torch._foreach_copy_(bucket.grads, grads)
        if not decoupled and "weight_decay" in group:
            group["weight_decay"] = 0.0


def _check(settings: dict[str, Any]) -> None:
    own = {key: value for key, value in settings.items() if key not in ("eps", "fused", "foreach")}
    check_options({**own, "eps": settings["trust_eps"]})


def _set_gradient(param: Tensor, grad: Tensor | None, dtype: torch.dtype | None) -> None:
    """Exchange a parameter's gradient, and the dtype that torch allows it, since 2.10, to have."""
    if hasattr(param, "grad_dtype") and param.grad_dtype is not dtype:
        param.grad = None
        param.grad_dtype = dtype
    param.grad = grad
