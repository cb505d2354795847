"""Batch normalisation whose running statistics move once an optimizer step.

A batch may pass through the network in several micro-batches, and each micro-batch may be
normalised in groups ("ghost batches", Hoffer et al. 2017, arXiv 1705.08741). torch's layer moves
its running statistics at every forward pass, so their result would depend on the memory at hand.
Here each group's statistics are set aside, and `commit_batch_statistics` moves the buffers by
their mean, once a step; where torch.distributed has several ranks, by the mean over all of theirs.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over [N, C, H, W] with statistics over groups of `ghost_batch` examples.

    Groups are consecutive examples of one forward pass; a short last group joins its neighbour;
    `ghost_batch=None` is one group; `synchronized` makes it one over the passes of all ranks, as
    nn.SyncBatchNorm does. A rank may pass no example at all. Evaluation, parameters and state_dict
    are nn.BatchNorm2d's.
    """

    # On the CPU one call a group is 2 to 4 times as fast as all groups in one, which costs copies;
    # elsewhere a call for each of many small groups would cost more than the copies do.
    loop_on = ("cpu",)

    def __init__(self, num_features: int, ghost_batch: int | None = None) -> None:
        """Make the layer for `num_features` channels."""
        super().__init__(num_features)
        self.ghost_batch = ghost_batch
        self.synchronized = False
        self.pending: list[Tensor] = []  # one [2, C] tensor a group: mean, unbiased variance

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training, set each group's statistics aside for the commit."""
        if not self.training:
            return super().forward(input)
        if self.synchronized:
            return self._normalize(input)
        if not len(input):
            # Nothing to measure; weight and bias get their gradients of 0.
            buffers = self.running_mean, self.running_var
            return F.batch_norm(input, *buffers, self.weight, self.bias, False, eps=self.eps)
        sizes = group_sizes(len(input), self.ghost_batch)
        if len(sizes) == 1:
            return self._normalize(input)
        if input.device.type in self.loop_on:
            return torch.cat([self._normalize(group) for group in input.split(sizes)])
        # The last group may be longer; the others go through one kernel.
        alike = len(sizes) if sizes[-1] == sizes[0] else len(sizes) - 1
        first, rest = input.tensor_split([alike * sizes[0]])
        outputs = [self._normalize_together(first, alike)]
        return torch.cat([*outputs, self._normalize(rest)]) if len(rest) else outputs[0]

    def _normalize(self, group: Tensor) -> Tensor:
        output, statistics = self._batch_norm(group, self.weight, self.bias)
        self.pending.append(statistics)
        return output

    def _normalize_together(self, input: Tensor, groups: int) -> Tensor:
        """Normalise equal groups at once: as one batch whose channels are every group's.

        Channels stay last in memory, so that what moves are whole rows of them.
        """
        count, channels, height, width = input.shape
        rows = input.permute(0, 2, 3, 1).reshape(groups, -1, height, width, channels)
        rows = rows.permute(1, 2, 3, 0, 4).flatten(3)
        output, statistics = self._batch_norm(
            rows.permute(0, 3, 1, 2), self.weight.repeat(groups), self.bias.repeat(groups)
        )
        self.pending.extend(statistics.view(2, groups, channels).unbind(1))
        rows = output.permute(0, 2, 3, 1).unflatten(3, (groups, channels))
        rows = rows.permute(3, 0, 1, 2, 4).reshape(count, height, width, channels)
        return rows.permute(0, 3, 1, 2)

    def _batch_norm(self, input: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        # With momentum 1 torch writes the batch's own mean and variance into these buffers.
        statistics = torch.zeros(
            2, input.shape[1], dtype=self.running_mean.dtype, device=input.device
        )
        mean, variance = statistics.unbind()
        if self.synchronized:
            return self._batch_norm_over_ranks(input, mean, variance), statistics
        output = F.batch_norm(input, mean, variance, weight, bias, True, momentum=1.0, eps=self.eps)
        return output, statistics

    def _batch_norm_over_ranks(self, input: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise by the statistics over all ranks, and write these into `mean`, `variance`."""
        group = dist.group.WORLD
        assert group is not None
        if not len(input):
            # torch sends an empty rank's zeros in its input's type, the others' sums in fp32.
            input = input.to(mean.dtype)
        return SyncBatchNorm.apply(
            input, self.weight, self.bias, mean, variance, self.eps, 1.0, group, group.size()
        )

    @torch.no_grad()
    def commit(self, statistics: Tensor) -> None:
        """Move the running statistics by a step's mean [2, C]: of the means and the variances."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        mean, variance = statistics.unbind()
        self.pending.clear()
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def group_sizes(examples: int, group: int | None) -> list[int]:
    """Split `examples` into groups of `group`; a short last group joins its neighbour."""
    if group is None or examples < 2 * group:
        return [examples]
    whole, rest = divmod(examples, group)
    return [group] * (whole - 1) + [group + rest]


def batch_norms(model: nn.Module) -> list[BatchNorm2d]:
    """List a model's BatchNorm2d layers."""
    return [module for module in model.modules() if isinstance(module, BatchNorm2d)]


def synchronize_batch_norms(model: nn.Module) -> None:
    """Let every BatchNorm2d take its statistics over all ranks; on CUDA, as torch's kernels are."""
    for layer in batch_norms(model):
        layer.synchronized = True


@torch.no_grad()
def commit_batch_statistics(model: nn.Module) -> None:
    """Move every BatchNorm2d's running statistics by the mean over all groups since the last time.

    Call it after each optimizer step, on every rank.
    """
    layers = batch_norms(model)
    if dist.is_available() and dist.is_initialized():
        means = means_over_ranks(layers)
    else:
        layers = [layer for layer in layers if layer.pending]
        means = [torch.stack(layer.pending).mean(dim=0) for layer in layers]
    for layer, mean in zip(layers, means, strict=True):
        layer.commit(mean)


def means_over_ranks(layers: Sequence[BatchNorm2d]) -> list[Tensor]:
    """Return each layer's mean over the groups of all ranks, [2, C], by one exchange for all.

    Every rank gets the same bits. A rank that set nothing aside adds nothing.
    """
    parts = []
    for layer in layers:
        buffer = layer.running_mean
        assert buffer is not None
        nothing = buffer.new_zeros(2, layer.num_features)
        parts += [sum(layer.pending, nothing).flatten(), buffer.new_tensor([len(layer.pending)])]
    if not parts:
        return []
    together = torch.cat(parts)
    dist.all_reduce(together)
    sums = iter(together.split([len(part) for part in parts]))
    return [total.view(2, -1) / count for total, count in zip(sums, sums, strict=True)]
