"""Presets: the options of published implementations by name, and the checks of every option.

The update itself is in `rule.py`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .values import make_plain, number

# The paper, with a defined ratio for zero norms. Every other preset is a departure from it.
_PAPER: dict[str, Any] = {
    "trust_coefficient": 0.001,
    "eps": 0.0,
    "trust_norm": "separate",
    "trust_weight_decay": "weight_decay",
    "momentum_scaling": "classic",
    "zero_norm": "one",
    "trust_clip": False,
    "adapt": True,
}

# The sources that the departures were read from:
#   blog             "Discriminative learning rate using LARS" (2018)
#   quadra           quadra's LARS, and with it Lightning bolts' and lightly's
#   torchlars        torchlars' wrapper over SGD
#   braintools       braintools' Lars (JAX); vissl's and Barlow Twins' differ in eps only
#   pytorch-lars     cmpark0126/pytorch-LARS `ver2`, with the trust coefficient 0.1 of its published
#                    tables; its constructor's default is 1
#   pytorch-lars-v1  the same project's earlier `SGD_with_lars`
#   timm             timm's Lars
#   larc             NVIDIA apex' LARC over SGD
_DEPARTURES: dict[str, dict[str, Any]] = {
    "paper": {},
    "blog": {"eps": 1e-15, "momentum_scaling": "none", "zero_norm": "raw"},
    "quadra": {
        "eps": 1e-8,
        "momentum_scaling": "trust",
        "zero_norm": "skip",
        "adapt": "decayed",
    },
    "torchlars": {"eps": 1e-8, "momentum_scaling": "trust"},
    "braintools": {"eps": 1e-8, "momentum_scaling": "trust", "trust_norm": "decayed"},
    "pytorch-lars": {
        "trust_coefficient": 0.1,
        "trust_weight_decay": "momentum",
        "momentum_scaling": "none",
        "zero_norm": "raw",
    },
    "pytorch-lars-v1": {
        "trust_coefficient": 0.1,
        "trust_weight_decay": "momentum",
        "zero_norm": "raw",
    },
    "timm": {"eps": 1e-8, "momentum_scaling": "trust", "adapt": "decayed"},
    "larc": {
        "trust_coefficient": 0.02,
        "eps": 1e-8,
        "momentum_scaling": "trust",
        "zero_norm": "skip",
        "trust_clip": True,
    },
}
#: The options of each variant, by its name. `lars.PRESETS` is the same dictionary.
PRESETS = {name: {**_PAPER, **departure} for name, departure in _DEPARTURES.items()}

_CHOICES: dict[str, tuple[Any, ...]] = {
    "variant": tuple(PRESETS),
    "trust_norm": ("separate", "decayed"),
    "momentum_scaling": ("trust", "classic", "none"),
    "zero_norm": ("one", "skip", "raw"),
    "adapt": (True, False, "decayed"),
    "trust_clip": (True, False),
    "nesterov": (True, False),
    "maximize": (True, False),
    "capturable": (True, False),
    "differentiable": (True, False),
    "foreach": (True, False, None),
    "fused": (True, False, None),
}
_NUMBERS = ("lr", "momentum", "weight_decay", "trust_coefficient", "eps")
ABOVE_ZERO = ("clip_norm", "clip_value")
# Every option of a group, and those that a wrapper adds.
OPTIONS = frozenset(
    (*_CHOICES, *_NUMBERS, *ABOVE_ZERO, "dampening", "trust_weight_decay", "trust_eps")
)


def complete(group: dict[str, Any]) -> None:
    """Fill in a LARS group's options from its variant, and check them.

    Raises:
        ValueError: an option or a combination of options is invalid.

    """
    fill_from_preset(group)
    make_plain(group, OPTIONS & group.keys())
    check_options(group)
    check_combinations(group)


def fill_from_preset(group: dict[str, Any]) -> None:
    """Set every option of a group that is None to the value of the group's variant."""
    check_choice("variant", group["variant"])
    for option, value in PRESETS[group["variant"]].items():
        if group.get(option) is None:
            group[option] = value


def check_choice(name: str, value: Any) -> None:
    """Raise ValueError unless the value is one of the option's choices."""
    # True, False and None are compared by `is`, because 1 == True and 1 is not a valid flag.
    allowed = _CHOICES[name]
    known = any(value is choice for choice in allowed if not isinstance(choice, str))
    if not known and not (isinstance(value, str) and value in allowed):
        raise ValueError(f"Invalid {name} value: {value!r}; must be one of {list(allowed)}")


def check_number(name: str, value: Any) -> None:
    """Raise ValueError unless a value is finite and at least 0: a number or a 1-element tensor."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got one of shape {tuple(value.shape)}")
    is_number = isinstance(value, int | float | Tensor) and not isinstance(value, bool)
    if not is_number or not 0.0 <= value < math.inf:
        title = "learning rate" if name == "lr" else f"{name} value"
        raise ValueError(f"Invalid {title}: {value!r}; must be a finite number of 0 or more")


def check_options(group: dict[str, Any]) -> None:
    """Raise ValueError, with option and value, if an option in `group` is invalid by itself."""
    for name in _CHOICES.keys() & group.keys():
        check_choice(name, group[name])
    for name in _NUMBERS:
        if name in group:
            check_number(name, group[name])
    for name in ABOVE_ZERO:
        if group.get(name) is not None:
            check_number(name, group[name])
            if group[name] == 0:
                raise ValueError(f"Invalid {name} value: 0; must be above 0 or None (no clipping)")
    trust_weight_decay = group["trust_weight_decay"]
    is_name = isinstance(trust_weight_decay, str)
    if not is_name or trust_weight_decay not in ("weight_decay", "momentum"):
        check_number("trust_weight_decay", trust_weight_decay)


def check_combinations(group: dict[str, Any]) -> None:
    """Raise ValueError if options of a LARS group exclude each other, or dampening is invalid."""
    dampening = number(group["dampening"])
    if not (isinstance(dampening, int | float) and math.isfinite(dampening)):
        raise ValueError(
            f"Invalid dampening value: {group['dampening']!r}; must be a finite number"
        )
    if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError(
            "Nesterov momentum requires a momentum and zero dampening: nesterov=True with "
            f"momentum={group['momentum']!r}, dampening={group['dampening']!r}"
        )
    if group["fused"] and group["foreach"]:
        raise ValueError("fused=True and foreach=True exclude each other: set one of them")
    for flag in ("fused", "foreach"):
        if group[flag] and group["differentiable"]:
            raise ValueError(f"{flag}=True does not support differentiable=True")
    check_capturable(group)


def check_capturable(group: dict[str, Any]) -> None:
    """Raise ValueError if a CUDA graph would freeze a group's learning rate."""
    if group["capturable"] and not isinstance(group["lr"], Tensor):
        if any(p.device.type == "cuda" for p in group["params"]):
            raise ValueError(
                f"capturable=True on CUDA needs lr as a tensor, got lr={group['lr']!r}: "
                "a CUDA graph replays the value that a float had at capture"
            )
