"""Gradients and momentum buffers with another dtype than their weights.

torch allows such gradients with `Parameter.grad_dtype` (see torch.Tensor.grad_dtype in its
documentation), for example fp32 gradients of bf16 weights. Such buffers occur if a model is cast
after a step. torch's SGD supports both on its foreach and single-tensor paths.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from lars import LARS, LARSWrapper

pytestmark = pytest.mark.skipif(
    not hasattr(torch.nn.Parameter(torch.ones(1)), "grad_dtype"), reason="this torch has none"
)

PATHS: dict[str, dict[str, Any]] = {
    "default": {},
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "differentiable": {"differentiable": True},
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": True},
    {"variant": "braintools", "maximize": True},
    {"variant": "larc", "clip_norm": 2.0},
    {"variant": "blog", "clip_value": 0.5},
    {"adapt": False},
    {"momentum": 0.0},
]
HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
# Dtypes of weight, gradient and buffer.
DTYPES = [
    (HALF, SINGLE, HALF),
    (SINGLE, HALF, SINGLE),
    (SINGLE, DOUBLE, SINGLE),
    (DOUBLE, SINGLE, DOUBLE),
    (torch.float16, HALF, torch.float16),
    (HALF, HALF, SINGLE),
    (SINGLE, SINGLE, HALF),
    (SINGLE, SINGLE, DOUBLE),
    (HALF, SINGLE, DOUBLE),
    (torch.complex64, torch.complex128, torch.complex64),
]
NAMES = ["-".join(str(d).removeprefix("torch.") for d in dtypes) for dtypes in DTYPES]


def frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    """Return a parameter that a differentiable step may write to."""
    return torch.nn.Parameter(tensor, requires_grad=False)


def tensors(dtypes: tuple[torch.dtype, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Return (weight, gradient, gradient, buffer) of a matrix, a vector and a tensor of zeros."""
    torch.manual_seed(0)
    made = []
    for shape in ((5, 7), (16,), (3,)):
        row = (dtypes[0], dtypes[1], dtypes[1], dtypes[2])
        made.append(tuple(torch.randn(shape).to(dtype) for dtype in row))
    made[2][0].zero_()
    return made


def two_steps(
    make: Any, dtypes: tuple[torch.dtype, ...], double: bool = False
) -> list[torch.Tensor]:
    """Return weights and buffers after two steps from given buffers, in float64 if `double`."""
    rows = tensors(dtypes)
    if double:
        wide = torch.complex128 if dtypes[0].is_complex else torch.float64
        rows = [tuple(t.to(wide) for t in row) for row in rows]
    params = [frozen(row[0]) for row in rows]
    optimizer = make(params)
    for param, row in zip(params, rows, strict=True):
        param.grad_dtype = row[1].dtype
        if optimizer.param_groups[0]["momentum"]:
            optimizer.state[param]["momentum_buffer"] = row[3]
    for step in (1, 2):
        for param, row in zip(params, rows, strict=True):
            param.grad = row[step]
        optimizer.step()
        for param, row in zip(params, rows, strict=True):
            assert param.grad is row[step] and param.grad_dtype is row[1].dtype
    buffers = [s["momentum_buffer"] for s in optimizer.state.values() if "momentum_buffer" in s]
    assert all(b.dtype is row[3].dtype for b, row in zip(buffers, rows, strict=False))
    return [*[p.detach() for p in params], *[b.detach() for b in buffers]]


def check(make: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    """Assert that the steps equal those in float64, except for the rounding of stored values."""
    found, expected = two_steps(make, dtypes), two_steps(make, dtypes, double=True)
    for one, other in zip(found, expected, strict=True):
        tolerance = 4 * max(torch.finfo(d).eps for d in (*dtypes[::2], torch.float32))
        wide = one.to(other.dtype)
        torch.testing.assert_close(wide, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=NAMES)
def test_lars_against_float64(
    path: dict[str, Any], options: dict[str, Any], dtypes: tuple[torch.dtype, ...]
) -> None:
    check(lambda p: LARS(p, 0.3, weight_decay=0.1, **options, **path), dtypes)


@pytest.mark.parametrize("options", [{}, {"trust_norm": "decayed"}, {"adapt": False}], ids=str)
@pytest.mark.parametrize("dtypes", [k for k in DTYPES if k[1] != HALF], ids=str)
def test_the_wrapper_against_float64(
    options: dict[str, Any], dtypes: tuple[torch.dtype, ...]
) -> None:
    common: dict[str, Any] = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1, "foreach": False}
    check(lambda p: LARSWrapper(torch.optim.SGD(p, **common), **options), dtypes)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_bucket_of_each_dtype(path: dict[str, Any]) -> None:
    """One group has parameters of every combination and is clipped by their global norm."""
    pairs = [*product((HALF, SINGLE, DOUBLE), repeat=2)]
    params = [frozen(torch.ones(3, dtype=dtypes[0])) for dtypes in pairs]
    for param, dtypes in zip(params, pairs, strict=True):
        param.grad_dtype = dtypes[1]
        param.grad = torch.ones(3, dtype=dtypes[1])
    optimizer = LARS(params, lr=1.0, trust_coefficient=0.5, clip_norm=1e3, **path)
    optimizer.step()
    assert all(p.tolist() == pytest.approx([0.5] * 3) for p in params)
    assert optimizer.grad_norm is not None
    assert optimizer.grad_norm.item() == pytest.approx(27**0.5)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(
    ("weight", "gradient"), [(SINGLE, torch.int64), (torch.complex64, SINGLE)], ids=str
)
def test_whole_numbers_and_real_gradients(
    path: dict[str, Any], weight: torch.dtype, gradient: torch.dtype
) -> None:
    """SGD supports such gradients, too. They are converted to the dtype of the weights."""
    ends = []
    for dtype in (gradient, weight):
        param = frozen(torch.ones(3, dtype=weight))
        param.grad_dtype = dtype
        param.grad = torch.tensor([1, 2, 3], dtype=dtype)
        optimizers = [LARS([param], 0.5, weight_decay=0.1, **path)]
        optimizers.append(LARSWrapper(torch.optim.SGD([param], 0.5)))
        for optimizer in optimizers:
            optimizer.step()
        ends.append(param.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_model_that_is_cast_after_a_step(path: dict[str, Any]) -> None:
    """The buffers stay fp32. The next step starts from the weights as cast."""
    ends = []
    for wide in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4).requires_grad_(False)
        optimizer = LARS(model.parameters(), 0.1, trust_coefficient=0.1, **path)
        for step in range(3):
            for param in model.parameters():
                param.grad = torch.randn(param.shape).bfloat16().to(param.dtype)
            optimizer.step()
            if step == 0:
                model.bfloat16()
            if step == 0 and wide:
                model.float()
        ends.append([p.detach().float() for p in model.parameters()])
    torch.testing.assert_close(*ends, rtol=0.02, atol=0.005)


def test_a_scaled_gradient_has_at_least_the_precision_of_its_weight() -> None:
    """The scaled gradient, 5e-9, is 0 in fp16. For an fp32 weight the optimizer gets it exactly."""
    param = torch.nn.Parameter(torch.full((4,), 0.5))
    param.grad_dtype = torch.float16
    param.grad = torch.full((4,), 1e-3, dtype=torch.float16)
    seen = []
    base = torch.optim.SGD([param], lr=1.0)
    base.register_step_pre_hook(lambda *_: seen.append(param.grad))
    LARSWrapper(base, trust_coefficient=1e-8, eps=0.0).step()
    torch.testing.assert_close(seen[0], torch.full((4,), 5e-9))
    assert param.grad.dtype is torch.float16
