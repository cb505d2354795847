"""Reference implementation of LARS, one tensor at a time, for tests of the faster paths.

Source: Yang You, Igor Gitman and Boris Ginsburg, "Large Batch Training of Convolutional Networks",
arXiv 1708.03888, Algorithm 1. It is not fast, and imports nothing from this package.
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
    """Return the weights and the momentum after one step. No argument is modified.

    Args:
        w: the weights of one layer, of any shape; float64 if they are to be a reference.
        g: the gradient of the loss, of the shape and dtype of `w`.
        v: the momentum after the previous step, like `w`; None at the first step.
        lr: gamma in the paper, the global learning rate.
        momentum: m in the paper.
        weight_decay: beta in the paper.
        trust_coefficient: eta in the paper.
        eps: added to the denominator of the ratio. The paper has none.
        dampening: fraction of each update, but the first, that is left out of the momentum, as in
            torch.optim.SGD.
        nesterov: use Nesterov momentum, as in torch.optim.SGD.

    """
    norm_w, norm_g = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
    # The paper does not define the ratio for a norm of 0. With 1, a layer that is zero trains.
    local_lr = torch.ones_like(norm_w)
    if norm_w > 0 and norm_g > 0:
        local_lr = trust_coefficient * norm_w / (norm_g + weight_decay * norm_w + eps)
    update = lr * local_lr * (g + weight_decay * w)
    if momentum == 0:
        return w - update, update
    v = update if v is None else momentum * v + (1 - dampening) * update
    return w - (update + momentum * v if nesterov else v), v
