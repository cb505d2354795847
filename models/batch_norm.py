"""Batch normalisation whose running statistics move once an optimizer step.

A batch may pass through the network in several micro-batches, and each micro-batch may be
normalised in groups ("ghost batches", Hoffer et al. 2017, arXiv 1705.08741). torch's layer moves
its running statistics at every forward pass, so their result would depend on the memory at hand.
Here each group's statistics are set aside, and `commit_batch_statistics` moves the buffers by
their mean, once a step.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over [N, C, H, W] with statistics over groups of `ghost_batch` examples.

    Groups are consecutive examples of one forward pass; a short last group joins its neighbour;
    `ghost_batch=None` is one group. Evaluation, parameters and state_dict are nn.BatchNorm2d's.
    """

    def __init__(self, num_features: int, ghost_batch: int | None = None) -> None:
        """Make the layer for `num_features` channels."""
        super().__init__(num_features)
        self.ghost_batch = ghost_batch
        self.pending: list[Tensor] = []  # one [2, C] tensor a group: mean, unbiased variance

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training, set each group's statistics aside for the commit."""
        if not self.training:
            return super().forward(input)
        groups = input.split(group_sizes(len(input), self.ghost_batch))
        outputs = [self._normalize(group) for group in groups]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _normalize(self, group: Tensor) -> Tensor:
        assert self.running_mean is not None
        # With momentum 1 torch writes the batch's own mean and variance into these buffers.
        statistics = torch.zeros(
            2, self.num_features, dtype=self.running_mean.dtype, device=group.device
        )
        self.pending.append(statistics)
        mean, variance = statistics.unbind()
        return F.batch_norm(
            group, mean, variance, self.weight, self.bias, True, momentum=1.0, eps=self.eps
        )

    @torch.no_grad()
    def commit(self) -> None:
        """Move the running statistics by the mean over the groups since the last commit."""
        if not self.pending:
            return
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        mean, variance = torch.stack(self.pending).mean(dim=0).unbind()
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


def commit_batch_statistics(model: nn.Module) -> None:
    """Move every BatchNorm2d's running statistics; call it after each optimizer step."""
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.commit()
