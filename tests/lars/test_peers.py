"""Trajectories equal those of published packages if the rules are equal; else the difference.

The packages are no dependencies. A test is skipped if its package is not installed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lars import LAMB, LARS

Trajectory = list[torch.Tensor]


def trajectory(make: Any, steps: int = 30) -> Trajectory:
    """Return the weights after each step, with a changing rate and a new gradient at each step."""
    torch.manual_seed(0)
    tensors = [torch.randn(4, 3), torch.randn(2, 3, 2, 2), torch.zeros(3, 2)]
    params = [torch.nn.Parameter(t.double()) for t in tensors]
    optimizer = make(params)
    states = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * min(step / 10, 1.0)
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        states.append(torch.cat([p.detach().flatten() for p in params]))
    return states


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("theirs", [{}, {"trust_clip": True}, {"always_adapt": True}])
def test_timm(path: Any, weight_decay: float, nesterov: bool, theirs: Any) -> None:
    """Its `Lars` is variant "timm". Its `always_adapt` is adapt=True here."""
    optim = pytest.importorskip("timm.optim")
    common = {"lr": 0.5, "momentum": 0.9, "weight_decay": weight_decay, "nesterov": nesterov}
    mine = {"trust_clip": theirs.get("trust_clip"), "adapt": theirs.get("always_adapt")}
    expected = trajectory(lambda p: optim.Lars(p, **common, **theirs))
    found = trajectory(lambda p: LARS(p, variant="timm", **common, **mine, **path))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_pytorch_optimizer(dampening: float) -> None:
    """Its LARS (4.1.0) is "trust" with eps 0, for matrices and without dampening.

    Its buffer starts at zero, so it also dampens the first gradient. torch's SGD and LARS here do
    not. Older releases store the first gradient without the ratio.
    """
    module = pytest.importorskip("pytorch_optimizer")
    common = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1, "dampening": dampening}
    expected = trajectory(lambda p: module.LARS(p, **common, foreach=False))
    found = trajectory(lambda p: LARS(p, variant="torchlars", eps=0.0, **common))
    if dampening == 0:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    else:
        # The first rate is 0: the buffers differ from the first step, the weights from the second.
        assert torch.equal(found[0], expected[0])
        assert not torch.allclose(found[1], expected[1], rtol=1e-6, atol=0)


def test_pytorch_optimizer_at_a_zero_gradient() -> None:
    """It checks if the denominator is 0, not the gradient, so its ratio is eta / weight_decay."""
    module = pytest.importorskip("pytorch_optimizer")
    moved = {}
    for mine in (False, True):
        param = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        options: dict[str, Any] = {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.1}
        options |= {"variant": "torchlars", "eps": 0.0} if mine else {}
        param.grad = torch.zeros_like(param)
        (LARS if mine else module.LARS)([param], **options).step()
        moved[mine] = 1 - param[0, 0].item()
    assert moved[True] == pytest.approx(0.5 * 0.1)
    assert moved[False] == pytest.approx(0.5 * 0.1 * 0.001 / 0.1)


def test_pytorch_optimizer_excludes_vectors() -> None:
    """It neither adapts nor decays 1-D tensors. Here the options of a group do this."""
    module = pytest.importorskip("pytorch_optimizer")
    ends = []
    for mine in (False, True):
        param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        options: dict[str, Any] = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}
        if mine:
            options |= {"variant": "torchlars", "weight_decay": 0.0, "adapt": False}
        optimizer = (LARS if mine else module.LARS)([param], **options)
        for step in range(5):
            param.grad = torch.full_like(param, 1.0 + step)
            optimizer.step()
        ends.append(param.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("always_adapt", [False, True])
def test_lamb_of_timm(path: Any, weight_decay: float, always_adapt: bool) -> None:
    """Its `Lamb` is LAMB with adapt "decayed", without its clipping of the norm of all gradients.

    Its `always_adapt` is adapt=True here.
    """
    optim = pytest.importorskip("timm.optim")
    common = {"lr": 0.5, "weight_decay": weight_decay, "betas": (0.8, 0.95), "eps": 1e-3}
    theirs = {"max_grad_norm": None, "always_adapt": always_adapt}
    adapt = True if always_adapt else "decayed"
    expected = trajectory(lambda p: optim.Lamb(p, **common, **theirs))
    found = trajectory(lambda p: LAMB(p, adapt=adapt, **common, **path))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_lamb_of_timm_clips_by_default() -> None:
    """It divides gradients by their norm if that exceeds 1. Here, clip before the step."""
    optim = pytest.importorskip("timm.optim")
    norm = []

    def clipping(params: Any) -> Any:
        optimizer = LAMB(params, lr=0.5, eps=0.1)
        clip = torch.nn.utils.clip_grad_norm_
        optimizer.register_step_pre_hook(lambda *_: norm.append(clip(params, 1.0)))
        return optimizer

    common: dict[str, Any] = {"lr": 0.5, "eps": 0.1, "weight_decay": 0.0, "always_adapt": True}
    found = trajectory(clipping)
    expected = trajectory(lambda p: optim.Lamb(p, **common))
    assert min(norm) > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("foreach", [False, True])
def test_lamb_of_pytorch_optimizer(foreach: bool) -> None:
    """Its `Lamb` (4.1.0) is another rule, of an earlier version of the paper.

    It has no bias correction in r, but divides the rate by that of the first average. It adds eps
    to the norm of the update too, bounds ||w|| by 10, and applies weight decay to the weights
    before the update, outside of the ratio.
    """
    module = pytest.importorskip("pytorch_optimizer")
    lr, eps, decay, beta1, beta2 = 0.1, 1e-2, 0.1, 0.8, 0.95
    common = {"lr": lr, "eps": eps, "weight_decay": decay, "betas": (beta1, beta2)}
    torch.manual_seed(0)
    start = 20 * torch.randn(4, 3, dtype=torch.float64)
    param, w = torch.nn.Parameter(start.clone()), start.clone()
    optimizer = module.Lamb([param], **common, foreach=foreach)
    m = v = torch.zeros_like(w)
    for t in range(1, 11):
        g = torch.randn_like(w)
        param.grad = g.clone()
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w = w * (1 - lr * decay)
        r = m / (v.sqrt() + eps)
        w = w - lr / (1 - beta1**t) * min(w.norm().item(), 10.0) / (r.norm() + eps) * r
    torch.testing.assert_close(param.detach(), w, rtol=1e-9, atol=1e-12)
    ends = []
    for make, options in ((LAMB, {"weight_norm_max": 10.0}), (module.Lamb, {"foreach": foreach})):
        other = torch.nn.Parameter(start.clone())
        other.grad = g.clone()
        make([other], **common, **options).step()
        ends.append(other.detach())
    assert not torch.allclose(*ends, rtol=1e-3)
