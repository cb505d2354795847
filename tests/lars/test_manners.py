"""The requirements of torch's generic optimizer tests, applied to LARS.

LARS differs in these points:

- An invalid combination of flags raises ValueError, not RuntimeError, like all other user errors.
- As in SGD, a zero gradient leaves a tensor unchanged only without weight decay and buffer.
- Sparse gradients raise, because a norm needs the whole tensor.
- The state has no `step` counter.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from lars import LARS, PRESETS, LARSWrapper, parameter_groups
from tests.helpers.optimizers import Recorder, problem, weights_with_and_without_a_switch

PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
}
all_paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@all_paths
@pytest.mark.parametrize("variant", [v for v in PRESETS if not v.startswith("pytorch-lars")])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_the_loss_changes_in_the_right_direction(
    path: dict[str, Any], variant: str, maximize: bool, tensor_lr: bool
) -> None:
    """A scheduler halves the learning rate, a float or a tensor."""
    params, loss_of = problem()
    lr = torch.tensor(1.0) if tensor_lr else 1.0
    optimizer = LARS(
        params,
        lr,
        variant=variant,
        trust_coefficient=0.01,
        weight_decay=1e-4,
        maximize=maximize,
        **path,
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    before = loss_of().item()
    for _ in range(10):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    assert (loss_of().item() > before) is maximize


@all_paths
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_tensor_is_two_real_ones(path: dict[str, Any], dtype: torch.dtype) -> None:
    """The steps are those of its view as pairs of real numbers."""
    torch.manual_seed(0)
    number = torch.nn.Parameter(torch.randn(3, 2, dtype=dtype))
    pairs = torch.nn.Parameter(torch.view_as_real(number.detach()).clone())
    optimizers = [
        LARS([p], lr=1.0, weight_decay=0.1, nesterov=True, **path) for p in (number, pairs)
    ]
    for _ in range(5):
        number.grad = torch.randn_like(number)
        pairs.grad = torch.view_as_real(number.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(number.detach()), pairs.detach())
    assert optimizers[0].state[number]["momentum_buffer"].dtype is dtype


@all_paths
def test_lazily_conjugated_gradients(path: dict[str, Any]) -> None:
    """Autograd may return one. The step must use the conjugated values."""
    torch.manual_seed(0)
    lazy = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
    plain = torch.nn.Parameter(lazy.detach().clone())
    (lazy.conj() * torch.randn(3, dtype=torch.complex64)).sum().abs().backward()
    assert lazy.grad is not None and lazy.grad.is_conj()
    plain.grad = lazy.grad.resolve_conj().clone()
    for param in (lazy, plain):
        LARS([param], lr=1.0, weight_decay=0.1, **path).step()
    assert torch.equal(lazy.detach(), plain.detach())


def test_a_capture_that_would_freeze_the_rate_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replay uses the captured value of a number, or of a tensor on another device."""
    refused: list[str] = []
    monkeypatch.setattr("lars.bucket.check_not_capturing", lambda _, what: refused.append(what))
    for lr, device, frozen in (
        (0.1, "meta", True),
        (torch.tensor(0.1), "meta", True),
        (torch.tensor(0.1), "cpu", False),
    ):
        param = torch.nn.Parameter(torch.ones(2, device=device))
        param.grad = torch.ones_like(param)
        LARS([param], lr=lr, momentum=0.0, capturable=True, foreach=True).step()
        assert bool(refused) is frozen
        refused.clear()


def strided_tensors() -> list[tuple[Tensor, Tensor]]:
    """Return (weight, gradient) pairs: views with gaps, channels_last, expanded, empty, 0-d."""
    torch.manual_seed(0)
    weights = [
        torch.randn(4, 6).t(),
        torch.randn(3, 4, 8)[:, :, ::2],
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 4),
        torch.randn(2, 3, 4, 4, 2).to(memory_format=torch.channels_last_3d),
        torch.randn(()),
        torch.randn(0, 3),
    ]
    gradients = [torch.randn_like(t) for t in weights]
    gradients[0] = torch.randn(6, 1).expand(6, 4)
    gradients[3] = gradients[3].to(memory_format=torch.channels_last)
    return list(zip(weights, gradients, strict=True))


@all_paths
@pytest.mark.parametrize("nesterov", [False, True])
def test_strides_make_no_difference(path: dict[str, Any], nesterov: bool) -> None:
    """The steps are those of contiguous copies, and the layouts do not change."""
    results = []
    for plain in (False, True):
        pairs = strided_tensors()
        if plain:
            pairs = [(w.contiguous(), g.contiguous()) for w, g in pairs]
        params = [torch.nn.Parameter(w) for w, _ in pairs]
        strides = [p.stride() for p in params]
        options = {"weight_decay": 0.1, "trust_coefficient": 0.1, "nesterov": nesterov, **path}
        optimizer = LARS(params, lr=1.0, **options)
        for _ in range(3):
            for param, (_, gradient) in zip(params, pairs, strict=True):
                param.grad = gradient
            optimizer.step()
        results.append([p.detach().contiguous() for p in params])
        assert [p.stride() for p in params] == strides
    torch.testing.assert_close(*results)


@all_paths
def test_dtypes_may_be_mixed(path: dict[str, Any]) -> None:
    """Each tensor and its buffer keep their dtype, and every tensor is updated."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = LARS(params, lr=1.0, trust_coefficient=0.5, clip_norm=1e3, **path)
    optimizer.step()
    for param, dtype in zip(params, dtypes, strict=True):
        assert optimizer.state[param]["momentum_buffer"].dtype is dtype
        torch.testing.assert_close(param.detach(), torch.full((3,), 0.5, dtype=dtype))
    assert optimizer.grad_norm is not None
    assert optimizer.grad_norm.item() == pytest.approx(15**0.5)


@all_paths
def test_parameters_without_a_gradient_are_not_updated(path: dict[str, Any]) -> None:
    """They have no state either."""
    params, _ = problem()
    optimizer = LARS(params, weight_decay=0.1, clip_norm=1.0, **path)
    optimizer.telemetry = True
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert len(optimizer.state) == 0
    assert optimizer.grad_norm is None and optimizer.layer_statistics() == {}
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert not torch.equal(params[0], before[0]) and torch.equal(params[1], before[1])
    assert set(optimizer.state) == {params[0]}
    assert len(optimizer.layer_statistics()) == 1


@all_paths
def test_zero_gradients_do_not_update(path: dict[str, Any]) -> None:
    """This is without weight decay and without an earlier step."""
    params, _ = problem()
    before = [p.detach().clone() for p in params]
    for param in params:
        param.grad = torch.zeros_like(param)
    LARS(params, lr=1.0, **path).step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@all_paths
def test_options_are_per_group(path: dict[str, Any]) -> None:
    """One group has lr 0. A group that is added later trains; an invalid one is not added."""
    params, loss_of = problem()
    late = torch.nn.Parameter(torch.ones(2))
    optimizer = LARS(
        [{"params": params[:1], "lr": 0.0}, {"params": iter(params[1:])}],
        lr=0.1,
        weight_decay=0.1,
        **path,
    )
    optimizer.add_param_group({"params": late, "momentum": 0.0})
    before = [p.detach().clone() for p in (*params, late)]
    loss_of().backward()
    late.grad = torch.ones(2)
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip((*params, late), before, strict=True)]
    assert moved == [False, True, True]
    assert late not in optimizer.state
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.add_param_group({"params": torch.nn.Parameter(torch.ones(1)), "weight_decay": -1})
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("target", PATHS)
@all_paths
def test_state_moves_between_paths(path: dict[str, Any], target: str) -> None:
    """Training resumes on another path from a state_dict with the same results."""
    ends = weights_with_and_without_a_switch(
        lambda params: LARS(params, lr=1.0, weight_decay=0.01, nesterov=True, **path),
        lambda params: LARS(params, lr=5.0, **PATHS[target]),
        dict.fromkeys(("foreach", "fused")) | {"capturable": False} | PATHS[target],
    )
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


def test_a_checkpoint_of_sgd_or_of_an_older_version_loads() -> None:
    """Options that a state_dict lacks come from the constructor."""
    params, loss_of = problem()
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.5)
    loss_of().backward()
    sgd.step()
    optimizer = LARS(params, variant="timm", eps=0.125)
    optimizer.load_state_dict(sgd.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["eps"]) == (0.1, 0.5, 0.125)
    assert group["momentum_scaling"] == "trust"
    optimizer.step()


def test_copies_are_independent_and_complete() -> None:
    """Deepcopy and pickle keep groups, state and variant. A step does not change the copy."""
    params, loss_of = problem()
    optimizer = LARS(params, torch.tensor(0.5), variant="larc", weight_decay=0.1)
    loss_of().backward()
    optimizer.step()
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert repr(copied) == repr(optimizer)
        assert "larc" in repr(copied)
        theirs = copied.param_groups[0]["params"]
        assert all(torch.equal(a, b) for a, b in zip(theirs, params, strict=True))
        before = [p.detach().clone() for p in params]
        for param, own in zip(theirs, params, strict=True):
            buffer = copied.state[param]["momentum_buffer"]
            assert torch.equal(buffer, optimizer.state[own]["momentum_buffer"])
            param.grad = torch.ones_like(param)
        copied.step()
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("wrap", [False, True])
def test_hooks_run_around_the_step(wrap: bool) -> None:
    """Each is called once, with the optimizer as argument."""
    params, loss_of = problem()
    optimizer = LARSWrapper(torch.optim.SGD(params)) if wrap else LARS(params)
    calls: list[tuple[str, object]] = []
    optimizer.register_step_pre_hook(lambda o, *_: calls.append(("before", o)))
    handle = optimizer.register_step_post_hook(lambda o, *_: calls.append(("after", o)))
    loss_of().backward()
    optimizer.step()
    assert calls == [("before", optimizer), ("after", optimizer)]
    handle.remove()
    optimizer.step()
    assert len(calls) == 3


def test_a_tensor_rate_equals_a_float() -> None:
    """Every path reads it at each step."""
    ends = []
    for path in PATHS.values():
        for lr in (0.5, torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.5])):
            params, loss_of = problem(torch.float64)
            optimizer = LARS(params, lr, weight_decay=0.1, **path)
            for _ in range(3):
                optimizer.zero_grad()
                loss_of().backward()
                optimizer.step()
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
            ends.append(torch.cat([p.detach().flatten() for p in params]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", ["paper", "blog", "timm", "braintools"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_autograd_goes_through_a_differentiable_step(variant: str, momentum: float) -> None:
    """Two steps are a differentiable function of weights, gradients and learning rate."""
    torch.manual_seed(0)

    def two_steps(weight: Tensor, first: Tensor, second: Tensor, lr: Tensor) -> Tensor:
        weight = weight.clone()
        optimizer = LARS(
            [weight],
            lr,
            momentum,
            weight_decay=0.1,
            variant=variant,
            trust_coefficient=0.1,
            differentiable=True,
        )
        for gradient in (first, second):
            weight.grad = gradient
            optimizer.step()
        return weight

    tensors = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(two_steps, (*tensors, lr))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_differentiable_step_at_a_zero_norm_has_no_nan(value: float) -> None:
    """The 0/0 in the ratio, which is overwritten, must not reach the gradient."""
    weight = torch.zeros(3, requires_grad=True)
    moved = weight.clone()
    optimizer = LARS([moved], differentiable=True)
    moved.grad = torch.full((3,), value, requires_grad=True)
    optimizer.step()
    moved.sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("variant", PRESETS)
def test_the_foreach_step_does_not_sync_and_has_a_fixed_number_of_calls(
    variant: str, nesterov: bool
) -> None:
    """It makes as many calls for 80 tensors as for 2, with clipping and telemetry."""
    counts = []
    for number in (2, 80):
        params = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(number)]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = LARS(
            params,
            torch.tensor(0.1),
            variant=variant,
            weight_decay=0.1,
            nesterov=nesterov,
            clip_norm=1.0,
            capturable=True,
        )
        optimizer.telemetry = True
        optimizer.step()
        with Recorder() as recorder:
            optimizer.step()
        counts.append(len(recorder.calls))
    grows = variant == "braintools"  # ||g + b * w|| needs each sum as a tensor
    assert grows or counts[0] == counts[1] < 45


@all_paths
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("wrap", [False, True])
def test_grad_scaler(path: dict[str, Any], clip_norm: float | None, wrap: bool) -> None:
    """Norms, decay and clipping use unscaled gradients. A step with inf is skipped."""
    ends = []
    for scale in (1.0, 1024.0):
        params, loss_of = problem()
        if wrap:
            base = torch.optim.SGD(params, lr=1.0, momentum=0.9, weight_decay=0.1)
            optimizer: torch.optim.Optimizer = LARSWrapper(base, trust_coefficient=0.1)
        else:
            optimizer = LARS(
                params, 1.0, weight_decay=0.1, trust_coefficient=0.1, clip_norm=clip_norm, **path
            )
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_of()).backward()
            if step == 2:
                assert params[0].grad is not None
                params[0].grad[0, 0] = torch.inf
            before = [p.detach().clone() for p in params]
            grads = [p.grad.clone() for p in params if p.grad is not None]
            scaler.step(optimizer)
            scaler.update()
            assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True)) is (
                step == 2
            )
            assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
        ends.append(params)
        if not wrap and clip_norm:
            grad_norm = optimizer.grad_norm  # type: ignore[attr-defined]
            expected = torch.cat([p.grad.flatten() for p in params if p.grad is not None]).norm()
            torch.testing.assert_close(grad_norm.float(), expected / scaler.get_scale())
    torch.testing.assert_close(*ends)


@all_paths
def test_sparse_gradients_are_refused(path: dict[str, Any]) -> None:
    """The message is that of LARS, not an error of a kernel."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        LARS([param], **path).step()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"lr": -0.1}, "learning rate: -0.1"),
    ({"lr": float("nan")}, "learning rate: nan"),
    ({"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
    ({"lr": "fast"}, "learning rate: 'fast'"),
    ({"momentum": -0.5}, "momentum value: -0.5"),
    ({"dampening": float("inf")}, "dampening value: inf"),
    ({"weight_decay": -1e-4}, "weight_decay value: -0.0001"),
    ({"eps": -1e-8}, "eps value: -1e-08"),
    ({"trust_coefficient": -0.001}, "trust_coefficient value: -0.001"),
    ({"trust_weight_decay": "decay"}, "trust_weight_decay value: 'decay'"),
    ({"clip_norm": -1.0}, "clip_norm value: -1.0"),
    ({"clip_value": True}, "clip_value value: True"),
    ({"clip_value": 0}, "clip_value value: 0"),
    ({"momentum": torch.tensor(-0.9)}, r"momentum value: tensor\(-0.9"),
    ({"momentum": torch.tensor([0.9, 0.9])}, "Tensor momentum must be 1-element"),
    ({"variant": "lamb"}, "variant value: 'lamb'"),
    ({"trust_norm": "max"}, "trust_norm value: 'max'"),
    ({"momentum_scaling": "nesterov"}, "momentum_scaling value: 'nesterov'"),
    ({"zero_norm": "two"}, "zero_norm value: 'two'"),
    ({"adapt": "weights"}, "adapt value: 'weights'"),
    ({"trust_clip": 1}, "trust_clip value: 1"),
    ({"foreach": "yes"}, "foreach value: 'yes'"),
    ({"nesterov": True, "momentum": 0.0}, "nesterov=True with momentum=0.0"),
    ({"nesterov": True, "dampening": 0.1}, "dampening=0.1"),
    ({"fused": True, "foreach": True}, "fused=True and foreach=True"),
    ({"fused": True, "differentiable": True}, "fused=True does not support differentiable"),
    ({"foreach": True, "differentiable": True}, "foreach=True does not support differentiable"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m for _, m in BAD])
@pytest.mark.parametrize("place", ["constructor", "group"])
def test_invalid_arguments_raise(options: dict[str, Any], message: str, place: str) -> None:
    """The ValueError contains argument and value, in the constructor and in a group."""
    param = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=message):
        LARS([param], **options) if place == "constructor" else LARS(
            [{"params": [param], **options}]
        )


@pytest.fixture(scope="module")
def inputs_of_all() -> Any:
    """Return the inputs of torch's optimizer tests. Their import would freeze torch.backends."""
    pytest.importorskip("expecttest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        # A private module, which may move.
        private = pytest.importorskip("torch.testing._internal.common_optimizers")
    return private.optim_db


@pytest.fixture(scope="module")
def sgd_inputs(inputs_of_all: Any) -> Any:
    """Return the inputs of torch's tests of SGD."""
    return next(info for info in inputs_of_all if info.optim_cls is torch.optim.SGD)


def test_torch_s_own_error_inputs(sgd_inputs: Any) -> None:
    """LARS raises the errors that torch's generic tests expect of every optimizer."""
    seen = 0
    for error in sgd_inputs.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = error.optimizer_error_input
        params = given.params or [torch.nn.Parameter(torch.ones(1))]
        context = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        with context(error.error_type, match=error.error_regex):
            LARS(params, **given.kwargs)
        seen += 1
    assert seen >= 5


@all_paths
def test_torch_s_own_inputs_for_sgd(path: dict[str, Any], sgd_inputs: Any) -> None:
    """With adapt=False and momentum_scaling "trust", LARS equals SGD on all inputs of SGD."""
    for given in sgd_inputs.optim_inputs_func(device="cpu"):
        ends = []
        for is_lars in (False, True):
            params, loss_of = problem(torch.float64)
            kwargs = {"momentum": 0.0, **given.kwargs}
            if is_lars:
                kwargs |= {"momentum_scaling": "trust", "adapt": False, **path}
            optimizer = (LARS if is_lars else torch.optim.SGD)(params, **{"lr": 1e-3, **kwargs})
            for _ in range(4):
                optimizer.zero_grad()
                loss_of().backward()
                optimizer.step()
            ends.append(params)
        torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [{"adapt": False}, {"trust_coefficient": 1e12, "trust_clip": True}, {}],
    ids=["not adapted", "a ratio of 1", "adapted"],
)
def test_torch_s_own_inputs_for_the_wrapper(options: dict[str, Any], inputs_of_all: Any) -> None:
    """At a ratio of 1 it equals the optimizer alone, and at any ratio the weights are finite."""
    seen = 0
    for info in inputs_of_all:
        if info.optim_cls in (torch.optim.LBFGS, torch.optim.SparseAdam):
            continue  # LBFGS cannot be wrapped, and SparseAdam needs sparse gradients
        for given in info.optim_inputs_func(device="cpu"):
            ends = []
            for wrap in (False, True):
                torch.manual_seed(0)
                params = [torch.nn.Parameter(torch.randn(4, n).double()) for n in (3, 2)]
                params[0].grad, params[1].grad = (torch.randn_like(p) for p in params)
                if given.kwargs.get("differentiable"):
                    params = [p.requires_grad_(False) for p in params]
                optimizer = info.optim_cls(params, **given.kwargs)
                if wrap:
                    optimizer = LARSWrapper(optimizer, **options)
                for _ in range(4):
                    optimizer.step()
                ends.append([p.detach() for p in params])
            if options:
                torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9, msg=f"{info} {given}")
            assert all(p.isfinite().all() for p in ends[1])
            seen += 1
    # torch 2.6 ships 75 inputs, newer versions more.
    assert seen >= 75


@all_paths
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_telemetry(path: dict[str, Any], clip_norm: float | None) -> None:
    """Statistics have the parameters' names and the norms of the step; off, there are none."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model(torch.randn(4, 3)).square().sum().backward()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer = LARS(parameter_groups(model, 0.1), lr=0.5, clip_norm=clip_norm, **path)
    optimizer.step()
    assert optimizer.layer_statistics() == {} and (optimizer.grad_norm is None) is (not clip_norm)
    for name, param in model.named_parameters():
        param.data.copy_(weights[name])
    optimizer.telemetry = True
    optimizer.step()
    found = optimizer.layer_statistics()
    assert found.keys() == weights.keys()
    total = torch.cat([g.flatten() for g in grads.values()]).norm().item()
    assert optimizer.grad_norm is not None
    assert optimizer.grad_norm.item() == pytest.approx(total, rel=1e-5)
    factor = min(1.0, clip_norm / total) if clip_norm else 1.0
    for name, row in found.items():
        weight, gradient = weights[name].norm().item(), grads[name].norm().item() * factor
        ratio = 0.001 * weight / (gradient + 0.1 * weight) if name == "0.weight" else 1.0
        wanted = (
            ("weight_norm", weight),
            ("gradient_norm", gradient),
            ("trust_ratio", ratio),
            ("effective_rate", 0.5 * ratio),
        )
        for key, value in wanted:
            assert row[key].dim() == 0
            assert row[key].item() == pytest.approx(value, rel=1e-5), (name, key)


def test_the_default_path() -> None:
    """It is fused on the CPU, foreach with capturable, and single with differentiable."""
    from lars.bucket import choose_path

    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.ones(1)
    cases = [({}, "fused"), ({"capturable": True}, "foreach"), ({"differentiable": True}, "single")]
    cases += [({"fused": False}, "single"), ({"foreach": False}, "single")]
    for options, path in cases:
        assert choose_path(LARS([param], **options).param_groups[0]) == path
