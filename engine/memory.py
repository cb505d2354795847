"""How much memory a run will need, worked out without running it.

The model is traced with fake tensors, which have shapes and no storage: what the backward pass
will need is then counted to the byte. Workspaces of the kernels come on top.
"""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from engine.build import build_model
from engine.config import Config
from engine.data import Dataset
from engine.plan import Plan
from engine.runtime import Runtime


def describe_memory(config: Config, plan: Plan, data: Dataset, runtime: Runtime) -> str:
    """Write an estimate in one line: pictures, weights with their state, one forward pass."""
    largest = max(map(max, plan.rank_passes(plan.batch)))
    with FakeTensorMode(), runtime.device:
        model = build_model(config.model, len(data.classes))
        activations = saved_bytes(model, largest, runtime)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # Weights and gradients; where there are any, momentum, an average of the weights, and the
    # gradients' copies that cross between ranks.
    copies = 2 + bool(config.optimizer.momentum) + (config.ema.decay is not None)
    copies += plan.world_size > 1
    state = weights * copies
    # Each picture is kept as bytes and once more with its border; float32 copies pass by.
    pictures = data.train.images.numel() * (1 + (40 / 32) ** 2) + data.test.images.numel()
    total = pictures + state + activations
    mib = [f"{part / 2**20:,.0f}" for part in (total, pictures, state, activations)]
    return (
        f"memory    about {mib[0]} MiB: pictures {mib[1]}, weights and optimizer {mib[2]}, "
        f"a pass of {largest} images {mib[3]}; libraries and workspaces come on top"
    )


def saved_bytes(model: nn.Module, examples: int, runtime: Runtime) -> int:
    """Count the bytes that autograd keeps for one training pass; call it under FakeTensorMode."""
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.empty(examples, 3, 32, 32, device=runtime.device)
    images = images.to(memory_format=runtime.memory_format)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        with runtime.autocast():
            logits = model(images)
        loss = F.cross_entropy(
            logits.float(), torch.zeros(examples, dtype=torch.int64, device=runtime.device)
        )
    del loss
    return sum(size for storage, size in kept.items() if storage not in own)
