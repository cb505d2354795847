"""Bugs of published implementations, each as a test that the buggy rule fails.

If a preset reproduces a bug, the test covers both: the preset has the bug, the default does not.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch

from lars import LARS, LARSWrapper

PATHS = [{"foreach": False}, {"foreach": True}, {"fused": True}]
all_paths = pytest.mark.parametrize("path", PATHS, ids=["single", "foreach", "fused"])


def parameter(values: list[float], gradient: list[float]) -> torch.nn.Parameter:
    """Return a parameter that has a gradient."""
    made = torch.nn.Parameter(torch.tensor(values))
    made.grad = torch.tensor(gradient)
    return made


@all_paths
@pytest.mark.parametrize(("variant", "trains"), [("paper", True), ("timm", True), ("blog", False)])
def test_tensors_of_zeros_train(path: dict[str, bool], variant: str, trains: bool) -> None:
    """A ratio of 0 for ||w|| = 0 would never update a bias that is initialized to zero."""
    param = parameter([0.0, 0.0], [1.0, -1.0])
    LARS([param], lr=0.1, weight_decay=1e-4, variant=variant, **path).step()
    assert bool(param.abs().sum() > 0) is trains


@all_paths
@pytest.mark.parametrize(("variant", "finite"), [("paper", True), ("pytorch-lars", False)])
def test_zero_over_zero(path: dict[str, bool], variant: str, finite: bool) -> None:
    """Without a guard and eps, a tensor of zeros with a zero gradient becomes NaN."""
    param = parameter([0.0, 0.0], [0.0, 0.0])
    LARS([param], lr=0.1, variant=variant, **path).step()
    assert bool(param.isfinite().all()) is finite


@all_paths
@pytest.mark.parametrize(("variant", "constant"), [("paper", False), ("pytorch-lars", True)])
def test_momentum_in_the_denominator_makes_the_ratio_constant(
    path: dict[str, bool], variant: str, constant: bool
) -> None:
    """With the momentum 0.9 as the weight decay, LARS is SGD with lr * 0.1 / 0.9."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=draw)
    ours, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    shared = {"momentum": 0.9, "weight_decay": 5e-3}
    lars = LARS([ours], lr=0.9, trust_coefficient=0.1, variant=variant, **shared, **path)
    sgd = torch.optim.SGD([plain], lr=0.1, **shared)
    for _ in range(20):
        ours.grad = 1e-3 * torch.randn(50, generator=draw)
        plain.grad = ours.grad.clone()
        lars.step()
        sgd.step()
    difference = (ours - plain).norm() / (plain - start).norm()
    assert bool(difference < 0.01) is constant


@all_paths
@pytest.mark.parametrize(("variant", "stays"), [("paper", True), ("blog", False)])
def test_a_vanishing_gradient_does_not_blow_up(
    path: dict[str, bool], variant: str, stays: bool
) -> None:
    """With g = 0, no weight decay and eps 1e-15, the buffer is multiplied by a ratio of 1e12."""
    param = parameter([1.0, 1.0], [1.0, 1.0])
    optimizer = LARS([param], lr=0.1, variant=variant, **path)
    optimizer.step()
    assert param.grad is not None
    param.grad.zero_()
    optimizer.step()
    assert bool(param.abs().max() < 2.0) is stays


def wrapped(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the wrapper over SGD, for tests that LARS and the wrapper must pass."""
    return LARSWrapper(torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01))


MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "single": lambda p: LARS(p, weight_decay=0.01, foreach=False),
    "foreach": lambda p: LARS(p, weight_decay=0.01, foreach=True),
    "fused": lambda p: LARS(p, weight_decay=0.01, fused=True),
    "maximize": lambda p: LARS(p, weight_decay=0.01, maximize=True),
    "clipped": lambda p: LARS(p, weight_decay=0.01, clip_norm=0.1, clip_value=0.01),
    "decayed": lambda p: LARS(p, weight_decay=0.01, variant="braintools", nesterov=True),
    "wrapper": wrapped,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_gradients_are_not_changed(make: Callable[..., torch.optim.Optimizer]) -> None:
    """p.grad stays the same tensor with the same values, and is not written to in place."""
    param = parameter([1.0, 2.0], [3.0, 4.0])
    optimizer, grad = make([param]), param.grad
    assert grad is not None
    version = grad._version
    for _ in range(3):
        optimizer.step()
        assert param.grad is grad
        assert grad._version == version
        assert grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_closure_runs_before_norms_are_taken(
    make: Callable[..., torch.optim.Optimizer],
) -> None:
    """The closure computes the gradient, so a step that scales the old one first differs."""
    stale, fresh = parameter([1.0, 2.0], [100.0, 0.0]), parameter([1.0, 2.0], [0.3, 0.4])
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (stale * torch.tensor([0.3, 0.4])).sum()
        loss.backward()
        return loss

    optimizer, expected = make([stale]), make([fresh])
    loss = optimizer.step(closure)  # type: ignore[arg-type]
    expected.step()
    assert calls == [True]
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(1.1)
    torch.testing.assert_close(stale, fresh)


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "state_dict", "weights_only"])
@pytest.mark.parametrize("name", ["LARS", "wrapper"])
def test_settings_survive_copies_and_checkpoints(name: str, way: str) -> None:
    """Trust coefficient and eps would be lost if they were attributes of the optimizer."""

    def make(value: float) -> torch.optim.Optimizer:
        param = parameter([1.0, 2.0], [3.0, 4.0])
        if name == "LARS":
            return LARS([param], trust_coefficient=value, eps=value)
        base = torch.optim.SGD([param], lr=0.1, momentum=0.9)
        return LARSWrapper(base, trust_coefficient=value, eps=value)

    original = make(0.25)
    original.step()
    if way == "pickle":
        copied = pickle.loads(pickle.dumps(original))
    elif way == "deepcopy":
        copied = copy.deepcopy(original)
    else:
        copied = make(0.5)
        state = copy.deepcopy(original.state_dict())
        if way == "weights_only":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        copied.load_state_dict(state)
        with torch.no_grad():
            copied.param_groups[0]["params"][0].copy_(original.param_groups[0]["params"][0])
    group = copied.param_groups[0]
    assert group["trust_coefficient"] == 0.25
    assert group["eps" if name == "LARS" else "trust_eps"] == 0.25
    for optimizer in (original, copied):
        optimizer.param_groups[0]["params"][0].grad = torch.tensor([3.0, 4.0])
        optimizer.step()
    found, expected = (o.param_groups[0]["params"][0] for o in (copied, original))
    assert torch.equal(found, expected)


@all_paths
def test_the_stored_buffer_is_not_scaled(path: dict[str, bool]) -> None:
    """Under "none" the buffer is that of SGD. Scaling it in place would compound ratio and lr."""
    param = parameter([3.0, 4.0], [1.0, 1.0])
    optimizer = LARS([param], lr=0.5, momentum=0.9, momentum_scaling="none", **path)
    buffer = torch.zeros(2)
    for step in range(4):
        param.grad = torch.tensor([1.0, float(step)])
        buffer = 0.9 * buffer + param.grad
        optimizer.step()
        torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], buffer)


@all_paths
def test_the_first_buffer_is_scaled_like_the_others(path: dict[str, bool]) -> None:
    """Older releases of pytorch_optimizer store the raw gradient, too large by 1 / ratio."""
    param = parameter([3.0, 4.0], [6.0, 8.0])
    optimizer = LARS([param], lr=0.5, variant="torchlars", eps=0.0, **path)
    optimizer.step()
    expected = torch.tensor([6.0, 8.0]) * 0.001 * 5 / 10
    torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], expected)


@all_paths
def test_a_half_precision_norm_does_not_overflow(path: dict[str, bool]) -> None:
    """||g|| is 65504 * 8, which exceeds fp16. The ratio must not be 0."""
    param = torch.nn.Parameter(torch.ones(64, dtype=torch.float16))
    param.grad = torch.full((64,), 65504.0, dtype=torch.float16)
    LARS([param], lr=1.0, trust_coefficient=0.5, momentum=0.0, **path).step()
    torch.testing.assert_close(param.detach(), torch.full((64,), 0.5, dtype=torch.float16))


@all_paths
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_factor_below_fp16_s_smallest_number_counts(
    path: dict[str, bool], nesterov: bool
) -> None:
    """fp16 would round lr * ratio, 3e-8, to 6e-8. Its product with the gradient, 300, is exact."""
    param = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    param.grad = torch.full((4,), 300.0, dtype=torch.float16)
    optimizer = LARS([param], lr=0.009, nesterov=nesterov, **path)
    optimizer.step()
    buffer = optimizer.state[param]["momentum_buffer"]
    assert buffer[0].item() == pytest.approx(0.009 * 0.001, rel=1e-2, abs=0)


@all_paths
def test_bf16_parameters_are_updated(path: dict[str, bool]) -> None:
    """A fused kernel of another implementation silently skips bf16."""
    param = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    LARS([param], lr=1.0, trust_coefficient=0.5, **path).step()
    assert param.tolist() == [0.5] * 8


@all_paths
@pytest.mark.parametrize("mixed", ["gradient", "buffer", "weight"])
def test_the_fused_kernel_is_not_used_for_mixed_layouts(path: dict[str, bool], mixed: str) -> None:
    """torch's kernel ignores strides, so it would pair the wrong elements."""
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    results = []
    for channels_last in (False, True):
        convert = {"memory_format": torch.channels_last} if channels_last else {}
        weight = start.clone()
        param = torch.nn.Parameter(weight.to(**convert) if mixed == "weight" else weight)
        optimizer = LARS([param], lr=1.0, trust_coefficient=0.1, **path)
        for _ in range(2):
            param.grad = gradient.to(**convert) if mixed == "gradient" else gradient.clone()
            optimizer.step()
            if mixed == "buffer":
                state = optimizer.state[param]
                state["momentum_buffer"] = state["momentum_buffer"].to(**convert)
        results.append(param.detach().contiguous())
    torch.testing.assert_close(*results)
