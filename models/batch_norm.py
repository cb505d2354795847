"""Batch normalization that updates its running statistics once per optimizer step.

A batch may pass through the network in several micro-batches. Each micro-batch may be normalized
in groups ("ghost batches", Hoffer et al. 2017, arXiv 1705.08741). torch's layer updates its running
statistics at every forward pass, so they would depend on the micro-batch size. This layer adds up
each group's statistics, and `commit_batch_statistics` updates the buffers once per step by the mean
over all groups, those of all ranks of torch.distributed included. The sums are tensors because
torch.compile recompiles for every new length of a list.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over [N, C, H, W] with statistics over groups of `ghost_batch` examples.

    Groups are consecutive examples of one forward pass. A short last group is merged into the
    group before it. If `synchronized` is True, the passes of all ranks form one group, as in
    nn.SyncBatchNorm. The input may have N = 0 on a rank without examples. Evaluation, parameters
    and state_dict are those of nn.BatchNorm2d.

    Args:
        num_features: number of channels C.
        ghost_batch: examples per group; None makes each forward pass one group.

    """

    # Device types that normalize one group per call. On the CPU that is 2 to 4 times as fast as
    # one call for all groups, which needs copies. On other devices the calls for many small groups
    # cost more than the copies.
    loop_on = ("cpu",)

    def __init__(self, num_features: int, ghost_batch: int | None = None) -> None:
        super().__init__(num_features)
        self.ghost_batch = ghost_batch
        self.synchronized = False
        # Sums over the groups since the last commit: means, unbiased variances, number of groups.
        self.sums: Tensor
        self.register_buffer("sums", torch.zeros(3, num_features), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [N, C, H, W]; in training mode add each group's statistics to `sums`."""
        if not self.training:
            return super().forward(input)
        if self.synchronized:
            return self._normalize(input)
        if not len(input):
            # There are no statistics to add; weight and bias must still get gradients of 0.
            buffers = self.running_mean, self.running_var
            return F.batch_norm(input, *buffers, self.weight, self.bias, False, eps=self.eps)
        sizes = group_sizes(len(input), self.ghost_batch)
        if len(sizes) == 1:
            return self._normalize(input)
        if input.device.type in self.loop_on:
            return torch.cat([self._normalize(group) for group in input.split(sizes)])
        # The last group may be longer; the others have one size and go through one kernel.
        equal = len(sizes) if sizes[-1] == sizes[0] else len(sizes) - 1
        first, rest = input.tensor_split([equal * sizes[0]])
        outputs = [self._normalize_together(first, equal)]
        return torch.cat([*outputs, self._normalize(rest)]) if len(rest) else outputs[0]

    def _normalize(self, group: Tensor) -> Tensor:
        output, statistics = self._batch_norm(group, self.weight, self.bias)
        self.sums += statistics
        return output

    def _normalize_together(self, input: Tensor, groups: int) -> Tensor:
        """Normalize groups of equal size in one call, as one batch with `groups` * C channels.

        Channels stay last in memory, so the permutations copy whole rows of channels.
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
        # With momentum=1.0 torch overwrites these buffers with the batch's mean and variance.
        statistics = self.sums.new_ones(3, input.shape[1])
        mean, variance, _ = statistics.unbind()
        if self.synchronized:
            return self._batch_norm_over_ranks(input, mean, variance), statistics
        output = F.batch_norm(input, mean, variance, weight, bias, True, momentum=1.0, eps=self.eps)
        return output, statistics

    def _batch_norm_over_ranks(self, input: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalize by the statistics over all ranks; write them to `mean` and `variance`."""
        group = dist.group.WORLD
        assert group is not None
        if not len(input):
            # A rank without examples sends zeros of its input's dtype; the other ranks send fp32.
            input = input.to(mean.dtype)
        return SyncBatchNorm.apply(
            input, self.weight, self.bias, mean, variance, self.eps, 1.0, group, group.size()
        )

    @torch.no_grad()
    def commit(self, sums: Tensor) -> None:
        """Update the running statistics by a step's `sums` [3, C], and reset the layer's sums.

        If `sums` counts no group, the running statistics stay as they are.
        """
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
    """Return the sizes of groups of `group` examples; None is one group.

    A short last group is merged into the group before it.
    """
    if group is None or examples < 2 * group:
        return [examples]
    whole, rest = divmod(examples, group)
    return [group] * (whole - 1) + [group + rest]


def batch_norms(model: nn.Module) -> list[BatchNorm2d]:
    """Return this module's BatchNorm2d layers in a model."""
    return [module for module in model.modules() if isinstance(module, BatchNorm2d)]


def synchronize_batch_norms(model: nn.Module) -> None:
    """Make every BatchNorm2d compute its statistics over all ranks.

    torch has the kernels for CUDA devices only.
    """
    for layer in batch_norms(model):
        layer.synchronized = True


@torch.no_grad()
def commit_batch_statistics(model: nn.Module) -> None:
    """Update every BatchNorm2d's running statistics by its mean over all groups of a step.

    Call it after each optimizer step, on every rank.
    """
    layers = batch_norms(model)
    if not layers:
        return
    sums = [layer.sums for layer in layers]
    if dist.is_available() and dist.is_initialized():
        # One all-reduce for all layers; every rank gets bit-identical sums.
        together = torch.cat([each.flatten() for each in sums])
        dist.all_reduce(together)
        parts = together.split([each.numel() for each in sums])
        sums = [part.view(3, -1) for part in parts]
    for layer, each in zip(layers, sums, strict=True):
        layer.commit(each)


@torch.no_grad()
def forget_batch_statistics(model: nn.Module) -> None:
    """Reset every BatchNorm2d's sums without updating the running statistics."""
    for layer in batch_norms(model):
        layer.sums.zero_()
