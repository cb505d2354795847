"""Batch normalisation whose running statistics move once an optimizer step.

A batch may pass through the network in several micro-batches, and each micro-batch may be
normalised in groups ("ghost batches", Hoffer et al. 2017, arXiv 1705.08741). torch's layer moves
its running statistics at every forward pass, so their result would depend on the memory at hand.
Here each group's statistics are added up, and `commit_batch_statistics` moves the buffers by their
mean, once a step; where torch.distributed has several ranks, by the mean over all of theirs. The
sums are tensors: a list of statistics would be compiled anew for each length it has had.
"""

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
        # Over the groups since the last commit: of means, of unbiased variances, and their number.
        self.sums: Tensor
        self.register_buffer("sums", torch.zeros(3, num_features), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training, add each group's statistics to what the commit will take."""
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
        self.sums += statistics
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
        self.sums += statistics.view(3, groups, channels).sum(dim=1)
        rows = output.permute(0, 2, 3, 1).unflatten(3, (groups, channels))
        rows = rows.permute(3, 0, 1, 2, 4).reshape(count, height, width, channels)
        return rows.permute(0, 3, 1, 2)

    def _batch_norm(self, input: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        # With momentum 1 torch writes the batch's own mean and variance into these buffers.
        statistics = self.sums.new_ones(3, input.shape[1])
        mean, variance, _ = statistics.unbind()
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
    def commit(self, sums: Tensor) -> None:
        """Move the running statistics by a step's `sums` [3, C], if any, and start anew."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        groups = sums[2]
        mean, variance = sums[:2] / groups.clamp(min=1)
        weight = self.momentum * groups.clamp(max=1)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)
        self.num_batches_tracked += groups[0] > 0
        self.sums.zero_()


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
    if not layers:
        return
    sums = [layer.sums for layer in layers]
    if dist.is_available() and dist.is_initialized():
        # One exchange for all; every rank gets the same bits.
        together = torch.cat([each.flatten() for each in sums])
        dist.all_reduce(together)
        parts = together.split([each.numel() for each in sums])
        sums = [part.view(3, -1) for part in parts]
    for layer, each in zip(layers, sums, strict=True):
        layer.commit(each)


@torch.no_grad()
def forget_batch_statistics(model: nn.Module) -> None:
    """Drop what a step has added up that is not to be counted."""
    for layer in batch_norms(model):
        layer.sums.zero_()
