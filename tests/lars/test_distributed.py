"""DTensor and FSDP2 on 2 or 4 ranks: ratios and clipping use the norms of whole tensors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lars import LAMB, LARS, LARSWrapper, parameter_groups

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)
# torch 2.6 shards on accelerators only: its CPU streams record no events.
needs_fsdp2 = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream(), "record_event"), reason="needs FSDP2 on the CPU"
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
    "LAMB": lambda g: LAMB(g, 0.1, eps=0.1),
    "LAMB one by one": lambda g: LAMB(g, 0.1, eps=0.1, foreach=False),
}


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    # 5 rows do not divide by 2 ranks. The last bias has 1 element, so one rank has no shard of it.
    layers = (torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 1))
    return torch.nn.Sequential(*layers).double()


def _train(model: torch.nn.Module, make: Any) -> list[torch.Tensor]:
    _steps(model, make(parameter_groups(model, 0.1)), range(4))
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach() for p in whole]


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for step in seeds:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(6, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()


def _spawn(work: Callable[[int, str], None], ranks: int) -> None:
    """Call `work` with rank and a common empty folder in a process for each rank."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, args=(folder,), nprocs=ranks)


def _join(rank: int, folder: str, ranks: int = 2) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )


def _work(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    _join(rank, folder)
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
                # The gradient has another placement than its parameter.
                param.grad = distribute_tensor(own.grad, mesh, [Replicate()])
            optimizer.step()
            reference.step()
            for param, own in zip(mixed.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(
                    param.full_tensor(), own.detach(), rtol=1e-10, atol=1e-12, msg=name
                )
    finally:
        dist.destroy_process_group()


@needs_fsdp2
def test_norms_are_those_of_whole_tensors() -> None:
    """Every path gives the same weights under FSDP2, tensor parallelism and in one process."""
    _spawn(_work, ranks=2)


def _work_in_two_dimensions(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 4)).double()

    _join(rank, folder, ranks=4)
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    try:
        for make in MAKERS.values():
            expected = _train(model(), make)
            both = parallelize_module(model(), mesh["tensor"], plan)
            fully_shard(both, mesh=mesh["data"])
            replicated = fully_shard(model(), mesh=mesh)
            for found in (both, replicated):
                torch.testing.assert_close(_train(found, make), expected, rtol=1e-10, atol=1e-12)
    finally:
        dist.destroy_process_group()


@needs_fsdp2
def test_norms_are_those_of_whole_tensors_under_fsdp2_over_tensor_parallelism() -> None:
    """The placement there is no `Shard` (pytorch/pull/167887). FSDP2 with replicas, too."""
    _spawn(_work_in_two_dimensions, ranks=4)


class _Offloaded:
    """A stand-in for a DTensor on the CPU with a mesh on another device."""

    device_mesh = property(lambda self: self)
    placements = property(lambda self: (self,))
    device_type = "meta"

    def is_replicate(self) -> bool:
        """Return False: it is a shard."""
        return False

    def get_group(self, dimension: int) -> None:
        """Return no group, because nothing is sent."""


def test_norms_of_offloaded_shards_are_summed_on_the_mesh_s_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL cannot reduce CPU tensors: https://github.com/pytorch/pytorch/issues/148532."""
    from lars.norms import reduce_over_shards

    class Summed(Exception):
        """Ends the call, because a tensor on "meta" cannot be copied back."""

    def all_reduce(tensor: torch.Tensor, group: Any) -> None:
        assert tensor.device.type == "meta"
        raise Summed

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    with pytest.raises(Summed):
        reduce_over_shards(torch.ones(1), [_Offloaded()])


def _work_in_fsdp1(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    _join(rank, folder)
    try:
        for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD):
            for orig in (True, False):
                for name, make in MAKERS.items():
                    model = FullyShardedDataParallel(
                        _model(),
                        use_orig_params=orig,
                        device_id=torch.device("cpu"),
                        sharding_strategy=strategy,
                    )
                    if strategy is ShardingStrategy.NO_SHARD and orig and name != "clipped":
                        expected = _train(_model(), make)
                        torch.testing.assert_close(_train(model, make), expected)
                        continue
                    # Every rank raises, even one that has no shard of a parameter.
                    with pytest.raises(RuntimeError, match=r"cannot take the norm .* fully_shard"):
                        _train(model, lambda g, make=make: make(_tensors(g)))
            # Without ratios the step is element-wise and needs no norm.
            ends = []
            for shard in (False, True):
                model = _model()
                if shard:
                    model = FullyShardedDataParallel(
                        model, use_orig_params=True, device_id=torch.device("cpu")
                    )
                optimizers: list[Any] = [LARS(model.parameters(), 0.1, adapt=False)]
                base = torch.optim.SGD(model.parameters(), 0.1)
                optimizers.append(LARSWrapper(base, adapt=False))
                for optimizer in optimizers:
                    torch.manual_seed(1)
                    optimizer.zero_grad()
                    model(torch.randn(6, 3, dtype=torch.float64)).square().sum().backward()
                    optimizer.step()
                torch.manual_seed(2)
                ends.append(model(torch.randn(6, 3, dtype=torch.float64)).detach())
            torch.testing.assert_close(*ends)
    finally:
        dist.destroy_process_group()


def _tensors(groups: list[dict[str, Any]]) -> list[Any]:
    return [param for group in groups for _, param in group["params"]]


def test_shards_that_are_plain_tensors_are_refused() -> None:
    """With FSDP1, updates would silently differ from those of one process."""
    _spawn(_work_in_fsdp1, ranks=2)


@pytest.mark.parametrize("mark", ["_is_sharded", "tensor_model_parallel", "_is_flat_param"])
def test_shards_of_other_libraries_are_refused(mark: str) -> None:
    """fairscale and Megatron set the attribute to True on shards; Megatron sets False on others."""
    for value, clip, adapt in ((False, 1.0, True), (True, None, False)):
        param = torch.nn.Parameter(torch.ones(2))
        param.grad = torch.ones(2)
        setattr(param, mark, value)
        LARS([param], clip_norm=clip, adapt=adapt).step()
        LARSWrapper(torch.optim.SGD([param]), adapt=adapt).step()
    for optimizer in (
        LARS([param]),
        LARS([param], adapt=False, clip_norm=1.0),
        LARSWrapper(torch.optim.SGD([param])),
    ):
        with pytest.raises(RuntimeError, match="fully_shard"):
            optimizer.step()


def _work_with_zero_and_checkpoints(rank: int, folder: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    _join(rank, folder)
    try:
        for clip_norm in (None, 0.5):
            options: dict[str, Any] = {"lr": 0.5, "trust_coefficient": 0.1, "clip_norm": clip_norm}
            if clip_norm is None:  # each rank of ZeRO would clip by the norm of its part
                expected = _train(_model(), lambda g, o=options: LARS(_tensors(g), **o))
                zero = _train(
                    _model(),
                    lambda g, o=options: ZeroRedundancyOptimizer(
                        _tensors(g), optimizer_class=LARS, **o
                    ),
                )
                torch.testing.assert_close(zero, expected)
            for make in (
                lambda g, o=options: LARS(g, **o),
                lambda g: LARSWrapper(torch.optim.SGD(g, 0.5, 0.9), trust_coefficient=0.1),
            ):
                models = [fully_shard(_model()) for _ in range(2)]
                optimizers = [make(parameter_groups(model, 0.1)) for model in models]
                _steps(models[0], optimizers[0], range(2))
                state = {"o": get_optimizer_state_dict(models[0], optimizers[0])}
                path = os.path.join(folder, f"{clip_norm}{type(optimizers[0]).__name__}")
                dcp.save(state, checkpoint_id=path)
                state = {"o": get_optimizer_state_dict(models[1], optimizers[1])}
                dcp.load(state, checkpoint_id=path)
                set_optimizer_state_dict(models[1], optimizers[1], state["o"])
                models[1].load_state_dict(models[0].state_dict())
                for model, optimizer in zip(models, optimizers, strict=True):
                    _steps(model, optimizer, range(2, 4))
                whole = [[p.full_tensor() for p in m.parameters()] for m in models]  # type: ignore
                torch.testing.assert_close(*whole)
    finally:
        dist.destroy_process_group()


@needs_fsdp2
def test_zero_and_distributed_checkpoints() -> None:
    """ZeRO assigns whole tensors to ranks. Training under FSDP2 resumes from its checkpoint."""
    _spawn(_work_with_zero_and_checkpoints, ranks=2)
