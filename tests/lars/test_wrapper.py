"""The wrapper equals LARS over SGD, and restores gradients and decay over any optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lars import LARS, LARSWrapper, parameter_groups

BASES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """Return a matrix, a vector of zeros and a complex vector."""
    torch.manual_seed(0)
    complex_dtype = torch.complex128 if dtype is torch.float64 else torch.complex64
    made = (torch.randn(3, 4, dtype=dtype), torch.zeros(3, dtype=dtype))
    return [torch.nn.Parameter(t) for t in (*made, torch.randn(2, dtype=complex_dtype))]


def step_with(
    optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], seed: int
) -> None:
    """Take a step with random gradients."""
    torch.manual_seed(seed)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trust_norm": "decayed"},
        {"trust_weight_decay": "momentum"},
        {"trust_weight_decay": 0.5},
        {"zero_norm": "skip", "trust_clip": True},
        {"adapt": False},
        {"adapt": "decayed"},
    ],
)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_over_sgd_it_is_lars(options: dict[str, Any], nesterov: bool, maximize: bool) -> None:
    """It equals momentum_scaling "trust" over 20 steps with a changing rate."""
    common: dict[str, Any] = {"momentum": 0.9, "nesterov": nesterov, "maximize": maximize}
    mine, theirs = parameters(), parameters()
    groups = [{"params": mine[:1], "weight_decay": 0.1}, {"params": mine[1:]}]
    lars = LARS(groups, 0.3, variant="torchlars", **common, **options)
    groups = [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:]}]
    wrapper = LARSWrapper(torch.optim.SGD(groups, lr=0.3, **common), **options)
    for step in range(20):
        for optimizer, params in ((lars, mine), (wrapper, theirs)):
            step_with(optimizer, params, step)
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert [g["weight_decay"] for g in wrapper.param_groups] == [0.1, 0]


@pytest.mark.parametrize("base", BASES)
def test_without_adaptation_it_is_the_base(base: str) -> None:
    """Weight decay, too, acts as in the base."""
    plain, wrapped = parameters(), parameters()
    first, second = BASES[base](plain), LARSWrapper(BASES[base](wrapped), adapt=False)
    for step in range(5):
        step_with(first, plain, step)
        step_with(second, wrapped, step)
    torch.testing.assert_close(plain, wrapped, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Muon"])
@pytest.mark.parametrize("adapt", [True, False])
def test_decoupled_weight_decay_is_not_scaled(name: str, adapt: bool) -> None:
    """With lr * weight_decay = 0.1 and a zero gradient, a weight shrinks by a tenth."""
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    param = torch.nn.Parameter(torch.ones(2, 2))
    base = getattr(torch.optim, name)([param], lr=0.5, weight_decay=0.2)
    optimizer = LARSWrapper(base, adapt=adapt)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((2, 2), 0.9))
    assert base.param_groups[0]["weight_decay"] == 0.2


def test_a_failed_construction_does_not_change_the_optimizer() -> None:
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "trust_coefficient": -2.0}]
    base = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    for param in params:
        param.grad = torch.ones_like(param)
    base.step()
    with pytest.raises(ValueError, match=r"Invalid trust_coefficient value: -2\.0"):
        LARSWrapper(base)
    assert [group["params"] for group in base.param_groups] == [params[:1], params[1:]]
    assert set(base.state) == set(params)


class _Breaks(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        """Modify the gradients in place, as some optimizers do, then raise."""
        assert all(group["weight_decay"] == 0 for group in self.param_groups)
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.zero_()
        raise RuntimeError("no step")


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adapt_decayed_includes_decoupled_decay(weight_decay: float) -> None:
    for adapt in ("decayed", weight_decay != 0):
        params = [torch.nn.Parameter(torch.ones(3))]
        params[0].grad = torch.full((3,), 0.5)
        base = torch.optim.AdamW(params, weight_decay=weight_decay)
        LARSWrapper(base, adapt=adapt).step()
        if adapt == "decayed":
            found = base.state[params[0]]["exp_avg"]
    assert torch.equal(found, base.state[params[0]]["exp_avg"])
    assert (found[0] < 0.01) == (weight_decay != 0)


def test_gradients_and_decay_are_restored_if_the_base_raises() -> None:
    """p.grad is the same tensor as before, with the same values."""
    params = parameters()
    optimizer = LARSWrapper(_Breaks(params, lr=0.1, weight_decay=0.3))
    for param in params:
        param.grad = torch.ones_like(param)
    grads = [p.grad for p in params]
    with pytest.raises(RuntimeError, match="no step"):
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    for param, grad in zip(params, grads, strict=True):
        assert param.grad is grad
        assert torch.equal(grad, torch.ones_like(param))  # type: ignore[arg-type]


@pytest.mark.parametrize("base", BASES)
def test_state_dict_round_trip(base: str) -> None:
    """It contains the wrapper's options and the base's state. The next step is equal."""
    mine, theirs = parameters(), parameters()
    original = LARSWrapper(BASES[base](mine), trust_coefficient=0.5, eps=0.25)
    step_with(original, mine, 0)
    restored = LARSWrapper(BASES[base](theirs))
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    assert restored.optimizer.param_groups is restored.param_groups
    assert restored.param_groups[0]["trust_eps"] == 0.25
    with torch.no_grad():
        for target, source in zip(theirs, mine, strict=True):
            target.copy_(source)
    step_with(original, mine, 1)
    step_with(restored, theirs, 1)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_it_loads_a_checkpoint_of_its_base() -> None:
    """Options that the checkpoint lacks come from the constructor. Wrapping keeps the state."""
    params = parameters()
    base = BASES["Adam"](params)
    step_with(base, params, 0)
    optimizer = LARSWrapper(base, eps=0.5)
    assert optimizer.state[params[0]]["step"] == 1
    optimizer.load_state_dict(base.state_dict())
    plain = BASES["Adam"](parameters()).state_dict()
    optimizer.load_state_dict(plain)
    assert optimizer.param_groups[0]["trust_eps"] == 0.5
    assert optimizer.param_groups[0]["eps"] == 1e-8


@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_wrapper_and_base_share_groups(on: str) -> None:
    """A rate that is set on one, or a group that is added to it, is set or added on the other."""
    params = parameters()
    optimizer = LARSWrapper(BASES["SGD"](params[:1]))
    target = optimizer if on == "wrapper" else optimizer.optimizer
    scheduler = torch.optim.lr_scheduler.OneCycleLR(target, max_lr=1.0, total_steps=10)
    for step in range(4):
        step_with(optimizer, params[:1], step)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.optimizer.param_groups[0]["lr"] > 0.04
    optimizer.add_param_group({"params": params[1:2], "trust_coefficient": 0.5})
    assert optimizer.optimizer.param_groups[1]["trust_coefficient"] == 0.5
    assert optimizer.param_groups[1]["momentum"] == 0.9
    step_with(optimizer, params[:2], 9)
    assert params[1].abs().sum() > 0


def test_groups_that_are_not_adapted() -> None:
    """The base may have groups of `parameter_groups`: biases have ratio 1."""
    model = torch.nn.Linear(3, 2)
    base = torch.optim.SGD(parameter_groups(model, 0.1), lr=1.0)
    optimizer = LARSWrapper(base, trust_coefficient=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before[0])
    torch.testing.assert_close(model.bias.detach(), before[1] - 1.0)


def test_invalid_arguments_raise() -> None:
    """The ValueError contains argument and value. TypeError means no supported optimizer."""
    params = parameters()
    with pytest.raises(ValueError, match="eps value: -1"):
        LARSWrapper(torch.optim.SGD(params), eps=-1)
    with pytest.raises(ValueError, match="zero_norm value: 'two'"):
        LARSWrapper(torch.optim.SGD(params), zero_norm="two")
    with pytest.raises(ValueError, match="trust_coefficient value: -2"):
        LARSWrapper(torch.optim.SGD([{"params": params, "trust_coefficient": -2}]))
    with pytest.raises(TypeError, match="list"):
        LARSWrapper(params)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LBFGS"):
        LARSWrapper(torch.optim.LBFGS([torch.nn.Parameter(torch.ones(2))]))
