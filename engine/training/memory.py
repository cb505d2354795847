"""Estimate how much memory a run needs, before it starts.

The bytes that autograd keeps for the backward pass are counted exactly. A dry run (`plan`) traces
the model with fake tensors, which have shapes and no storage. A run passes a few images through the
model, which takes a tenth of the time.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from engine.config.schema import Config
from engine.data import SIDE
from engine.data.augment import PADDING
from engine.data.dataset import Dataset
from engine.errors import key_error
from engine.system.distributed import ranks_here
from engine.system.resources import available_bytes
from engine.system.runtime import Runtime, choose_device, choose_precision
from engine.training.build import build_model, state_bytes
from engine.training.plan import Plan
from engine.training.setup import Setup

# Images in the pass of `check_memory`. Scaling it to a full pass also scales the bytes that do not
# depend on the number of images, which are few.
MEASURED = 4


@dataclass(frozen=True)
class Estimate:
    """A lower bound of a run's memory in bytes, without libraries and kernel workspaces.

    Attributes:
        data: training and test images.
        state: weights, gradients, optimizer state, weight average and gradient buckets.
        activations: what autograd keeps for the largest pass.
        images: number of images in the largest pass.

    """

    data: float
    state: float
    activations: float
    images: int

    @property
    def total(self) -> float:
        """Return the sum in bytes."""
        return self.data + self.state + self.activations

    def describe(self) -> str:
        """Return the sum and its parts in MiB as text."""
        parts = (self.total, self.data, self.state, self.activations)
        mib = [f"{part / 2**20:,.0f}" for part in parts]
        return (
            f"about {mib[0]} MiB: images {mib[1]}, weights and optimizer {mib[2]}, "
            f"a pass of {self.images} images {mib[3]}"
        )


def describe_memory(setup: Setup) -> str:
    """Return the estimate as one line of text."""
    needed = traced_estimate(setup, largest_pass(setup.plan))
    return f"memory    {needed.describe()}; libraries and workspaces not included"


def check_memory(setup: Setup) -> None:
    """Raise UserError if a run on the CPU needs more memory than is available.

    The operating system would kill such a run without a message.
    """
    available, runtime = available_bytes(), setup.runtime
    if runtime.device.type != "cpu" or available is None:
        return
    # Building this model must not change the random state from which the run draws its weights.
    with torch.random.fork_rng(devices=[]):
        model = build_model(setup.config.model, len(setup.data.classes))
        runtime.place(model)
        needed = estimate(setup, model, min(MEASURED, largest_pass(setup.plan)))
    ranks = ranks_here()
    if needed.total * ranks > available:
        each = f", on each of {ranks} ranks here" if ranks > 1 else ""
        allowed = (
            f"the run needs {needed.describe()}{each}, and {available / 2**20:,.0f} MiB are "
            "available; a smaller micro_batch needs less"
        )
        raise key_error("micro_batch", setup.config.micro_batch, allowed)


def needed_bytes(config: Config, data: Dataset, plan: Plan) -> float:
    """Return the estimate of a run's memory in bytes, without starting its runtime."""
    device = choose_device(config.device)
    runtime = Runtime(device, choose_precision(config.precision, device), threads=1)
    setup = Setup(config, runtime, data, plan)
    return traced_estimate(setup, min(MEASURED, largest_pass(plan))).total


def traced_estimate(setup: Setup, examples: int) -> Estimate:
    """Estimate a run's memory from one pass of `examples` fake images, which take no memory."""
    with FakeTensorMode(), setup.runtime.device:
        model = build_model(setup.config.model, len(setup.data.classes))
        return estimate(setup, model, examples)


def largest_pass(plan: Plan) -> int:
    """Return the largest number of images in one forward pass of any rank."""
    return max(map(max, plan.rank_passes(plan.batch)))


def estimate(setup: Setup, model: nn.Module, examples: int) -> Estimate:
    """Estimate a run's memory from its model and one pass of `examples` images."""
    config, plan, data = setup.config, setup.plan, setup.data
    images = largest_pass(plan)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # Weights and gradients; the weight average, if kept; with several ranks the buckets in which
    # DistributedDataParallel exchanges gradients.
    copies = 2 + (config.ema.decay is not None)
    copies += plan.world_size > 1
    bordered = ((SIDE + 2 * PADDING) / SIDE) ** 2
    return Estimate(
        # Training images are stored as bytes twice, the second time with a border. float32 copies
        # are temporary.
        data=data.train.images.numel() * (1 + bordered) + data.test.images.numel(),
        state=weights * copies + state_bytes(config.optimizer, model),
        activations=saved_bytes(model, examples, setup.runtime) * images / examples,
        images=images,
    )


def saved_bytes(model: nn.Module, examples: int, runtime: Runtime) -> int:
    """Return the number of bytes that autograd keeps for one training pass, without weights."""
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.empty(examples, 3, SIDE, SIDE, device=runtime.device)
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
