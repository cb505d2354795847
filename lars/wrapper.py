"""Layer-wise trust ratios for any torch optimizer whose step needs no closure."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .bucket import Bucket, gradient_of, stack
from .lars import LARS
from .layerwise import run_step
from .norms import in_full, is_dtensor, refuse_hidden_shard
from .others import refuse, weight_decay_is_gradient
from .presets import OPTIONS, check_options
from .rule import Rule
from .values import make_plain, number

# The wrapper only scales gradients. The wrapped optimizer applies momentum and the learning rate.
_PLAIN = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "momentum_scaling": "trust"}


class LARSWrapper(Optimizer):
    """Scale each gradient by a trust ratio, then take the step of another optimizer.

    Example::

        optimizer = LARSWrapper(torch.optim.Adam(model.parameters()), trust_coefficient=0.001)

    During a step, the wrapped optimizer sees the gradient ratio * (g + weight_decay * w) and a
    weight decay of 0. Over SGD this is LARS with momentum_scaling "trust". After the step, also if
    it raises, `p.grad` and the weight decay have their previous values.

    Decoupled weight decay is not part of a gradient: the wrapped optimizer applies it, unscaled.
    docs/lars.md lists how the wrapper finds out which of the two a decay is. If it cannot, the
    wrapped optimizer applies the decay and the wrapper warns once.

    The groups and the state are those of the wrapped optimizer. The options below are added to each
    group, `eps` under the name `trust_eps`. If the wrapped optimizer has an option with the same
    name, the prefix `lars_` is added to the wrapper's. An option that a group has already is kept.
    A step needs memory for a copy of the gradients; trust_norm "decayed" needs a second copy for a
    part of the step.

    Args:
        optimizer: the optimizer to wrap. Its state is kept.
        trust_coefficient: factor of the ratio.
        eps: added to the denominator of the ratio.
        trust_norm: denominator of the ratio, without eps. "separate":
            ||g|| + weight_decay * ||w||. "decayed": ||g + weight_decay * w||.
        trust_weight_decay: factor of ||w|| in the "separate" denominator: a number of 0 or more,
            "weight_decay" (0 if the decay is decoupled) or "momentum" (0 if the group has none).
        zero_norm: treatment of a tensor if one of its norms is 0. "one": ratio 1. "skip": ratio 1,
            no weight decay and no trust_clip. "raw": the formula, so that 0/0 is NaN.
        trust_clip: replace the ratio by min(ratio / lr, 1). Each group then needs an `lr`.
        adapt: whether there is a trust ratio. False: the wrapped optimizer gets the gradient and
            the weight decay unchanged. "decayed": True in groups whose weight_decay is not 0, also
            if the decay is decoupled.

    Raises:
        TypeError: `optimizer` is not a torch Optimizer, or one that cannot be wrapped: it evaluates
            the model or differentiates gradients in its step, steps during the backward pass, hides
            its groups, or has trust ratios of this package.
        ValueError: an option is invalid, in the arguments or in a group.

    """

    # GradScaler then leaves it to step() to unscale gradients and to skip a step with inf.
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
        # `self.optimizer` does not exist yet, so this call sets up hooks but no groups.
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
        """Return the wrapper's options of a group, under the names that `Rule` uses."""
        names = {key: key.removeprefix("lars_") for key in self._settings}
        options = {name: group[key] for key, name in names.items()}
        options["eps"] = options.pop("trust_eps")
        make_plain(options, OPTIONS & options.keys())
        return options

    def _check(self, group: dict[str, Any]) -> None:
        options = self._options_of(group)
        check_options(options)
        if options["trust_clip"] and group.get("lr") is None:
            raise ValueError("trust_clip=True needs an lr in each group: it clips ratio / lr")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups, so that both optimizers always share them."""
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
        """Add a group to the wrapped optimizer, and the wrapper's options to the group.

        Raises:
            ValueError: an option of the group is invalid. The group is then not added.

        """
        if "optimizer" not in self.__dict__:
            return
        self._check({**self._settings, **self.optimizer.defaults, **param_group})
        for key, value in self._settings.items():
            param_group.setdefault(key, value)
        self.optimizer.add_param_group(param_group)
        self._folds_decay(self.param_groups[-1])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer, with the wrapper's options in the groups.

        If the wrapped optimizer's class overrides `state_dict`, this is its result.
        """
        own_form = type(self.optimizer).state_dict is not Optimizer.state_dict
        return self.optimizer.state_dict() if own_form else super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this wrapper, or one of the wrapped optimizer without a wrapper.

        Options of the wrapper that the state_dict lacks come from the constructor.
        """
        if type(self.optimizer).load_state_dict is Optimizer.load_state_dict:
            super().load_state_dict(state_dict)
        else:
            self.optimizer.load_state_dict(state_dict)
            self._complete_groups()

    def __getstate__(self) -> dict[str, Any]:
        """Return what to pickle. The wrapped optimizer contains the groups and the state."""
        names = ("defaults", "optimizer", "_settings")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled wrapper, or the groups and state from load_state_dict."""
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
        """Take one step and return the closure's loss, or None without a closure.

        The step is skipped if GradScaler has found an infinite gradient.

        Args:
            closure: evaluates the model again, computes the gradients and returns the loss. It is
                called once, before any gradient is scaled.

        """
        return run_step(self, closure)

    def _take_step(self) -> None:
        self._complete_groups()  # groups may have been added or loaded on the wrapped optimizer
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
        """Return True if a group's weight decay is part of the gradient; warn once if unknown."""
        if not group.get("weight_decay"):
            return False
        folds = weight_decay_is_gradient(self.optimizer, group)
        if folds is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"LARSWrapper does not scale the weight decay of {type(self.optimizer).__name__}, "
                "since it cannot find out whether the decay is decoupled. Set "
                "decoupled_weight_decay in the group: False to scale it as part of the gradient, "
                "True to keep it unscaled",
                stacklevel=3,
            )
        return folds is True

    def _scale_group(self, group: dict[str, Any]) -> None:
        """Replace a group's gradients by scaled copies, and a coupled weight decay by 0."""
        options = self._options_of(group)
        folds = self._folds_decay(group)
        decay = number(group["weight_decay"]) if folds else 0.0
        if options["trust_weight_decay"] == "momentum":
            options["trust_weight_decay"] = number(group.get("momentum", 0.0))
        if options["adapt"] == "decayed":
            # A decoupled weight decay counts here, too.
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
                # The optimizer may write to the gradient, so it gets a copy, but not if autograd
                # goes through the step.
                if not grad.requires_grad:
                    _set_gradient(param, grad.clone(), grad.dtype)
                continue
            # At least the weight's precision: ratio * gradient may underflow in fp16.
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
            # The optimizer negates its gradient if maximize is True, so undo the sign here.
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
    """Set a parameter's gradient, and `grad_dtype` (torch 2.10 or later) to its dtype."""
    if hasattr(param, "grad_dtype") and param.grad_dtype is not dtype:
        param.grad = None
        param.grad_dtype = dtype
    param.grad = grad
