"""Norms of large CPU tensors, where a plain fp32 sum of squares is inexact."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lars import LARS, LARSWrapper, norms

PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "decayed": {"variant": "braintools", "foreach": True},
}


def layouts(size: int) -> dict[str, torch.Tensor]:
    """Return tensors of about `size` elements: contiguous, not contiguous, and in bf16."""
    torch.manual_seed(0)
    side = 1 << 11
    matrix = torch.randn(size // side, side)
    images = torch.randn(4, size // 4096, 32, 32)
    return {
        "contiguous": matrix,
        "transposed": matrix.t(),
        "channels_last": images.to(memory_format=torch.channels_last),
        "bfloat16": matrix.bfloat16(),
    }


@pytest.mark.parametrize("layout", layouts(1 << 12))
def test_a_large_norm_is_that_of_float64(layout: str) -> None:
    """torch's norm has a relative error of 1e-4 here (5e6 elements, one thread), 1e-2 at 1e8."""
    tensor = layouts(norms._LARGE + (1 << 20))[layout]
    assert tensor.numel() > norms._LARGE
    expected = tensor.double().norm().item()
    small = torch.tensor([3.0, 4.0], dtype=tensor.dtype)
    for foreach in (False, True):
        found = norms.stacked_norms([small, tensor, small], [small] * 3, foreach)
        assert found.dtype is torch.float32
        assert found.tolist() == pytest.approx([5.0, expected, 5.0], rel=3e-5)
    assert norms.host_norm(tensor) == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_step_uses_norms_in_parts(path: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With very small parts, all paths and the wrapper equal float64."""
    monkeypatch.setattr(norms, "_LARGE", 64)
    monkeypatch.setattr(norms, "_PART", 16)
    ends = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, 3).to(dtype)) for n in (5, 50, 7)]
        optimizers = [LARS(params, 0.5, weight_decay=0.1, clip_norm=1.0, **path)]
        optimizers.append(LARSWrapper(torch.optim.SGD(params, 0.5), trust_coefficient=0.1))
        for optimizer in optimizers:
            for param in params:
                param.grad = torch.randn(param.shape).to(dtype)
            optimizer.step()
        ends.append([p.detach().double() for p in params])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_norms_of_tiny_and_huge_parts_are_computed_in_float64() -> None:
    """fp32 cannot hold the sum of squares."""
    for value in (1e-25, 1e25):
        tensor = torch.full((norms._LARGE + 1,), value)
        expected = value * (norms._LARGE + 1) ** 0.5
        assert norms.host_norm(tensor) == pytest.approx(expected, rel=1e-5)


@pytest.mark.stress
def test_a_norm_of_3e8_elements() -> None:
    """torch's norm is 4 % too small. The test runs with `pytest -m stress` and needs 2 GB."""
    tensor = torch.randn(3 * 10**8)
    parts = [part.double().square().sum().item() for part in tensor.split(10**6)]
    expected = sum(parts) ** 0.5
    assert norms.host_norm(tensor) == pytest.approx(expected, rel=5e-6)
    assert norms.stacked_norms([tensor], [tensor], True).item() == pytest.approx(expected, rel=3e-5)
