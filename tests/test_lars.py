import pytest
import torch
from torch import nn

from lars import LARS, parameter_groups


def reference_steps(w, grads, lrs, momentum, dampening, weight_decay, nesterov, eta, eps, adapt):
    """The paper's rule in float64, one tensor at a time, written from its formulas."""
    w, v = w.double().clone(), None
    for grad, lr in zip(grads, lrs, strict=True):
        g = grad.double()
        wn, gn = w.norm().item(), g.norm().item()
        local = 1.0
        if adapt and wn > 0 and gn > 0:
            local = eta * wn / (gn + weight_decay * wn + eps)
        update = lr * local * (g + weight_decay * w)
        if momentum == 0:
            w = w - update
            continue
        v = update.clone() if v is None else momentum * v + (1 - dampening) * update
        w = w - (update + momentum * v if nesterov else v)
    return w


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.9, 0.0, True)],
)
@pytest.mark.parametrize("weight_decay", [0.0, 5e-3])
def test_fifty_steps_equal_the_reference(momentum, dampening, nesterov, weight_decay, adapt):
    torch.manual_seed(0)
    start = torch.randn(7, 5, dtype=torch.float64)
    grads = [torch.randn_like(start) for _ in range(50)]
    lrs = [0.5 + 0.1 * (step % 7) for step in range(50)]
    parameter = nn.Parameter(start.clone())
    optimizer = LARS(
        [parameter], 1.0, momentum, dampening, weight_decay, nesterov, 0.02, 1e-8, adapt
    )
    for grad, lr in zip(grads, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = grad.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, grad)
    expected = reference_steps(
        start, grads, lrs, momentum, dampening, weight_decay, nesterov, 0.02, 1e-8, adapt
    )
    assert torch.allclose(parameter, expected, rtol=1e-12, atol=1e-12)


def test_a_tensor_that_starts_at_zero_trains():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = LARS([parameter], lr=0.1, momentum=0.0)
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-0.1] * 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.biased_conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.first = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


def names(group):
    return [name for name, _ in group["params"]]


def test_groups_are_made_by_module_type():
    weights, others = parameter_groups(Net(), 5e-4)
    assert names(weights) == ["biased_conv.weight", "first.weight"]
    assert names(others) == ["biased_conv.bias", "bn.weight", "bn.bias"]
    assert (weights["weight_decay"], weights["adapt"]) == (5e-4, True)
    assert (others["weight_decay"], others["adapt"]) == (0.0, False)
    _, others = parameter_groups(Net(), 5e-4, decay="all", adapt="all")
    assert (others["weight_decay"], others["adapt"]) == (5e-4, True)


def test_groups_serve_torch_optimizers():
    optimizer = torch.optim.SGD(parameter_groups(Net(), 5e-4), lr=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": 0.1, "momentum": 1.0}, "momentum=1.0"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"lr": 0.1, "eps": -1.0}, "eps=-1.0"),
        ({"lr": 0.1, "trust_coefficient": 0.0}, "trust_coefficient=0.0"),
        ({"lr": 0.1, "dampening": 2.0}, "dampening=2.0"),
        ({"lr": 0.1, "momentum": 0.0, "nesterov": True}, "nesterov=True"),
    ],
)
def test_wrong_arguments_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        LARS([nn.Parameter(torch.zeros(1))], **options)
