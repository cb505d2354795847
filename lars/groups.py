"""Which parameters decay and adapt: weights against bias and normalisation parameters.

A parameter's kind is told by the module that holds it, never by its name's spelling or its shape.
"""

from typing import Any, Literal

from torch import nn

NORM_TYPES: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay: Literal["all", "weights"] = "weights",
    adapt: Literal["all", "weights"] = "weights",
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into groups for LARS, or for any torch optimizer.

    Weights come first; bias and normalisation parameters second, with weight decay only under
    `decay="all"` and the trust ratio only under `adapt="all"`. A tied parameter is listed once, as
    a weight if any of its modules holds it as one; frozen parameters are left out, and so is an
    empty group. Each group holds (name, parameter) pairs, which torch keeps as `param_names`.
    """
    for name, value in (("decay", decay), ("adapt", adapt)):
        if value not in ("all", "weights"):
            raise ValueError(f"{name}={value!r}: must be 'all' or 'weights'")
    weights: dict[nn.Parameter, str] = {}
    others: dict[nn.Parameter, str] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            is_other = isinstance(module, NORM_TYPES) or parameter is getattr(module, "bias", None)
            (others if is_other else weights).setdefault(parameter, name)
    others = {p: name for p, name in others.items() if p not in weights}
    other_decay = weight_decay if decay == "all" else 0.0
    kinds = ((weights, weight_decay, True), (others, other_decay, adapt == "all"))
    groups = []
    for named, group_decay, group_adapt in kinds:
        trainable = [(name, p) for p, name in named.items() if p.requires_grad]
        if trainable:
            groups.append({"params": trainable, "weight_decay": group_decay, "adapt": group_adapt})
    return groups
