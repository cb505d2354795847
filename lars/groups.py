"""Parameter groups by module type: which tensors decay, and which have a trust ratio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList

from .presets import check_number
from .values import number

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
    modules share counts once, with the first of them; frozen ones are left out. What makes up a
    parametrized, pruned, weight- or spectrally normalised tensor is what that tensor was, and the
    members of a list or dict are what its name says. `bias_lr_scale` is
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
    weight_decay, bias_lr_scale = number(weight_decay), number(bias_lr_scale)
    check_number("weight_decay", weight_decay)
    check_number("bias_lr_scale", bias_lr_scale)

    _refuse_exported(model)
    modules = dict(model.named_modules())
    pairs: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
    for module, attribute, name, parameter in _parameters_with_owners(model):
        if parameter.requires_grad:
            is_weight = not any(
                _is_a(owner, norm_modules) or _is_bias(owner, role)
                for owner, role in _roles(modules, name, module, attribute)
            )
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


def _roles(
    modules: dict[str, nn.Module], name: str, module: nn.Module, attribute: str
) -> Iterator[tuple[nn.Module, str]]:
    """The modules and attributes by which a parameter is judged: its own, and what it stands for.

    A parametrized tensor lies at `parametrizations.<tensor>.original` below its module, and what
    a parametrization learns below `parametrizations.<tensor>` (torch.nn.utils.parametrize).
    """
    yield module, attribute
    parts = name.split(".")
    for i in range(len(parts) - 1):
        here = modules[".".join(parts[: i + 1])]
        above = modules[".".join(parts[:i])] if i else modules[""]
        if _is_a(here, (nn.ParameterList, nn.ParameterDict)):
            yield above, parts[i]
        elif isinstance(here, ParametrizationList):
            # `above` is the ModuleDict `parametrizations`, of the module that is meant.
            yield modules[".".join(parts[: i - 1])], parts[i]


def _is_bias(module: nn.Module, attribute: str) -> bool:
    # Pruning, weight_norm and spectral_norm of the older kind hide `bias` behind these.
    for suffix in ("_orig", "_g", "_v"):
        hidden = attribute.removesuffix(suffix)
        if hidden != attribute and hidden not in module._parameters and hasattr(module, hidden):
            attribute = hidden
    # These have several biases each; everywhere else in torch a bias is the attribute `bias`.
    if _is_a(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return "bias" in attribute
    return attribute == "bias"


def _is_a(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Like isinstance; by the class's name for a scripted or traced module, which has no more."""
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", None) in _names(kinds)
    return isinstance(module, kinds)


def _names(kinds: Iterable[type[nn.Module]]) -> set[str]:
    """The names of classes and of all that derive from them."""
    return {name for kind in kinds for name in (kind.__name__, *_names(kind.__subclasses__()))}


def _refuse_exported(model: nn.Module) -> None:
    """Raise TypeError for a graph of torch.export, whose modules have neither class nor name."""
    for graph in model.modules():
        if isinstance(graph, torch.fx.GraphModule):
            owners = [m for m in graph.modules() if m is not graph and m._parameters]
            lost = bool(owners) and all(type(owner) is nn.Module for owner in owners)
        else:
            lost = type(graph).__module__ == "torch.export.unflatten"
        if lost:
            raise TypeError(
                "parameter_groups judges parameters by their modules' types, which torch.export "
                "loses. Make the groups from the model that was exported: module() shares its "
                "parameters"
            )
