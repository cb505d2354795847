"""Parameter groups by module type: which tensors decay and which have a trust ratio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList

from .presets import check_number
from .values import number

# _NormBase covers all batch and instance normalization, including SyncBatchNorm and lazy modules.
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
    """Return parameter groups: the weights, and the biases with the normalization parameters.

    A parameter is a bias or a normalization parameter because of its module and its attribute
    there, never because of its shape. A parameter that modules share counts once, for the first of
    them. Parameters with requires_grad False are left out. The tensors behind a parametrized,
    pruned, weight-normalized or spectrally normalized tensor count as that tensor. Members of a
    ParameterList or ParameterDict count by the attribute that holds it.

    The groups suit every torch optimizer. Each has `params` (a list of (name, parameter) pairs),
    `weight_decay`, `adapt` and `lr_scale`. Weights come first. An empty group is left out.

    Args:
        model: the module whose parameters are grouped. It may be lazy, scripted, traced or
            compiled, but not a graph of torch.export.
        weight_decay: weight decay of the groups that decay, a number of 0 or more.
        decay: which parameters decay: "weights", or "all" for all of them.
        adapt: which parameters have a trust ratio: "weights", or "all" for all of them.
        bias_lr_scale: learning rate of biases and normalization parameters, as a multiple of the
            weights' rate. It becomes `lr_scale` of their group (1 for weights). The schedulers of
            this project and of timm apply it; optimizers do not. With another scheduler, set `lr`
            in that group instead.
        norm_modules: module classes whose parameters all count as normalization parameters.

    Raises:
        TypeError: `model` is not an nn.Module, or a graph of torch.export.
        ValueError: another argument is invalid.

    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    for option, value in (("decay", decay), ("adapt", adapt)):
        if value not in ("weights", "all"):
            raise ValueError(f"Invalid {option} value: {value!r}; must be 'weights' or 'all'")
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
    """Yield (module, attribute, full name, parameter), each parameter once."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield module, attribute, f"{prefix}.{attribute}".lstrip("."), parameter


def _roles(
    modules: dict[str, nn.Module], name: str, module: nn.Module, attribute: str
) -> Iterator[tuple[nn.Module, str]]:
    """Yield the (module, attribute) pairs that decide what a parameter is.

    These are its own, and those of the tensor or collection that it belongs to. Below its module, a
    parametrized tensor is `parametrizations.<tensor>.original`, and the parameters of a
    parametrization are under `parametrizations.<tensor>` (torch.nn.utils.parametrize).
    """
    yield module, attribute
    parts = name.split(".")
    for i in range(len(parts) - 1):
        here = modules[".".join(parts[: i + 1])]
        above = modules[".".join(parts[:i])] if i else modules[""]
        if _is_a(here, (nn.ParameterList, nn.ParameterDict)):
            yield above, parts[i]
        elif isinstance(here, ParametrizationList):
            # `above` is the ModuleDict `parametrizations`. The tensor's module is its parent.
            yield modules[".".join(parts[: i - 1])], parts[i]


def _is_bias(module: nn.Module, attribute: str) -> bool:
    # Pruning, and the older weight_norm and spectral_norm, store `bias` under these suffixes.
    for suffix in ("_orig", "_g", "_v"):
        hidden = attribute.removesuffix(suffix)
        if hidden != attribute and hidden not in module._parameters and hasattr(module, hidden):
            attribute = hidden
    # These have several biases each. In all other modules of torch the attribute is `bias`.
    if _is_a(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return "bias" in attribute
    return attribute == "bias"


def _is_a(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return isinstance(module, kinds); compare class names if torch.jit made the module."""
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", None) in _names(kinds)
    return isinstance(module, kinds)


def _names(kinds: Iterable[type[nn.Module]]) -> set[str]:
    """Return the names of classes and of all their subclasses."""
    return {name for kind in kinds for name in (kind.__name__, *_names(kind.__subclasses__()))}


def _refuse_exported(model: nn.Module) -> None:
    """Raise TypeError for a graph of torch.export, which loses the classes of its modules."""
    for graph in model.modules():
        if isinstance(graph, torch.fx.GraphModule):
            owners = [m for m in graph.modules() if m is not graph and m._parameters]
            lost = bool(owners) and all(type(owner) is nn.Module for owner in owners)
        else:
            lost = type(graph).__module__ == "torch.export.unflatten"
        if lost:
            raise TypeError(
                "parameter_groups needs the classes of the modules, which torch.export loses. Make "
                "the groups from the model that was exported: the graph of module() shares its "
                "parameters"
            )
