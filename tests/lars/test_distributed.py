"""DTensor and FSDP2: trust ratios and clipping by the norms of whole tensors, on two ranks."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lars import LARS, LARSWrapper, parameter_groups

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)

MAKERS = {
    "default": lambda g: LARS(g, 0.5, trust_coefficient=0.1),
    "fused": lambda g: LARS(g, 0.5, trust_coefficient=0.1, fused=True),
    "one by one": lambda g: LARS(g, 0.5, trust_coefficient=0.1, foreach=False, nesterov=True),
    "clipped": lambda g: LARS(g, 0.5, trust_coefficient=0.1, clip_norm=0.5, variant="timm"),
    "decayed": lambda g: LARS(g, 0.5, trust_coefficient=0.1, variant="braintools"),
    "wrapper": lambda g: LARSWrapper(
        torch.optim.SGD(g, lr=0.5, momentum=0.9), trust_coefficient=0.1
    ),
}


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    # 5 rows do not divide by 2 ranks; the last bias has 1 element, so one rank holds nothing.
    layers = (torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 1))
    return torch.nn.Sequential(*layers).double()


def _train(model: torch.nn.Module, make: Any) -> list[torch.Tensor]:
    optimizer = make(parameter_groups(model, 0.1))
    for step in range(4):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(6, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach() for p in whole]


def _work(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    mesh = dist.init_device_mesh("cpu", (2,))

    def place(name: str, module: torch.nn.Module, mesh: Any) -> None:
        for attribute, param in list(module.named_parameters(recurse=False)):
            placement = [Shard(0)] if param.dim() == 2 else [Replicate()]
            sharded = torch.nn.Parameter(distribute_tensor(param, mesh, placement))
            module.register_parameter(attribute, sharded)

    try:
        for name, make in MAKERS.items():
            expected = _train(_model(), make)
            fsdp = fully_shard(_model(), mesh=mesh)
            torch.testing.assert_close(_train(fsdp, make), expected, rtol=1e-10, atol=1e-12)
            mixed = distribute_module(_model(), mesh, place)
            optimizer = make([{"params": mixed.parameters(), "weight_decay": 0.1}])
            plain = _model()
            reference = make([{"params": plain.parameters(), "weight_decay": 0.1}])
            for param, own in zip(mixed.parameters(), plain.parameters(), strict=True):
                own.grad = torch.arange(own.numel(), dtype=torch.float64).view_as(own)
                # A gradient placed otherwise than its parameter.
                param.grad = distribute_tensor(own.grad, mesh, [Replicate()])
            optimizer.step()
            reference.step()
            for param, own in zip(mixed.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(
                    param.full_tensor(), own.detach(), rtol=1e-10, atol=1e-12, msg=name
                )
    finally:
        dist.destroy_process_group()


def test_norms_are_those_of_whole_tensors() -> None:
    """Every path under FSDP2 and tensor parallelism ends where one process does."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, args=(folder,), nprocs=2)
