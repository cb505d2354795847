"""Public bug reports about optimizers in training loops, tested on every path.

The expected values are those of torch's SGD or are computed by hand. The docstrings link the
reports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lars import LARS, LARSWrapper, parameter_groups

Make = Callable[..., torch.optim.Optimizer]


def _wrapped(params: Any, **options: Any) -> LARSWrapper:
    """Return the wrapper over SGD with momentum."""
    own = {
        name: options.pop(name) for name in ("lr", "momentum", "weight_decay") if name in options
    }
    return LARSWrapper(torch.optim.SGD(params, **{"lr": 0.1, "momentum": 0.9, **own}), **options)


PATHS: dict[str, Make] = {
    "single": lambda params, **options: LARS(params, foreach=False, **options),
    "foreach": lambda params, **options: LARS(params, foreach=True, **options),
    "fused": lambda params, **options: LARS(params, fused=True, **options),
    "default": LARS,
}
all_paths = pytest.mark.parametrize("make", PATHS.values(), ids=PATHS)
MAKERS: dict[str, Make] = {**PATHS, "wrapper": _wrapped}
all_makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def parameter(*shape: int) -> torch.nn.Parameter:
    """Return a parameter of ones with a gradient of ones."""
    param = torch.nn.Parameter(torch.ones(shape))
    param.grad = torch.ones(shape)
    return param


@all_paths
@pytest.mark.parametrize("shape", [(2, 2), (4, 3)], ids=["smaller", "as large"])
def test_a_buffer_of_another_shape_is_refused(make: Make, shape: tuple[int, ...]) -> None:
    """After pruning, or if a checkpoint has another order of parameters, shapes differ.

    A fused kernel would write past the end of the shorter tensor.
    https://github.com/pytorch/pytorch/issues/1489
    """
    param = parameter(3, 4)
    optimizer = make([param])
    optimizer.step()
    param.grad = None
    param.data = torch.ones(shape)
    param.grad = torch.ones(shape)
    with pytest.raises(RuntimeError, match=r"momentum buffer has shape \(3, 4\), its parameter \("):
        optimizer.step()
    other = parameter(*shape)
    second = make([other])
    second.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="a checkpoint has the parameters in another order"):
        second.step()
    assert torch.equal(param.detach(), torch.ones(shape))
    assert torch.equal(other.detach(), torch.ones(shape))


@all_makers
def test_a_gradient_of_another_shape_is_refused(make: Make) -> None:
    """It remains if its parameter is resized. The step raises before any tensor changes."""
    param, other = parameter(4), parameter(8)
    optimizer = make([param, other], momentum=0.0, weight_decay=0.5)
    other.data = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"gradient has shape \(8,\), its parameter \(3,\)"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(4)) and torch.equal(other.detach(), torch.ones(3))
    assert param.grad is not None and torch.equal(param.grad, torch.ones(4))
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


@all_makers
def test_lazily_negated_gradients(make: Make) -> None:
    """Autograd may return one: https://github.com/pytorch/pytorch/issues/184379.

    A kernel that reads memory directly would see the wrong sign. This one is real and has one
    element.
    """
    real, imaginary = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    (torch.complex(real, imaginary).conj() * (1 + 2j)).abs().sum().backward()
    assert imaginary.grad is not None and imaginary.grad.is_neg() and imaginary.grad.is_contiguous()
    plain = torch.nn.Parameter(torch.ones(1))
    plain.grad = imaginary.grad.clone().resolve_neg()
    for param in (imaginary, plain):
        make([param], trust_coefficient=0.1).step()
    assert plain.grad.item() > 0
    assert torch.equal(imaginary.detach(), plain.detach()) and plain.item() < 1


@all_makers
def test_a_backward_pass_after_the_step_is_refused(make: Make) -> None:
    """The step changes tensors that autograd saved, as may happen with GANs.

    https://github.com/linkedin/Liger-Kernel/issues/272
    """
    param = parameter(4)
    loss = param.square().sum()
    make([param]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@all_makers
def test_torch_s_default_device_makes_no_difference(make: Make) -> None:
    """Tensors that a step creates are on the CPU or on the device of the parameters.

    The report is about set_default_device("cuda"). Tensors on "meta" have no values.
    https://github.com/flashinfer-ai/flashinfer/pull/755
    """
    ends = []
    for device in ("cpu", "meta"):
        param = parameter(4)
        with torch.device(device):
            optimizer = make([param], weight_decay=0.1)
            options = {"clip_norm": 1.0, "clip_value": 0.3}
            optimizer.param_groups[0].update(options if isinstance(optimizer, LARS) else {})
            optimizer.telemetry = True  # type: ignore[attr-defined]
            optimizer.step()
            ends.append([param.detach()])
            if isinstance(optimizer, LARS):
                assert optimizer.grad_norm is not None
                row = optimizer.layer_statistics()[0].values()
                ends[-1] += [value.cpu() for value in (optimizer.grad_norm, *row)]
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@all_makers
def test_grad_scaler_without_a_gradient(make: Make) -> None:
    """One of two optimizers has none: https://github.com/huggingface/accelerate/issues/328."""
    idle, busy = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizers = [make([idle]), make([busy])]
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(2):
        scaler.scale(busy.sum()).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
    assert torch.equal(idle.detach(), torch.ones(2)) and (busy < 1).all()


@all_makers
@pytest.mark.parametrize("unscaled", [False, True])
def test_grad_scaler_can_unscale_and_skip_steps_itself(make: Make, unscaled: bool) -> None:
    """If _step_supports_amp_scaling is False, Lightning clips and Accelerate sees skipped steps.

    https://github.com/Lightning-AI/pytorch-lightning/issues/21435 and
    https://github.com/huggingface/accelerate/issues/4242.
    """
    plain, param = parameter(4), torch.nn.Parameter(torch.ones(4))
    make([plain]).step()
    optimizer = make([param])
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    steps: list[None] = []
    optimizer.register_step_post_hook(lambda *_: steps.append(None))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor, taken in ((torch.inf, 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert len(steps) == taken
    assert torch.equal(param.detach(), plain.detach())


@pytest.mark.parametrize("way", ["add", "append", "load"])
def test_groups_that_are_added_to_the_wrapped_optimizer(way: str) -> None:
    """They get the wrapper's options, too: https://github.com/NVIDIA/apex/issues/766."""
    first, second = parameter(4), parameter(4)
    base = torch.optim.SGD([first], lr=1.0)
    optimizer = LARSWrapper(base, trust_coefficient=0.5)
    if way == "add":
        base.add_param_group({"params": [second], "lr": 2.0})
    elif way == "append":
        base.param_groups.append({**base.defaults, "params": [second], "lr": 2.0})
    else:
        base.load_state_dict(torch.optim.SGD([first], lr=2.0).state_dict())
    optimizer.step()
    moved = [1 - param.mean().item() for param in (first, second)]
    assert moved == pytest.approx([0.5, 1.0] if way != "load" else [1.0, 0.0])


@all_paths
def test_statistics_of_two_models_with_the_same_names(make: Make) -> None:
    """As with a GAN, names occur twice: https://github.com/horovod/horovod/issues/2670."""
    models = [torch.nn.Linear(3, 2), torch.nn.Linear(2, 4)]
    optimizer = make([group for model in models for group in parameter_groups(model, 0.1)])
    assert isinstance(optimizer, LARS)
    optimizer.telemetry = True
    params = [p for model in models for p in model.parameters()]
    keys = ["weight", "bias", "weight (2)", "bias (3)"]
    for skipped in (None, 0):
        for index, param in enumerate(params):
            param.grad = None if index == skipped else torch.full_like(param, 1.0 + index)
        expected = [p.detach().norm() for p in params]
        optimizer.step()
        found = optimizer.layer_statistics()
        assert list(found) == [key for index, key in enumerate(keys) if index != skipped]
        for index, key in enumerate(keys):
            if index != skipped:
                torch.testing.assert_close(found[key]["weight_norm"].float(), expected[index])


@all_makers
def test_parameters_without_an_address(make: Make) -> None:
    """Quantized tensors are an example: https://github.com/pytorch/pytorch/issues/121412."""
    two = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    param, plain = torch.nn.Parameter(two(torch.ones(4), torch.ones(4))), parameter(4)
    param.grad = two(torch.ones(4), torch.ones(4))
    for weight in (param, plain):
        optimizer = make([weight], weight_decay=0.1, trust_coefficient=0.1)
        for _ in range(2):
            optimizer.step()
    torch.testing.assert_close([param.a, param.b], [plain.detach()] * 2)  # type: ignore[attr-defined]


@all_makers
def test_memory_is_estimated_with_fake_tensors(make: Make) -> None:
    """No value is read, and the state has its shapes.

    https://github.com/pytorch/pytorch/issues/93654
    """
    private = pytest.importorskip("torch._subclasses.fake_tensor")
    with private.FakeTensorMode():
        model = torch.nn.Linear(3, 3)
        optimizer = make(model.parameters())
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        shapes = [s["momentum_buffer"].shape for s in optimizer.state.values()]
    assert shapes == [(3, 3), (3,)]
