"""Triton's interpreter, in which the CUDA path runs on CPU tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make fused=True use the Triton path on CPU tensors, with small chunks."""
    from lars import fused_cuda

    if not INTERPRETED:
        pytest.skip("runs in a separate process")
    monkeypatch.setattr(fused_cuda, "_BLOCK", 16)

    def path_on(param: torch.Tensor, path: str) -> str:
        if path != "fused":
            return path
        return "triton" if fused_cuda.usable(param.device, param.dtype) else "foreach"

    monkeypatch.setattr("lars.lars.path_on", path_on)
    fused_cuda.usable.cache_clear()
    assert fused_cuda.usable(torch.device("cpu"), torch.float32)
    fused_cuda.usable.cache_clear()
    yield
    fused_cuda.usable.cache_clear()


@pytest.fixture(autouse=True)
def interpreted_loops(request: pytest.FixtureRequest) -> None:
    """Run the reported training loops by the Triton path too: autograd does not see its kernels."""
    if INTERPRETED and request.module.__name__.endswith("test_loops"):
        request.getfixturevalue("interpreted")
