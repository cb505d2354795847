"""Reference implementations of LARS and LAMB, one tensor at a time, for tests of the faster paths.

They are not fast, and import nothing from this package.
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
    """Return the weights and the momentum after one step of LARS. No argument is modified.

    Source: Yang You, Igor Gitman and Boris Ginsburg, "Large Batch Training of Convolutional
    Networks", arXiv 1708.03888, Algorithm 1.

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


def lamb_step(
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    lr: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    bounds: tuple[float, float] | None = None,
    adapt: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights and both averages after one step of LAMB. No argument is modified.

    Source: Yang You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76
    minutes", arXiv 1904.00962, Algorithm 2.

    Args:
        w: the weights of one layer, of any shape; float64 if they are to be a reference.
        g: the gradient of the loss, of the shape and dtype of `w`.
        m: the average of gradients after the previous step; zeros at the first step.
        v: the average of squared gradients, likewise.
        t: the number of this step, counted from 1.
        lr: eta in the paper.
        beta1: decay of `m`.
        beta2: decay of `v`.
        eps: added to the square root of `v`.
        weight_decay: lambda in the paper.
        bounds: gamma_l and gamma_u in the paper, which bound the norm of `w`; None for no bounds.
        adapt: whether there is a trust ratio. Without it, this is AdamW.

    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    corrected_m, corrected_v = m / (1 - beta1**t), v / (1 - beta2**t)
    update = corrected_m / (torch.sqrt(corrected_v) + eps) + weight_decay * w
    phi = torch.linalg.vector_norm(w)
    if bounds is not None:
        phi = torch.clamp(phi, *bounds)
    norm = torch.linalg.vector_norm(update)
    # The paper does not define the ratio for a norm of 0. With 1, a layer that is zero trains.
    ratio = phi / norm if adapt and phi > 0 and norm > 0 else torch.ones_like(phi)
    return w - lr * ratio * update, m, v
