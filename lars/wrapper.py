"""Layer-wise trust ratios in front of any torch optimizer whose step needs no closure."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .bucket import Bucket, gradient_of, stack
from .lars import LARS, run_step
from .norms import in_full, is_dtensor, refuse_hidden_shard
from .others import refuse, weight_decay_is_gradient
from .presets import OPTIONS, check_options
from .rule import Rule
from .values import make_plain, number

# A wrapper hands on gradients: what else a rule asks for belongs to the wrapped optimizer.
_PLAIN = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "momentum_scaling": "trust"}


class LARSWrapper(Optimizer):
    """Scale each gradient, weight decay included, by its trust ratio; then step the optimizer.

        optimizer = LARSWrapper(torch.optim.Adam(model.parameters()), trust_coefficient=0.001)

    The wrapped optimizer sees ratio * (g + weight_decay * w) as the gradient and a weight decay
    of 0, which over SGD is LARS with momentum_scaling "trust". After the step, and also when it
    raises, `p.grad` and the weight decay are what they were. Decoupled weight decay is no part
    of a gradient: an optimizer that has it is left to do it, unscaled; see `others.py` for how an
    optimizer says so. One that does not say keeps its decay too, with a warning. A group that is
    not adapted is the wrapped optimizer's alone. A step needs memory for one copy of the
    gradients, and with trust_norm "decayed" for another while it starts.

    The options mean what they mean for LARS. They are kept in the parameter groups: `eps` as
    `trust_eps`, and one whose name the wrapped optimizer has itself with `lars_` before it. The
    groups and the state are the wrapped optimizer's own. A closure is evaluated once, before
    anything is scaled.
    """

    # GradScaler then leaves to step() both unscaling and skipping where a gradient is inf.
    _step_supports_amp_scaling = True
    _warned = False

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
        refuse(optimizer, with_ratios=(LARS, LARSWrapper))
        options = {
            "trust_coefficient": trust_coefficient,
            "trust_eps": eps,
            "trust_norm": trust_norm,
            "trust_weight_decay": trust_weight_decay,
            "zero_norm": zero_norm,
            "trust_clip": trust_clip,
            "adapt": adapt,
        }
        make_plain(options, options)
        # Without an optimizer yet, this makes the hooks alone: no group is moved or made.
        super().__init__([torch.empty(0, device="cpu")], {})
        own = optimizer.defaults
        self._settings = {f"lars_{k}" if k in own else k: v for k, v in options.items()}
        for group in optimizer.param_groups:
            self._check({**self._settings, **group})
        self.defaults = {**own, **self._settings}
        self.optimizer = optimizer
        self._complete_groups()
        for group in self.param_groups:
            self._folds_decay(group)

    def _complete_groups(self) -> None:
        for group in self.param_groups:
            for key, value in self._settings.items():
                group.setdefault(key, value)

    def _options_of(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group's own options, by the names that a rule has for them."""
        names = {key: key.removeprefix("lars_") for key in self._settings}
        options = {name: group[key] for key, name in names.items()}
        options["eps"] = options.pop("trust_eps")
        make_plain(options, OPTIONS & options.keys())
        return options

    def _check(self, group: dict[str, Any]) -> None:
        options = self._options_of(group)
        check_options(options)
        if options["trust_clip"] and group.get("lr") is None:
            raise ValueError("trust_clip=True needs an lr in each group: it clips by the rate")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups, so that neither can run away from the other."""
        return self.optimizer.param_groups if "optimizer" in self.__dict__ else []

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if "optimizer" in self.__dict__:
            self.optimizer.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        if "optimizer" in self.__dict__:
            self.optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer, with the wrapper's options."""
        if "optimizer" not in self.__dict__:
            return
        self._check({**self._settings, **self.optimizer.defaults, **param_group})
        for key, value in self._settings.items():
            param_group.setdefault(key, value)
        self.optimizer.add_param_group(param_group)
        self._folds_decay(self.param_groups[-1])

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's own, if it has a form of its own, as other wrappers do."""
        own_form = type(self.optimizer).state_dict is not Optimizer.state_dict
        return self.optimizer.state_dict() if own_form else super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or the wrapped optimizer's alone."""
        if type(self.optimizer).load_state_dict is Optimizer.load_state_dict:
            super().load_state_dict(state_dict)
        else:
            self.optimizer.load_state_dict(state_dict)
            self._complete_groups()

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
        self._complete_groups()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Scale, step, restore; `closure` evaluates the model anew and returns the loss."""
        return run_step(self, closure)

    def _take_step(self) -> None:
        self._complete_groups()  # the optimizer may have got or loaded some by itself
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads = [(p.grad, getattr(p, "grad_dtype", None)) for p in params]
        decays = [group.get("weight_decay") for group in self.param_groups]
        try:
            for group in self.param_groups:
                self._scale_group(group)
            self.optimizer.step()
        finally:
            for param, (grad, dtype) in zip(params, grads, strict=True):
                if param.grad is not grad:
                    _set_gradient(param, grad, dtype)
            for group, decay in zip(self.param_groups, decays, strict=True):
                if decay is not None:
                    group["weight_decay"] = decay

    def _folds_decay(self, group: dict[str, Any]) -> bool:
        """Whether a group's weight decay is part of its gradients; warn once if nobody says."""
        if not group.get("weight_decay"):
            return False
        folds = weight_decay_is_gradient(self.optimizer, group)
        if folds is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"LARSWrapper leaves the weight decay of {type(self.optimizer).__name__} to it, "
                "unscaled: it does not say whether it is decoupled. If it is part of the gradient,"
                " set the group's decoupled_weight_decay to False to have it scaled, else to True",
                stacklevel=3,
            )
        return folds is True

    def _scale_group(self, group: dict[str, Any]) -> None:
        """Put scaled copies in the place of a group's gradients, and its weight decay to 0."""
        options = self._options_of(group)
        folds = self._folds_decay(group)
        decay = number(group["weight_decay"]) if folds else 0.0
        if options["trust_weight_decay"] == "momentum":
            options["trust_weight_decay"] = number(group.get("momentum", 0.0))
        if options["adapt"] == "decayed":
            # Also by the optimizer's own, decoupled decay.
            options["adapt"] = bool(group.get("weight_decay"))
        adapts = options["adapt"] or getattr(self, "grad_scale", None) is not None
        own = {"lr": group.get("lr"), "weight_decay": decay, "differentiable": False}
        rule = Rule.from_group({**own, **_PLAIN, **options})
        sign = -1.0 if group.get("maximize") else 1.0
        buckets: dict[Any, Bucket] = {}
        for param in group["params"]:
            if options["adapt"]:
                refuse_hidden_shard(param)
            if param.grad is None:
                continue
            grad: Any = gradient_of(param)
            if is_dtensor(param):
                grad = grad.redistribute(param.device_mesh, param.placements)
            if not adapts:
                # A copy for what the optimizer writes to, but not of what autograd goes through.
                if not grad.requires_grad:
                    _set_gradient(param, grad.clone(), grad.dtype)
                continue
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
        if folds and adapts:
            group["weight_decay"] = 0.0


def _set_gradient(param: Tensor, grad: Tensor | None, dtype: torch.dtype | None) -> None:
    """Exchange a parameter's gradient, and the dtype that torch allows it, since 2.10, to have."""
    if hasattr(param, "grad_dtype") and param.grad_dtype is not dtype:
        param.grad = None
        param.grad_dtype = dtype
    param.grad = grad
