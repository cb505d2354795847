"""Tests that need a CUDA device: no synchronization, few launches, graph capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lars import LARS, parameter_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PATHS: dict[str, dict[str, Any]] = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "single": {"foreach": False},
}
all_paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def model_with_gradients(device: str, layers: int = 20) -> nn.Module:
    """Return convolutions with batch norm, and a random gradient on each parameter."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)) for _ in range(layers)
    ]
    model = nn.Sequential(*blocks, nn.Linear(8, 4))
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    made = model.to(device)
    for param in made.parameters():
        assert param.grad is not None
        param.grad = param.grad.to(device)
    return made


@all_paths
@pytest.mark.parametrize("variant", ["paper", "timm", "blog", "braintools", "larc"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_cuda_agrees_with_the_cpu(path: dict[str, Any], variant: str, nesterov: bool) -> None:
    """After ten steps with telemetry and clipping, weights and ratios are equal."""
    ends = []
    for device, options in (("cpu", {"foreach": False}), ("cuda", path)):
        model = model_with_gradients(device)
        common: dict[str, Any] = {"variant": variant, "nesterov": nesterov, "clip_norm": 50.0}
        optimizer = LARS(parameter_groups(model, 0.1), 0.5, zero_norm="one", **common, **options)
        optimizer.telemetry = True
        for _ in range(10):
            optimizer.step()
        statistics = optimizer.layer_statistics()
        ends.append([*model.parameters(), *[row["trust_ratio"] for row in statistics.values()]])
    for expected, found in zip(*ends, strict=True):
        torch.testing.assert_close(
            found.detach().cpu().float(), expected.detach().float(), rtol=2e-5, atol=1e-6
        )


@all_paths
def test_no_step_waits_for_the_device(path: dict[str, Any]) -> None:
    """Even with gradients at new addresses, clipping and telemetry."""
    model = model_with_gradients("cuda")
    optimizer = LARS(parameter_groups(model, 0.1), 0.5, clip_norm=1.0, **path)
    optimizer.telemetry = True
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for param in model.parameters():
                param.grad = torch.randn_like(param)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("path", ["default", "foreach", "fused"])
def test_resnet50_takes_at_most_40_launches(path: str) -> None:
    """This counts the launches for the two groups of `parameter_groups`."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet50().cuda()
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer = LARS(parameter_groups(model, 0.1), **PATHS[path])
    for _ in range(3):
        optimizer.step()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    launches = sum(e.count for e in profile.key_averages() if "LaunchKernel" in e.key)
    assert 0 < launches <= 40


@pytest.mark.parametrize("path", ["default", "foreach", "fused", "single"])
@pytest.mark.parametrize("new_gradients", [False, True])
def test_a_replayed_graph_equals_eager(path: str, new_gradients: bool) -> None:
    """The rate changes between replays. Gradients may be allocated in the graph."""
    ends = []
    for graphed in (False, True):
        model = model_with_gradients("cuda")
        static = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        lr = torch.tensor(0.0, device="cuda")
        optimizer = LARS(parameter_groups(model, 0.1), lr, capturable=True, **PATHS[path])

        def step(model: Any = model, static: Any = static, optimizer: Any = optimizer) -> None:
            if new_gradients:
                for param, gradient in zip(model.parameters(), static, strict=True):
                    param.grad = gradient * 2
            optimizer.step()

        step()
        for state in optimizer.state.values():
            state["momentum_buffer"].zero_()
        if graphed:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        for rate in (0.1, 0.5, 0.2):
            lr.fill_(rate)
            graph.replay() if graphed else step()
        ends.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*ends)


def test_unsupported_captures_raise() -> None:
    """A float rate with capturable, a capture without capturable, and the first step captured."""
    param = nn.Parameter(torch.ones(4, device="cuda"))
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=r"capturable=True on CUDA needs lr as a tensor.*0.1"):
        LARS([param], 0.1, capturable=True)
    lr = torch.tensor(0.1, device="cuda")
    for optimizer, message in (
        (LARS([param], lr), "capturable=False"),
        (LARS([param], lr, capturable=True), "first step"),
        (
            LARS([param], torch.tensor(0.1), momentum=0.0, capturable=True),
            "lr that is not a tensor",
        ),
    ):
        with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()


@all_paths
def test_state_moves_between_devices(path: dict[str, Any]) -> None:
    """Training resumes on CUDA from a state_dict of the CPU."""
    model = model_with_gradients("cpu")
    optimizer = LARS(parameter_groups(model, 0.1), 0.5)
    optimizer.step()
    moved = model_with_gradients("cuda")
    moved.load_state_dict(model.state_dict())
    other = LARS(parameter_groups(moved, 0.1), 0.5, **path)
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other):
        each.step()
    for found, expected in zip(moved.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=2e-5, atol=1e-6)
