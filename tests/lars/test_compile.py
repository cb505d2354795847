"""torch.compile around a step: equal results, and no compilation after the first steps.

torch's own optimizers are traced, and compiled again for each value of a float learning rate, up to
torch._dynamo.config.recompile_limit. The tutorial "Compiling the optimizer with torch.compile"
therefore uses a tensor. LARS breaks the graph instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lars import LARS, LARSWrapper

counters = pytest.importorskip("torch._dynamo.utils").counters

MAKERS: dict[str, Any] = {
    "default": lambda p, lr: LARS(p, lr, weight_decay=0.1),
    "foreach": lambda p, lr: LARS(p, lr, weight_decay=0.1, foreach=True),
    "single": lambda p, lr: LARS(p, lr, weight_decay=0.1, foreach=False),
    "fused": lambda p, lr: LARS(p, lr, weight_decay=0.1, fused=True),
    "clipped": lambda p, lr: LARS(p, lr, weight_decay=0.1, clip_norm=1.0, variant="braintools"),
    "wrapper": lambda p, lr: LARSWrapper(torch.optim.SGD(p, lr, 0.9, weight_decay=0.1)),
    "wrapped Adam": lambda p, lr: LARSWrapper(torch.optim.Adam(p, lr)),
}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(make: Any, what: str, compiled: bool, tensor_lr: bool) -> tuple[list[Any], int]:
    """Return the weights after ten steps with a changing rate, and the number of late compilations.

    Those are the compilations after the third step.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 2))
    optimizer = make(model.parameters(), torch.tensor(0.1) if tensor_lr else 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    telemetry = hasattr(optimizer, "layer_statistics")
    if telemetry:
        optimizer.telemetry = True
    step = optimizer.step
    if compiled and what == "step":
        step = torch.compile(step, backend="eager")

    def whole(images: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(images).square().sum()
        loss.backward()
        step()
        return loss.detach()

    def with_closure(images: torch.Tensor) -> Any:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(images).square().sum()
            loss.backward()
            return loss

        return step(closure)

    run = with_closure if what == "closure" else whole
    if compiled and what != "step":
        run = torch.compile(run, backend="eager")
    for index in range(10):
        run(torch.randn(8, 5))
        schedule.step()
        if index == 2:
            before = counters["frames"]["total"]
    ends = [p.detach().clone() for p in model.parameters()]
    if telemetry:
        ends += [row["trust_ratio"] for row in optimizer.layer_statistics().values()]
    return ends, counters["frames"]["total"] - before


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("what", ["step", "whole", "closure"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_compiled_step_is_the_eager_one(make: Any, what: str, tensor_lr: bool) -> None:
    """The statistics are equal, too. Nothing is compiled for a new rate."""
    expected, _ = train(make, what, False, tensor_lr)
    counters.clear()
    found, late = train(make, what, True, tensor_lr)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counters["frames"]["total"] > 0
    assert late == 0


def test_the_model_around_the_step_is_compiled() -> None:
    """The code before the step is in a graph."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = torch.nn.Linear(5, 4)
    optimizer = LARS(model.parameters(), 0.1)

    def forward_and_step(images: torch.Tensor) -> torch.Tensor:
        out = model(images).relu().sum()
        optimizer.step()
        return out * 2

    model(torch.ones(1, 5)).sum().backward()
    run = torch.compile(forward_and_step, backend=backend)
    for _ in range(3):
        run(torch.ones(3, 5))
    assert any("relu" in str(graph.code) for graph in graphs)
