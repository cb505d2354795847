"""Options as numbers of other libraries, in the constructor, in groups, and set between steps.

DINO and MoCo schedule with `group["weight_decay"] = np.float64(...)`. torch's SGD supports this. It
also supports tensors with one element, which are documented for weight_decay only.
"""

from __future__ import annotations

import fractions
import io
from typing import Any

import numpy as np
import pytest
import torch

from lars import LARS, LARSWrapper, parameter_groups

PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
MADE: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "longdouble": np.longdouble,
    "array": np.array,
    "fraction": fractions.Fraction,
    "tensor": lambda v: torch.tensor(v, dtype=torch.float64),
    "int64": np.int64,
    "int": int,
}
# Each is exact in fp16. The int64 tests use 1.
NUMBERS = {
    "lr": 0.5,
    "momentum": 0.5,
    "dampening": 0.25,
    "weight_decay": 0.125,
    "trust_coefficient": 0.25,
    "eps": 0.5,
    "trust_weight_decay": 0.125,
    "clip_norm": 0.5,
    "clip_value": 0.25,
}
OWN = ("trust_coefficient", "eps", "trust_weight_decay")
all_makes = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def walk(optimizer_of: Any, between: Any = None) -> list[torch.Tensor]:
    """Return two matrices after three steps; `between` is called with the group before each."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, 3, dtype=torch.float64)) for n in (4, 2)]
    optimizer = optimizer_of(params)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        if between is not None:
            between(optimizer.param_groups[0])
        optimizer.step()
    return [p.detach() for p in params]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@all_makes
@pytest.mark.parametrize("option", NUMBERS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_lars_accepts_them_everywhere(path: dict[str, Any], option: str, make: Any) -> None:
    """The result is bit-identical to that of a Python number."""
    value = 1 if make in (np.int64, int) else NUMBERS[option]
    base = {"lr": 0.25, "weight_decay": 0.25, **path}
    made = make(value)
    expected = walk(lambda p: LARS(p, **{**base, option: value}))
    assert equal(walk(lambda p: LARS(p, **{**base, option: made})), expected)
    assert equal(walk(lambda p: LARS([{"params": p, option: made}], **base)), expected)
    expected = walk(lambda p: LARS(p, **base), lambda g: g.update({option: value}))
    assert equal(walk(lambda p: LARS(p, **base), lambda g: g.update({option: made})), expected)


@all_makes
@pytest.mark.parametrize("option", [*OWN, "lr", "momentum", "weight_decay"])
def test_the_wrapper_accepts_them_everywhere(option: str, make: Any) -> None:
    """So do options of the wrapped optimizer, as far as that supports them."""
    value = 1 if make in (np.int64, int) else NUMBERS[option]
    if option not in OWN and make in (np.array, fractions.Fraction):
        pytest.skip("the wrapped SGD does not support it")
    common: dict[str, Any] = {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.25, "foreach": False}
    key = "trust_eps" if option == "eps" else option

    def build(params: Any, number: Any = None) -> LARSWrapper:
        given = {} if number is None else {option: number}
        own, inner = (given, common) if option in OWN else ({}, common | given)
        return LARSWrapper(torch.optim.SGD(params, **inner), **own)

    early = [walk(lambda p, n=n: build(p, n)) for n in (value, make(value))]
    late = [walk(build, lambda g, n=n: g.update({key: n})) for n in (value, make(value))]
    for found, expected in (early, late):
        torch.testing.assert_close(found, expected)


def test_numpy_bools_and_strings_are_accepted() -> None:
    """numpy's True is not Python's True, and its str is a subclass."""
    yes, no = np.bool_(True), np.bool_(False)
    options = {"nesterov": yes, "trust_clip": yes, "maximize": no, "foreach": no, "adapt": yes}
    plain = {key: bool(value) for key, value in options.items()}
    expected = walk(lambda p: LARS(p, 0.5, variant="timm", **plain))
    assert equal(walk(lambda p: LARS(p, 0.5, variant=np.str_("timm"), **options)), expected)
    timm = walk(lambda p: LARS(p, 0.5, variant="timm"), lambda g: g.update(options))
    assert equal(timm, expected)
    wrapped = {"trust_clip": no, "adapt": no, "zero_norm": np.str_("skip")}
    optimizer = LARSWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), **wrapped)
    assert optimizer.param_groups[0]["adapt"] is False
    with pytest.raises(ValueError, match="momentum value: True"):
        LARS([torch.nn.Parameter(torch.ones(1))], momentum=yes)


def test_a_state_dict_contains_python_numbers() -> None:
    """torch.load(weights_only=True), the default, rejects numpy's scalars."""
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = LARS([param], np.float64(0.5), weight_decay=np.float32(0.1))
    param.grad = torch.ones(2)
    optimizer.param_groups[0]["momentum"] = np.float64(0.75)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    group = torch.load(file, weights_only=True)["param_groups"][0]
    assert (group["lr"], group["momentum"]) == (0.5, 0.75)
    assert isinstance(group["weight_decay"], float)


@pytest.mark.parametrize("value", ["0.1", [0.1], np.array([0.1, 0.2]), 1j, np.float64("nan")])
def test_values_that_are_not_numbers_raise(value: Any) -> None:
    params = [torch.nn.Parameter(torch.ones(1))]
    for option in ("lr", "momentum", "weight_decay", "eps", "clip_norm", "trust_coefficient"):
        with pytest.raises(ValueError, match=r"Invalid (learning rate|\w+ value)"):
            LARS(params, **{option: value})
    for option in ("trust_coefficient", "eps"):
        with pytest.raises(ValueError, match=r"Invalid \w+ value"):
            LARSWrapper(torch.optim.SGD(params), **{option: value})
    with pytest.raises(ValueError, match="weight_decay value"):
        parameter_groups(torch.nn.Linear(1, 1), value)
    with pytest.raises(ValueError, match="bias_lr_scale value"):
        parameter_groups(torch.nn.Linear(1, 1), 0.1, bias_lr_scale=value)


@all_makes
def test_parameter_groups_accepts_them(make: Any) -> None:
    value = make(1) if make in (np.int64, int) else make(0.5)
    groups = parameter_groups(torch.nn.Linear(1, 1), value, bias_lr_scale=value)
    assert groups[0]["weight_decay"] == groups[1]["lr_scale"] == float(value)
    assert type(groups[0]["weight_decay"]) in (int, float)


def test_autograd_goes_through_a_weight_decay() -> None:
    """This is as in torch's SGD with differentiable=True."""

    def step(weight: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        weight = weight.clone()
        optimizer = LARS([weight], 0.5, weight_decay=decay, differentiable=True, zero_norm="skip")
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return weight

    weight = torch.arange(1.0, 4.0, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(step, (weight, decay))
