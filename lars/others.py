"""Facts about other optimizers: whether they can be wrapped, and whether their decay is decoupled.

Source: the code of torch 2.14, timm 1.0.31, pytorch_optimizer 4.1, lion-pytorch and prodigyopt.
Most libraries have a flag for decoupled decay, in the groups or on the optimizer. Its name differs
between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer

_FLAGS = (
    "decoupled_weight_decay",  # torch
    "weight_decouple",  # pytorch_optimizer
    "decoupled_decay",  # timm
    "decoupled",  # timm's Adopt
    "decouple",  # prodigyopt, dadaptation
    "decoupled_wd",  # lion-pytorch
)


def _of_torch(*names: str) -> tuple[type[Optimizer], ...]:
    return tuple(getattr(torch.optim, name) for name in names if hasattr(torch.optim, name))


# Optimizers of torch that have no flag, or had none in older releases. Muon is not in all releases.
_DECOUPLED = _of_torch("AdamW", "Adafactor", "Muon")
_COUPLED = _of_torch("SGD", "Adam", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "ASGD")
_COUPLED += _of_torch("RMSprop")
# Classes that do not add the decay to the gradient first, even if their flag is False. LAMB and
# NovoGrad add it after normalization, Adan divides the weights by it, and the others have used or
# changed the gradient before they add it.
_NEITHER = frozenset(
    "Lamb NovoGrad NvNovoGrad Adan DAdaptAdan ASGD AdaGC AdamP AdamWSN BCOS Grams GrokFastAdamW "
    "LaProp MARS RAdam Ranger Ranger21 SGDP SGDSaI TAM".split()
)
# Attributes of pytorch_optimizer's Hessian estimators. timm's have `is_second_order` instead.
_HESSIAN = ("update_period", "num_samples")


def weight_decay_is_gradient(optimizer: Optimizer, group: dict[str, Any]) -> bool | None:
    """Return True if an optimizer's first use of a gradient is to add weight_decay * w to it.

    False: it does not. None: unknown.
    """
    if _wraps_another(optimizer):
        # It may change the gradient before the inner optimizer adds the decay.
        return None
    flags = (group.get(flag, getattr(optimizer, flag, None)) for flag in _FLAGS)
    said = [flag for flag in flags if flag is not None]
    if any(said) or isinstance(optimizer, _DECOUPLED):
        return False
    if isinstance(optimizer, _COUPLED):
        return True
    return type(optimizer).__name__ not in _NEITHER if said else None


def _wraps_another(optimizer: Optimizer) -> bool:
    return any(isinstance(value, Optimizer) for value in vars(optimizer).values())


def refuse(optimizer: Any, with_ratios: tuple[type[Optimizer], ...]) -> None:
    """Raise TypeError if an optimizer, or one inside it, cannot be wrapped; the message says why.

    `with_ratios` are the classes that have trust ratios already.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch Optimizer, not {name}")
    why = None
    if isinstance(optimizer, with_ratios):
        why = "has trust ratios already: use it without a wrapper"
    elif isinstance(optimizer, torch.optim.LBFGS) or _evaluates(optimizer):
        why = "evaluates the model in its step: wrap the optimizer inside it, if there is one"
    elif getattr(optimizer, "is_second_order", False) or _has_all(optimizer, _HESSIAN):
        why = "differentiates the gradients in its step, which scaled gradients do not support"
    elif _has_all(optimizer, ("fused_backward",)):
        why = "steps during the backward pass, before the gradients can be scaled"
    elif not _has_all(optimizer, ("param_groups", "defaults", "state")):
        why = "does not expose its parameter groups: wrap the optimizer inside it, if there is one"
    if why:
        raise TypeError(f"optimizer must not be {name}, which {why}")
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            refuse(value, with_ratios)


def _evaluates(optimizer: Optimizer) -> bool:
    """Return True if a step needs a closure: SAM and its variants, and AliG."""
    if _has_all(optimizer, ("first_step", "second_step")) or hasattr(optimizer, "perturb_weights"):
        return True
    return type(optimizer).__name__ == "AliG"


def _has_all(optimizer: Optimizer, names: tuple[str, ...]) -> bool:
    return all(hasattr(optimizer, name) for name in names)
