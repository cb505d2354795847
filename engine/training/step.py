"""One optimizer step: gradients of a batch, clipping, update, batch-norm statistics, average.

The host reads no value here, so on CUDA a whole step is captured as a graph and then replayed. That
takes one launch per step instead of several hundred.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from engine.config.schema import ClipConfig
from engine.data.augment import EpochDraws, TrainingImages
from engine.system.distributed import gradients_averaged
from engine.system.runtime import Runtime
from engine.training.cuda_graph import StepGraph, captures, make_capturable
from engine.training.ema import Average
from engine.training.noise_scale import NoiseScale, mean_first_pass
from engine.training.plan import Plan
from lars import LARS
from models import commit_batch_statistics, forget_batch_statistics

NO_CLIP = ClipConfig(norm=None, value=None)


class Figures(NamedTuple):
    """The metrics of a step, on the device.

    Attributes:
        loss: this rank's contribution to the batch's mean loss, float32 [].
        correct: correctly classified examples in this rank's part of the batch, int64 [].
        gradient_norm: norm of the whole batch's gradient before clipping, [].
        noise: the sums of `NoiseScale`, [3]; None if the run does not estimate it.

    """

    loss: Tensor
    correct: Tensor
    gradient_norm: Tensor
    noise: Tensor | None


class Step:
    """A run's optimizer step.

    Load a checkpoint into model, optimizer, average and noise scale before this is constructed.

    Args:
        model: the model as it is called, so compiled or distributed.
        optimizer: the optimizer over its parameters.
        images: the training split on the device.
        plan: sizes of batches and passes.
        runtime: device, precision and ranks.
        clip: bounds on the gradient; not used with LARS, which clips itself.
        label_smoothing: as in cross_entropy, 0 to 1.
        ema: average of the weights and buffers to update.
        noise: noise-scale averages to update.
        compiled: True if the model is compiled, which happens in `warm_up`.
        cuda_graph: True if a CUDA graph may capture the optimizer's step.

    Attributes:
        startup_seconds: duration of compiling, warm-up and capture so far.

    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        images: TrainingImages,
        plan: Plan,
        runtime: Runtime,
        clip: ClipConfig = NO_CLIP,
        label_smoothing: float = 0.0,
        ema: Average | None = None,
        noise: NoiseScale | None = None,
        compiled: bool = False,
        cuda_graph: bool = True,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.images = images
        self.plan = plan
        self.runtime = runtime
        # LARS clips itself, with gradient norms that it computes anyway.
        self.clip = NO_CLIP if isinstance(optimizer, LARS) else clip
        self.label_smoothing = label_smoothing
        self.ema = ema
        self.noise = noise
        # On CUDA, libraries choose their kernels in the first pass of each size.
        self.cold = compiled or runtime.device.type == "cuda"
        self.startup_seconds = 0.0
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.graph: StepGraph[Figures] | None = None
        if captures(runtime) and not cuda_graph:
            name = type(optimizer).__name__
            print(f"steps run eagerly: no CUDA graph captures {name}", file=sys.stderr)
        elif captures(runtime):
            make_capturable(optimizer, runtime.device)
            self.graph = StepGraph(
                self.take, plan.batch, lambda: forget_batch_statistics(model), self.starting_up
            )

    @contextlib.contextmanager
    def starting_up(self) -> Iterator[None]:
        """Count the duration of the block as start-up."""
        started = self.runtime.wall_clock()
        yield
        self.startup_seconds += self.runtime.wall_clock() - started

    def warm_up(self, draws: EpochDraws) -> None:
        """Before the first step, run one forward and backward pass of every size in an epoch.

        These passes compile the model, and their duration counts as start-up. Weights, buffers,
        optimizer and random states do not change, and gradients are reset.

        Args:
            draws: sample order and augmentation of the epoch.

        """
        if not self.cold:
            return
        self.cold = False
        device = self.runtime.device
        kept = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        # These gradients are discarded, so the ranks do not exchange them.
        alone = gradients_averaged(self.model, last=False)
        with self.starting_up(), kept, alone:
            for size in self.plan.distinct_passes(self.runtime.rank):
                accumulate_gradients(
                    self.model, self.images, draws, draws.order[:size], [size], self.plan.batch,
                    runtime=self.runtime, label_smoothing=self.label_smoothing,
                )  # fmt: skip
            self.optimizer.zero_grad()
            forget_batch_statistics(self.model)

    def take(self, index: Tensor, draws: EpochDraws) -> Figures:
        """Take the part of a step that runs on the device; a CUDA graph captures this function.

        Args:
            index: indices of the batch's examples, int64 [B].
            draws: crops and flips of the epoch.

        """
        figures = self.gradients(index, draws)
        self.update_on_device()
        return figures

    def gradients(self, index: Tensor, draws: EpochDraws) -> Figures:
        """Set each parameter's gradient to the clipped gradient of the batch's mean loss.

        Args:
            index: indices of the batch's examples, int64 [B].
            draws: crops and flips of the epoch.

        """
        self.optimizer.zero_grad()
        passes = self.plan.rank_passes(len(index))
        own = index.split([sum(sizes) for sizes in passes])[self.runtime.rank]
        measured = self.parameters if self.noise is not None else ()
        loss, correct, first_norm = accumulate_gradients(
            self.model, self.images, draws, own, passes[self.runtime.rank], len(index),
            runtime=self.runtime, label_smoothing=self.label_smoothing, measured=measured,
        )  # fmt: skip
        norm = clip_gradients(self.parameters, self.clip)
        sums = None
        if self.noise is not None:
            firsts = [sizes[0] for sizes in passes if len(sizes) > 1]
            first_norm, first = mean_first_pass(first_norm, firsts, norm)
            sums = self.noise.update(first_norm, norm, first, len(index))
        return Figures(loss, correct, norm, sums)

    def update(self) -> None:
        """Update weights, batch-norm statistics and average."""
        self.update_on_device()
        self.count()

    def update_on_device(self) -> None:
        """Do the part of `update` that runs on the device."""
        self.optimizer.step()
        commit_batch_statistics(self.model)
        if self.ema is not None:
            self.ema.move(self.model)

    def count(self) -> None:
        """Do the part of `update` that runs on the host, which a replay does not repeat."""
        if self.ema is not None:
            self.ema.n_averaged += 1

    def replay(self, index: Tensor, draws: EpochDraws) -> Figures | None:
        """Take a whole step by graph replay; return None, without a step, if it must run eagerly.

        Args:
            index: indices of the batch's examples, int64 [B].
            draws: crops and flips of the epoch.

        """
        if self.graph is None or (figures := self.graph.replay(index, draws)) is None:
            return None
        self.count()
        return figures


def accumulate_gradients(
    model: nn.Module,
    images: TrainingImages,
    draws: EpochDraws,
    index: Tensor,
    sizes: Sequence[int],
    batch_size: int,
    runtime: Runtime,
    label_smoothing: float = 0.0,
    measured: Sequence[nn.Parameter] = (),
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the gradient of a batch's mean loss to p.grad, averaged over the ranks.

    Returns this rank's contribution to the mean loss, the number of its correctly classified
    examples (int64), and the norm of the first pass's mean gradient. The norm is None if `measured`
    is empty or there is only one pass.

    Args:
        model: the model as it is called, so compiled or distributed.
        images: the training split on the device.
        draws: crops and flips of the epoch.
        index: this rank's part of the batch, int64 [N].
        sizes: sizes of this rank's forward passes; their sum is N.
        batch_size: examples in the whole batch, over all ranks.
        runtime: device, precision and ranks.
        label_smoothing: as in cross_entropy, 0 to 1.
        measured: parameters whose gradient norm is measured after the first pass.

    """
    total = torch.zeros((), device=runtime.device)
    correct = torch.zeros((), dtype=torch.int64, device=runtime.device)
    first_norm = None
    for place, part in enumerate(index.split(list(sizes))):
        inputs, labels = images.load(part, draws)
        with gradients_averaged(model, last=place == len(sizes) - 1):
            with runtime.autocast():
                logits = model(inputs)
            # The sum over the size of the whole batch weighs each example equally, whatever the
            # sizes of micro-batches and of ranks' parts.
            loss = F.cross_entropy(
                logits.float(), labels, reduction="sum", label_smoothing=label_smoothing
            )
            loss = loss / batch_size
            # DistributedDataParallel averages over the ranks; this factor makes it a sum.
            (loss * runtime.world_size).backward()
        total += loss.detach()
        correct += (logits.detach().argmax(dim=1) == labels).sum()
        if measured and place == 0 and len(sizes) > 1:
            first_norm = gradient_norm(measured) * (batch_size / len(part) / runtime.world_size)
    return total, correct, first_norm


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the total norm of all gradients, as a 0-d tensor on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(parameters: Sequence[nn.Parameter], clip: ClipConfig) -> Tensor:
    """Clip gradients by global norm, then by value, as LARS does; return the norm before that."""
    norm = gradient_norm(parameters)
    if clip.norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip.norm, norm)
    if clip.value is not None:
        torch.nn.utils.clip_grad_value_(parameters, clip.value)
    return norm
