"""LARS compared with a plain float64 reference that follows the published formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lars import LARS, PRESETS
from lars.reference import lars_step

PATHS = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}

# From the published sources, independent of lars/presets.py.
# Rule A: ratio before the buffer, lr after it. B: both before it (the paper). C: both after it.
TABLE: dict[str, dict[str, Any]] = {
    "paper": {"D": "separate", "rule": "B", "zero": "one", "eps": 0.0},
    "blog": {"D": "separate", "rule": "C", "zero": "raw", "eps": 1e-15},
    "quadra": {"D": "separate", "rule": "A", "zero": "skip", "eps": 1e-8, "only_decayed": True},
    "torchlars": {"D": "separate", "rule": "A", "zero": "one", "eps": 1e-8},
    "braintools": {"D": "decayed", "rule": "A", "zero": "one", "eps": 1e-8},
    "pytorch-lars": {"D": "momentum", "rule": "C", "zero": "raw", "eps": 0.0, "eta": 0.1},
    "pytorch-lars-v1": {"D": "momentum", "rule": "B", "zero": "raw", "eps": 0.0, "eta": 0.1},
    "timm": {"D": "separate", "rule": "A", "zero": "one", "eps": 1e-8, "only_decayed": True},
    "larc": {"D": "separate", "rule": "A", "zero": "skip", "eps": 1e-8, "clip": True, "eta": 0.02},
}


def reference_step(
    w: Tensor, g: Tensor, v: Tensor | None, y: float, h: dict[str, Any], system: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return weights and buffer of a float64 tensor after one step of a published system.

    Args:
        w: weights.
        g: gradient.
        v: momentum buffer; None at the first step.
        y: learning rate.
        h: hyper-parameters of the group.
        system: a row of TABLE.

    """
    b, m, damp = h["weight_decay"], h["momentum"], h["dampening"]
    if h["maximize"]:
        g = -g
    if system is TABLE["paper"]:
        options = {key: h[key] for key in ("momentum", "weight_decay", "dampening", "nesterov")}
        return lars_step(w, g, v, y, **options)
    u = g + b * w
    ratio = torch.ones((), dtype=torch.float64)
    if b != 0 or not system.get("only_decayed"):
        if system["D"] == "separate":
            gradient_norm, denominator = g.norm(), g.norm() + b * w.norm()
        elif system["D"] == "momentum":
            gradient_norm, denominator = g.norm(), g.norm() + m * w.norm()
        else:
            gradient_norm, denominator = u.norm(), u.norm()
        vanishing = w.norm() == 0 or gradient_norm == 0
        if vanishing and system["zero"] == "skip":
            u = g
        elif vanishing and system["zero"] == "one":
            ratio = torch.ones((), dtype=torch.float64)
        else:
            ratio = system.get("eta", 0.001) * w.norm() / (denominator + system["eps"])
        if system.get("clip") and not (vanishing and system["zero"] == "skip"):
            ratio = min(ratio / y, torch.ones_like(ratio)) if y > 0 else torch.ones_like(ratio)
    into_buffer = {"A": ratio * u, "B": y * ratio * u, "C": u}[system["rule"]]
    if m == 0:
        return w - y * ratio * u, into_buffer
    v = into_buffer if v is None else m * v + (1 - damp) * into_buffer
    step = into_buffer + m * v if h["nesterov"] else v
    if system["rule"] == "A":
        return w - y * step, v
    if system["rule"] == "B":
        return w - step, v
    return w - y * ratio * step, v


def hyper_parameters() -> st.SearchStrategy[dict[str, Any]]:
    """Return hyper-parameters of a group, with Nesterov only if it is allowed."""

    def settle(h: dict[str, Any]) -> dict[str, Any]:
        h["nesterov"] = h["nesterov"] and h["momentum"] > 0 and h["dampening"] == 0
        return h

    return st.fixed_dictionaries(
        {
            "momentum": st.sampled_from([0.0, 0.5, 0.9]),
            "dampening": st.sampled_from([0.0, 0.0, 0.3]),
            "weight_decay": st.sampled_from([0.0, 5e-4, 0.1]),
            "nesterov": st.booleans(),
            "maximize": st.booleans(),
        }
    ).map(settle)


shapes = st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4)
groups = st.lists(st.tuples(hyper_parameters(), shapes), min_size=1, max_size=2)


def run_both(
    variant: str,
    groups: list[Any],
    seed: int,
    options: dict[str, Any],
    dtype: torch.dtype,
    steps: int,
) -> list[tuple[Tensor, Tensor, float]]:
    """Return (weights of LARS, of the reference, largest norm of the latter) for each tensor.

    The learning rate changes at each step, and some tensors and gradients are zero. The reference
    gets the same numbers, after rounding to `dtype`, in float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: list[int]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    system = TABLE[variant]
    param_groups, expected = [], []
    for h, group_shapes in groups:
        tensors = [draw(shape) for shape in group_shapes]
        # In half of the examples one tensor starts at zero, as a bias does.
        if seed % 2:
            tensors[0].zero_()
        param_groups.append({"params": [torch.nn.Parameter(t.clone()) for t in tensors], **h})
        expected.append([[t.double(), None, t.double().norm().item()] for t in tensors])
    optimizer = LARS(param_groups, lr=1.0, variant=variant, **options)
    for step in range(steps):
        # Warm-up from 0, then decay: rules A and B differ only if the rate changes.
        lr = 2.0 * min(step / 10, 1.0) * (1 - step / (2 * steps))
        for group, wanted in zip(optimizer.param_groups, expected, strict=True):
            group["lr"] = lr
            for index, param in enumerate(group["params"]):
                gradient = draw(list(param.shape))
                if step % 7 == 3 and index == 0:
                    gradient.zero_()
                param.grad = gradient.clone()
                w, v, largest = wanted[index]
                w, v = reference_step(w, gradient.double(), v, lr, group, system)
                wanted[index] = [w, v, max(largest, w.norm().item())]
        optimizer.step()
    found = [p.detach().double() for g in optimizer.param_groups for p in g["params"]]
    rows = [row for wanted in expected for row in wanted]
    return [(f, w, largest) for f, (w, _, largest) in zip(found, rows, strict=True)]


def relative_error(found: Tensor, expected: Tensor, largest: float) -> float:
    """Return the norm of the difference over `largest`, because a weight may end near 0."""
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    finite = expected.isfinite()
    difference = (found - expected)[finite].norm().item()
    return difference / largest if difference else 0.0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", TABLE)
@settings(max_examples=4, deadline=None)
@given(groups=groups, seed=st.integers(0, 2**20))
def test_every_path_follows_the_formulas_in_float64(
    variant: str, path: str, groups: list[Any], seed: int
) -> None:
    """The results are equal after 50 steps, except for float64 rounding."""
    for row in run_both(variant, groups, seed, PATHS[path], torch.float64, 50):
        assert relative_error(*row) < 1e-11


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", [v for v, s in TABLE.items() if s["zero"] != "raw"])
@settings(max_examples=4, deadline=None)
@given(groups=groups, seed=st.integers(0, 2**20))
def test_every_path_follows_the_formulas_in_fp32(
    variant: str, path: str, groups: list[Any], seed: int
) -> None:
    """Here, but not in float64, the fused path uses torch's kernel with an adapted dampening."""
    for row in run_both(variant, groups, seed, PATHS[path], torch.float32, 50):
        assert relative_error(*row) < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=4, deadline=None)
@given(groups=groups, seed=st.integers(0, 2**20))
def test_the_error_of_half_precision_is_within_its_rounding(
    path: str, dtype: torch.dtype, groups: list[Any], seed: int
) -> None:
    """Each step rounds weights and buffer once or twice."""
    steps = 12
    for row in run_both("paper", groups, seed, PATHS[path], dtype, steps):
        assert relative_error(*row) < steps * torch.finfo(dtype).eps


@pytest.mark.parametrize("variant", TABLE)
def test_presets_have_the_published_values(variant: str) -> None:
    system, preset = TABLE[variant], PRESETS[variant]
    assert preset["eps"] == system["eps"]
    assert preset["momentum_scaling"] == {"A": "trust", "B": "classic", "C": "none"}[system["rule"]]
    assert preset["zero_norm"] == system["zero"]
    assert preset["trust_norm"] == ("decayed" if system["D"] == "decayed" else "separate")
    wanted = "momentum" if system["D"] == "momentum" else "weight_decay"
    assert preset["trust_weight_decay"] == wanted
    assert preset["adapt"] == ("decayed" if system.get("only_decayed") else True)
    assert preset["trust_clip"] is system.get("clip", False)
    assert preset["trust_coefficient"] == system.get("eta", 0.001)
    assert set(TABLE) == set(PRESETS)


def test_explicit_options_take_precedence_over_a_variant() -> None:
    """This holds in the constructor and in a group. A group's variant sets its other options."""
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = LARS(
        [{"params": [a]}, {"params": [b], "variant": "larc", "zero_norm": "one"}],
        variant="timm",
        eps=0.5,
    )
    first, second = optimizer.param_groups
    assert (first["eps"], first["momentum_scaling"], first["adapt"]) == (0.5, "trust", "decayed")
    assert (second["eps"], second["zero_norm"], second["trust_clip"]) == (0.5, "one", True)
    assert second["trust_coefficient"] == 0.02


@pytest.mark.parametrize("path", PATHS)
def test_a_step_by_hand(path: str) -> None:
    """||w|| = 5, ||g|| = 10, weight decay 0.1: ratio 0.001 * 5 / 10.5."""
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    param.grad = torch.tensor([6.0, 8.0], dtype=torch.float64)
    optimizer = LARS([param], lr=2.0, momentum=0.5, weight_decay=0.1, **PATHS[path])
    ratio = 0.001 * 5 / 10.5
    first = 2.0 * ratio * 6.3
    optimizer.step()
    assert param[0].item() == pytest.approx(3.0 - first, rel=1e-14)
    buffer = optimizer.state[param]["momentum_buffer"]
    assert buffer[0].item() == pytest.approx(first, rel=1e-14)


@pytest.mark.parametrize("path", PATHS)
def test_the_classic_buffer_contains_earlier_rates(path: str) -> None:
    """At lr 0 the paper's rule still applies the buffer. Under "trust" the weights stay."""
    moved = {}
    for scaling in ("classic", "trust"):
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = LARS([param], lr=1.0, momentum_scaling=scaling, **PATHS[path])
        param.grad = torch.ones(3)
        optimizer.step()
        before = param.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        moved[scaling] = (param - before).abs().max().item()
    assert moved["classic"] == pytest.approx(0.9 * 0.001, rel=1e-3)
    assert moved["trust"] == 0.0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("momentum_scaling", ["classic", "trust", "none"])
def test_norms_whose_squares_exceed_fp32(
    path: str, scale: float, momentum: float, momentum_scaling: str
) -> None:
    """Only the fused path computes the norm of a gradient that fp32 cannot square.

    At 1e-40 the ratio, 1e39, exceeds fp32, too.
    """
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.full((4,), scale)
    options = {"trust_coefficient": 0.1, "momentum_scaling": momentum_scaling, **PATHS[path]}
    LARS([param], 1.0, momentum, **options).step()
    if path == "fused":
        assert param[0].item() == pytest.approx(0.9, rel=1e-4)
    else:  # torch's norm is 0 or inf here, so the weight hardly changes and is not NaN
        assert param[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("path", PATHS)
def test_a_rate_too_small_for_the_kernel_s_dampening(path: str) -> None:
    """Below 1e-9, 1 - (1 - x) is not x. The step must be exact nevertheless."""
    param = torch.nn.Parameter(torch.full((3,), 1.0))
    param.grad = torch.ones(3)
    optimizer = LARS([param], lr=1e-10, trust_coefficient=1e-3, **PATHS[path])
    optimizer.step()
    buffer = optimizer.state[param]["momentum_buffer"]
    assert buffer[0].item() == pytest.approx(1e-13, rel=1e-5, abs=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("clip_norm", [0.5, 1e9])
@pytest.mark.parametrize("maximize", [False, True])
def test_clipping_by_norm_is_over_all_groups(path: str, clip_norm: float, maximize: bool) -> None:
    """The result equals that of gradients that are clipped by their global norm beforehand."""
    torch.manual_seed(0)
    start = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    grads = [torch.randn_like(t) for t in start]
    total = math.sqrt(sum(g.square().sum().item() for g in grads))
    results = []
    for clip in (clip_norm, None):
        params = [torch.nn.Parameter(t.clone()) for t in start]
        optimizer = LARS(
            [{"params": params[:1]}, {"params": params[1:], "adapt": False}],
            lr=0.5,
            weight_decay=0.1,
            clip_norm=clip,
            maximize=maximize,
            **PATHS[path],
        )
        for _ in range(3):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad if clip else grad * min(1.0, clip_norm / total)
            optimizer.step()
        results.append(params)
        if clip:
            assert optimizer.grad_norm is not None
            assert optimizer.grad_norm.item() == pytest.approx(total)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_clipping_by_value_comes_after_the_norm(path: str) -> None:
    """The gradient (3, -4) becomes (1.5, -2) by clip_norm, then (1.5, -1.75) by clip_value."""
    found = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    expected = copy.deepcopy(found)
    found.grad = torch.tensor([3.0, -4.0], dtype=torch.float64)
    expected.grad = torch.tensor([1.5, -1.75], dtype=torch.float64)
    LARS([found], clip_norm=2.5, clip_value=1.75, weight_decay=0.1, **PATHS[path]).step()
    LARS([expected], weight_decay=0.1, **PATHS[path]).step()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    assert found.grad.tolist() == [3.0, -4.0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("zero_norm", "moved"), [("one", 1.0), ("skip", 2.0)])
def test_a_clipped_ratio_at_a_zero_norm(path: str, zero_norm: str, moved: float) -> None:
    """As in timm and apex, a ratio of 1 becomes 1 / lr, but not under zero_norm "skip"."""
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    LARS([param], lr=2.0, trust_clip=True, zero_norm=zero_norm, **PATHS[path]).step()
    assert param.tolist() == [-moved, -moved]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("zero_norm", ["raw", "one", "skip"])
@pytest.mark.parametrize(("weight", "grad"), [(0.0, 1.0), (1.0, 0.0), (1.0, 2.0), (1.0, math.nan)])
def test_a_clipped_ratio_at_a_rate_of_zero(
    path: str, zero_norm: str, weight: float, grad: float
) -> None:
    """Most schedules end at 0. Finite gradients then leave the weights unchanged."""
    param = torch.nn.Parameter(torch.full((2,), weight))
    param.grad = torch.full((2,), grad)
    LARS([param], lr=0.0, trust_clip=True, zero_norm=zero_norm, **PATHS[path]).step()
    assert math.isnan(param[0].item()) if math.isnan(grad) else param.tolist() == [weight, weight]
