"""Parameter groups by module type: which tensors decay, and which have a trust ratio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# _NormBase: every batch and instance normalisation, synchronised and lazy ones too.
NORM_MODULES: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay: str = "weights",
    adapt: str = "weights",
    bias_lr_scale: float = 1.0,
    norm_modules: tuple[type[nn.Module], ...] = NORM_MODULES,
) -> list[dict[str, Any]]:
    """Split a model's parameters into weights, and biases with normalisation parameters.

    `decay` and `adapt` say which of them get `weight_decay` and which a trust ratio: "weights" or
    "all". A parameter is judged by the module that owns it, never by its shape; one that several
    modules share counts once, with the first of them; frozen ones are left out. `bias_lr_scale` is
    the rate of biases and normalisation parameters as a multiple of the weights'. No optimizer
    reads it: it becomes the group's `lr_scale`, which the schedulers of this project take, as
    timm's do. With another scheduler, give that group an `lr` of its own. The groups hold (name,
    parameter) pairs, and suit every torch optimizer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    for option, value in (("decay", decay), ("adapt", adapt)):
        if value not in ("weights", "all"):
            raise ValueError(f"Invalid {option} value: {value!r}; it is 'weights' or 'all'")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay!r}")
    if not bias_lr_scale >= 0.0:
        raise ValueError(f"Invalid bias_lr_scale value: {bias_lr_scale!r}")

    pairs: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
    for module, attribute, name, parameter in _parameters_with_owners(model):
        if parameter.requires_grad:
            is_weight = not (isinstance(module, norm_modules) or _is_bias(module, attribute))
            pairs[is_weight].append((name, parameter))
    return [
        {
            "params": pairs[is_weight],
            "weight_decay": weight_decay if is_weight or decay == "all" else 0.0,
            "adapt": is_weight or adapt == "all",
            "lr_scale": 1.0 if is_weight else bias_lr_scale,
        }
        for is_weight in (True, False)
        if pairs[is_weight]
    ]


def _parameters_with_owners(
    model: nn.Module,
) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """Each parameter once: its module, its attribute there, its full name, itself."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield module, attribute, f"{prefix}.{attribute}".lstrip("."), parameter


def _is_bias(module: nn.Module, attribute: str) -> bool:
    # These have several biases each; everywhere else in torch a bias is the attribute `bias`.
    if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return "bias" in attribute
    return attribute == "bias"
