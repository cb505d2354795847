"""LAMB compared with a plain float64 reference of the paper's formulas, and its manners."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lars import LAMB, LARSWrapper, parameter_groups
from lars.reference import lamb_step
from tests.helpers.optimizers import Recorder, problem, weights_with_and_without_a_switch

PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "capturable": {"capturable": True},
}
all_paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)

hyper_parameters = st.fixed_dictionaries(
    {
        "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.5, 0.0)]),
        "eps": st.sampled_from([1e-6, 0.1]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
        "bounds": st.sampled_from([None, (0.5, 2.0)]),
        "adapt": st.booleans(),
        "maximize": st.booleans(),
    }
)
shapes = st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4)
all_groups = st.lists(st.tuples(hyper_parameters, shapes), min_size=1, max_size=2)


def run_both(
    groups: list[Any], seed: int, path: dict[str, Any], dtype: torch.dtype, steps: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the weights of LAMB and of the reference after steps at changing rates.

    Some tensors start at zero and some gradients are zero or missing. The reference gets the same
    numbers, after rounding to `dtype`, in float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: list[int]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    param_groups, rows = [], []
    for h, group_shapes in groups:
        tensors = [draw(shape) for shape in group_shapes]
        if seed % 2:
            tensors[0].zero_()
        params = [torch.nn.Parameter(t.clone()) for t in tensors]
        low, high = h["bounds"] or (None, None)
        own = {k: v for k, v in h.items() if k != "bounds"}
        bounds = {"weight_norm_min": low, "weight_norm_max": high}
        param_groups.append({"params": params, **own, **bounds})
        zeros = [torch.zeros_like(t, dtype=torch.float64) for t in tensors]
        options = {k: h[k] for k in ("eps", "weight_decay", "bounds", "adapt")}
        options |= {"beta1": h["betas"][0], "beta2": h["betas"][1]}
        sign = -1.0 if h["maximize"] else 1.0
        for param, zero in zip(params, zeros, strict=True):
            rows.append([param, param.detach().double(), zero, zero, 0, sign, options])
    optimizer = LAMB(param_groups, lr=1.0, **path)
    for step in range(steps):
        lr = 0.1 * min((step + 1) / 10, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for place, row in enumerate(rows):
            param, w, m, v, t, sign, options = row
            param.grad = draw(list(param.shape))
            if place == 1 and step % 5 == 1:
                param.grad.zero_()
            if place == 0 and step == 3:
                param.grad = None
                continue
            w, m, v = lamb_step(w, sign * param.grad.double(), m, v, t + 1, lr, **options)
            row[1:5] = w, m, v, t + 1
        optimizer.step()
    return [(row[0].detach(), row[1]) for row in rows]


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=15, deadline=None)
@given(groups=all_groups, seed=st.integers(0, 2**20))
def test_every_path_follows_the_formulas_in_float64(path: str, groups: Any, seed: int) -> None:
    for found, expected in run_both(groups, seed, PATHS[path], torch.float64, 40):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)])
def test_the_error_of_other_dtypes_is_within_their_rounding(
    path: str, dtype: torch.dtype, error: float
) -> None:
    options = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "bounds": None}
    groups = [(options | {"adapt": True, "maximize": False}, [[5, 4], [3], [2, 3, 2]])]
    for found, expected in run_both(groups, 2, PATHS[path], dtype, 20):
        assert found.dtype is dtype
        assert (found.double() - expected).norm() < error * expected.norm()


@all_paths
def test_a_step_by_hand(path: dict[str, Any]) -> None:
    """At the first step r is sign(g), so u = (1, -1) + 0.1 * (3, 4), and ||w|| is 5."""
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    param.grad = torch.tensor([6.0, -8.0], dtype=torch.float64)
    optimizer = LAMB([param], lr=0.2, eps=0.0, weight_decay=0.1, **path)
    optimizer.step()
    rate = 0.2 * 5 / math.hypot(1.3, -0.6)
    assert param.tolist() == pytest.approx([3 - rate * 1.3, 4 + rate * 0.6], rel=1e-13)
    state = optimizer.state[param]
    assert state["exp_avg"].tolist() == pytest.approx([0.6, -0.8], rel=1e-13)
    assert state["exp_avg_sq"].tolist() == pytest.approx([0.036, 0.064], rel=1e-13)
    assert state["step"].item() == 1
    assert param.grad.tolist() == [6.0, -8.0]


@all_paths
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_without_adaptation_it_is_adamw(path: dict[str, Any], weight_decay: float) -> None:
    """Both subtract lr * (r + weight_decay * w)."""
    ends = []
    for make in (torch.optim.AdamW, LAMB):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
        own = {"adapt": False, **path} if make is LAMB else {}
        optimizer = make([param], lr=0.01, eps=1e-6, weight_decay=weight_decay, **own)
        for _ in range(20):
            param.grad = torch.randn_like(param)
            optimizer.step()
        ends.append(param.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


def test_bounds_of_phi() -> None:
    """||w|| is 5 and ||u|| is sqrt(2): the bound replaces ||w||, also that of a tensor of zeros."""
    for value, bounds, norm in (
        (5.0, {"weight_norm_max": 2.0}, 2.0),
        (5.0, {"weight_norm_min": 7.0}, 7.0),
        (5.0, {"weight_norm_min": 1.0, "weight_norm_max": 6.0}, 5.0),
        (0.0, {"weight_norm_min": 3.0}, 3.0),
    ):
        weights = torch.tensor([0.6, 0.8], dtype=torch.float64) * value
        param = torch.nn.Parameter(weights.clone())
        param.grad = torch.ones(2, dtype=torch.float64)
        LAMB([param], lr=0.1, eps=0.0, **bounds).step()
        moved = (weights - param.detach()).tolist()
        assert moved == pytest.approx([0.1 * norm / math.sqrt(2)] * 2, rel=1e-12)


@all_paths
def test_a_tensor_of_zeros_trains_and_a_zero_gradient_gives_no_nan(path: dict[str, Any]) -> None:
    zeros, still = (torch.nn.Parameter(torch.full((3,), value)) for value in (0.0, 1.0))
    zeros.grad, still.grad = torch.ones(3), torch.zeros(3)
    LAMB([zeros, still], lr=0.1, **path).step()
    assert zeros.tolist() == pytest.approx([-0.1] * 3, rel=1e-5)
    assert still.tolist() == [1.0] * 3


@all_paths
def test_adapt_is_per_group(path: dict[str, Any]) -> None:
    """`parameter_groups` exempts biases and normalization, "decayed" what does not decay."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    for options in ({}, {"adapt": "decayed"}):
        optimizer = LAMB([{**g, **options} for g in parameter_groups(model, 0.1)], lr=0.5, **path)
        optimizer.telemetry = True
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        found = optimizer.layer_statistics()
        assert found.keys() == dict(model.named_parameters()).keys()
        adapted = [name for name, row in found.items() if row["trust_ratio"].item() != 1]
        assert adapted == ["0.weight"]


@all_paths
def test_telemetry(path: dict[str, Any]) -> None:
    """Statistics have the norms and the ratio of the step, in the form of LARS; off, none."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(4, 3))
    grad = torch.randn(4, 3)
    param.grad = grad.clone()
    optimizer = LAMB([("w", param)], lr=0.5, weight_decay=0.1, **path)
    optimizer.step()
    assert optimizer.layer_statistics() == {}
    start = param.detach().clone()
    optimizer.telemetry = True
    optimizer.step()
    (row,) = optimizer.layer_statistics().values()
    assert list(row) == ["weight_norm", "gradient_norm", "trust_ratio", "effective_rate"]
    assert row["weight_norm"].item() == pytest.approx(start.norm().item(), rel=1e-6)
    assert row["gradient_norm"].item() == pytest.approx(grad.norm().item(), rel=1e-6)
    # Under a constant gradient, both averages after correction are those of one step.
    update = grad / (grad.abs() + 1e-6) + 0.1 * start
    ratio = (start.norm() / update.norm()).item()
    assert row["trust_ratio"].item() == pytest.approx(ratio, rel=1e-5)
    assert row["effective_rate"].item() == pytest.approx(0.5 * ratio, rel=1e-5)
    assert all(value.dim() == 0 for value in row.values())


@all_paths
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_the_loss_changes_in_the_right_direction(
    path: dict[str, Any], maximize: bool, tensor_lr: bool
) -> None:
    """A scheduler halves the learning rate, a float or a tensor."""
    params, loss_of = problem()
    lr = torch.tensor([0.04]) if tensor_lr else 0.04
    optimizer = LAMB(params, lr, weight_decay=1e-4, maximize=maximize, **path)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    before = loss_of().item()
    for _ in range(10):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        scheduler.step()
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.01)
    assert (loss_of().item() > before) is maximize


@all_paths
@pytest.mark.parametrize("target", PATHS)
def test_state_moves_between_paths(path: dict[str, Any], target: str) -> None:
    """Training resumes from a state_dict, on the same or another path, with the same results."""
    ends = weights_with_and_without_a_switch(
        lambda params: LAMB(params, lr=0.1, weight_decay=0.01, **path),
        lambda params: LAMB(params, lr=5.0, eps=1.0, **PATHS[target]),
        {"foreach": None, "capturable": False} | PATHS[target],
    )
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


def test_a_state_dict_of_another_version_loads() -> None:
    """Options that it lacks come from the constructor."""
    params, loss_of = problem()
    optimizer = LAMB(params, weight_norm_max=10.0)
    loss_of().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    del state["param_groups"][0]["weight_norm_max"]
    other = LAMB(params, weight_norm_max=3.0)
    other.load_state_dict(state)
    assert other.param_groups[0]["weight_norm_max"] == 3.0


def test_copies_are_independent_and_complete() -> None:
    """Deepcopy and pickle keep groups and state. A step of the copy changes only the copy."""
    params, loss_of = problem()
    optimizer = LAMB(params, torch.tensor(0.5), weight_decay=0.1, weight_norm_max=10.0)
    loss_of().backward()
    optimizer.step()
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert repr(copied) == repr(optimizer)
        theirs = copied.param_groups[0]["params"]
        before = [p.detach().clone() for p in params]
        for param, own in zip(theirs, params, strict=True):
            for name, value in optimizer.state[own].items():
                assert torch.equal(copied.state[param][name], value)
            param.grad = torch.ones_like(param)
        copied.step()
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
        assert not torch.equal(theirs[0], params[0])


def test_options_may_be_numpy_numbers() -> None:
    """They become Python's own, so that a state_dict can be loaded with weights_only."""
    param = torch.nn.Parameter(torch.ones(3))
    betas = (np.float64(0.5), np.array(0.25))
    optimizer = LAMB([param], np.float32(0.5), betas, weight_decay=np.array(0.1))
    group = optimizer.param_groups[0]
    assert group["betas"] == (0.5, 0.25)
    assert {type(v) for v in (*group["betas"], group["lr"], group["weight_decay"])} == {float}
    group["lr"] = np.float64(0.0)
    param.grad = torch.ones(3)
    optimizer.step()
    assert param.tolist() == [1.0] * 3


def test_groups_have_options_and_a_late_group_trains() -> None:
    params, loss_of = problem()
    late = torch.nn.Parameter(torch.ones(2))
    optimizer = LAMB([{"params": params[:1], "lr": 0.0}, {"params": params[1:]}], lr=0.1)
    optimizer.add_param_group({"params": late, "betas": (0.5, 0.5)})
    before = [p.detach().clone() for p in (*params, late)]
    loss_of().backward()
    late.grad = torch.ones(2)
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip((*params, late), before, strict=True)]
    assert moved == [False, True, True]
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.add_param_group({"params": torch.nn.Parameter(torch.ones(1)), "weight_decay": -1})
    assert len(optimizer.param_groups) == 3


@all_paths
def test_grad_scaler(path: dict[str, Any]) -> None:
    """The moments use unscaled gradients. A step with inf is skipped, its count too."""
    ends = []
    for scale in (1.0, 1024.0):
        params, loss_of = problem()
        # With a small eps, the scale of the gradients would make no difference.
        optimizer = LAMB(params, 0.1, eps=10.0, weight_decay=0.1, **path)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_of()).backward()
            if step == 2:
                params[0].grad[0, 0] = torch.inf  # type: ignore[index]
            before = [p.detach().clone() for p in params]
            scaler.step(optimizer)
            scaler.update()
            same = all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
            assert same is (step == 2)
        assert optimizer.state[params[0]]["step"].item() == 3
        ends.append(params)
    torch.testing.assert_close(*ends)


def test_a_foreach_step_does_not_sync_and_has_a_fixed_number_of_calls() -> None:
    """It makes as many calls for 80 tensors as for 2."""
    counts = []
    for number in (2, 80):
        params = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(number)]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = LAMB(
            params, torch.tensor(0.1), weight_decay=0.1, weight_norm_max=10.0, capturable=True
        )
        optimizer.telemetry = True
        optimizer.step()
        with Recorder() as recorder:
            optimizer.step()
        counts.append(len(recorder.calls))
    assert counts[0] == counts[1] < 45


def test_without_foreach_tensors_are_updated_one_by_one() -> None:
    params = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(5)]
    for param in params:
        param.grad = torch.randn_like(param)
    counts = []
    for some in (params[:1], params):
        optimizer = LAMB(some, foreach=False)
        optimizer.step()
        with Recorder() as recorder:
            optimizer.step()
        counts.append(len(recorder.calls))
    assert counts[1] > 4 * counts[0]


def test_a_capture_that_would_freeze_a_number_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises for a rate as a number, for capturable=False and for a first step."""
    refused: list[str] = []

    def refuse(param: Tensor, what: str) -> None:
        refused.append(what.partition(":")[0])

    monkeypatch.setattr("lars.bucket.check_not_capturing", refuse)
    monkeypatch.setattr("lars.lamb.check_not_capturing", refuse)
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    rate = "lr that is not a tensor on the parameter's device"
    for options, expected in (
        ({"lr": 0.1}, ["a first step", "capturable=False", rate]),
        ({"lr": torch.tensor(0.1), "capturable": True}, ["a first step"]),
    ):
        optimizer = LAMB([param], **options)
        optimizer.step()
        assert refused == expected
        refused.clear()
    optimizer.step()
    assert refused == []


def test_what_is_not_supported_raises() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        LAMB([param]).step()
    with pytest.raises(ValueError, match="does not support complex parameters"):
        LAMB([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    param.grad = torch.ones(3)
    optimizer = LAMB([param])
    optimizer.step()
    optimizer.state[param]["exp_avg_sq"] = torch.zeros(4)
    with pytest.raises(RuntimeError, match=r"exp_avg_sq has shape \(4,\), its parameter \(3,\)"):
        optimizer.step()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"lr": -0.1}, "learning rate: -0.1; must be a finite number of 0 or more"),
    ({"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
    ({"betas": (0.9, 1.0)}, r"betas value: \(0.9, 1.0\); must be two numbers in \[0, 1\)"),
    ({"betas": (0.9,)}, r"betas value: \(0.9,\)"),
    ({"betas": 0.9}, "betas value: 0.9"),
    ({"betas": (True, 0.9)}, "betas value"),
    ({"betas": (0.9, float("nan"))}, "betas value"),
    ({"eps": -1e-8}, "eps value: -1e-08; must be a finite number of 0 or more"),
    ({"weight_decay": float("inf")}, "weight_decay value: inf"),
    ({"weight_norm_max": -1.0}, "weight_norm_max value: -1.0"),
    ({"weight_norm_min": "no"}, "weight_norm_min value: 'no'"),
    (
        {"weight_norm_min": 3.0, "weight_norm_max": 2.0},
        "weight_norm_min value: 3.0; must be at most weight_norm_max=2.0",
    ),
    ({"adapt": "weights"}, r"adapt value: 'weights'; must be one of \[True, False, 'decayed'\]"),
    ({"foreach": "yes"}, "foreach value: 'yes'"),
    ({"maximize": 1}, "maximize value: 1"),
    ({"capturable": None}, "capturable value: None"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m for _, m in BAD])
@pytest.mark.parametrize("place", ["constructor", "group"])
def test_invalid_arguments_raise(options: dict[str, Any], message: str, place: str) -> None:
    """The ValueError has the argument, its value and what is allowed."""
    params = [torch.nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match=message):
        LAMB(params, **options) if place == "constructor" else LAMB([{"params": params, **options}])


def test_the_wrapper_leaves_its_decay_alone() -> None:
    """LARSWrapper knows that the decay is decoupled: it does not warn, and LAMB applies it."""
    param = torch.nn.Parameter(torch.full((2,), 2.0))
    param.grad = torch.zeros(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LARSWrapper(LAMB([param], lr=0.5, weight_decay=0.1)).step()
    # u = 0.1 * w and ratio = ||w|| / ||u|| = 10, so a step of lr * w.
    assert param.tolist() == pytest.approx([1.0, 1.0])
