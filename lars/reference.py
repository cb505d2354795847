"""LARS as the paper writes it, one tensor at a time: what every faster path is tested against.

Yang You, Igor Gitman and Boris Ginsburg, "Large Batch Training of Convolutional Networks",
arXiv 1708.03888, Algorithm 1. Nothing here is fast, and nothing is imported from this package.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lars_step(
    w: Tensor,
    g: Tensor,
    v: Tensor | None,
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the weights and the momentum after one step; nothing is changed in place.

    Args:
        w: the weights of one layer, any shape; float64 for a yardstick.
        g: the gradient of the loss, as `w`.
        v: the momentum of the step before, as `w`; None at the first step.
        lr: gamma in the paper, the global learning rate.
        momentum: m in the paper.
        weight_decay: beta in the paper.
        trust_coefficient: eta in the paper.
        eps: added to the denominator; the paper has none.
        dampening: share of the update that the momentum leaves out, as in torch.optim.SGD.
        nesterov: step along the update and the momentum to come, as in torch.optim.SGD.

    """
    norm_w, norm_g = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
    # The paper leaves a norm of 0 open. With ratio 1, a layer that starts at zero trains.
    local_lr = torch.ones_like(norm_w)
    if norm_w > 0 and norm_g > 0:
        local_lr = trust_coefficient * norm_w / (norm_g + weight_decay * norm_w + eps)
    update = lr * local_lr * (g + weight_decay * w)
    if momentum == 0:
        return w - update, update
    v = update if v is None else momentum * v + (1 - dampening) * update
    return w - (update + momentum * v if nesterov else v), v
