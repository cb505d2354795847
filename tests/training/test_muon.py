"""Muon for hidden weights and AdamW for the others, in one optimizer."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import engine.training.muon
from engine.config.schema import ClipConfig
from engine.training.build import build_model, build_optimizer, state_bytes
from engine.training.muon import MuonAdamW, as_matrix, hidden_weights, muon_groups
from engine.training.plan import build_scheduler, make_plan
from lars import parameter_groups
from tests.helpers import files_below
from tests.helpers.runs import config
from tests.helpers.training import trained

ADJUST = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


class Network(nn.Module):
    """Three convolutions and two linear layers of random sizes."""

    def __init__(self, seed):
        super().__init__()
        sizes = torch.randint(1, 40, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, sizes[0], 3)
        self.wide = nn.Conv2d(sizes[0], sizes[1], (3, 2), bias=False)
        self.point = nn.Conv2d(sizes[1], sizes[2], 1)
        self.norm = nn.BatchNorm2d(sizes[2])
        self.linear = nn.Linear(sizes[2], sizes[3])
        self.last = nn.Linear(sizes[3], 10)

    def hidden(self):
        return [self.wide.weight, self.point.weight, self.linear.weight]


def optimizer_of(model, first_last=False, **options):
    groups = parameter_groups(model, 0.1)
    split = muon_groups(groups, hidden_weights(model, first_last), 0.05)
    return MuonAdamW(split, 0.02, **options)


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def take_steps(model, optimizer, numbers):
    for number in numbers:
        for name, gradient in gradients(model, number).items():
            weight = model.get_parameter(name)
            weight.grad = torch.empty_like(weight).copy_(gradient)
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def newton_schulz(matrix):
    """Return five iterations of X <- aX + (bA + cA^2)X with A = XX', in float64."""
    wide = matrix if len(matrix) <= len(matrix.T) else matrix.T
    x = wide / wide.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide is matrix else x.T


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ADJUST)
def test_hidden_weights_follow_the_published_update(seed, nesterov, adjust):
    """Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), with decoupled decay."""
    model = Network(seed).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(model, momentum=0.8, nesterov=nesterov, adjust_lr=adjust)
    start, names = weights_of(model), ("wide.weight", "point.weight", "linear.weight")
    expected = {name: start[name].double() for name in names}
    momenta = {name: torch.zeros_like(expected[name]) for name in names}
    # The movement of each weight by all updates, without decay: the scale of allowed errors.
    for step in range(25):
        drawn = gradients(model, step)
        for name in names:
            g, w = drawn[name].double(), expected[name]
            momenta[name] = 0.8 * momenta[name] + 0.2 * g
            update = 0.2 * g + 0.8 * momenta[name] if nesterov else momenta[name]
            matrix = newton_schulz(update.flatten(1))
            rate = 0.02 * ADJUST[adjust](*matrix.shape)
            expected[name] = (1 - 0.02 * 0.1) * w - rate * matrix.view_as(w)
    take_steps(model, optimizer, range(25))
    for name in names:
        moved = (expected[name] - start[name]).norm()
        error = (model.get_parameter(name) - expected[name]).norm()
        # bfloat16 keeps 8 bits.
        assert error < 0.02 * moved, (name, float(error / moved))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_step_is_that_of_torchs_optimizers_on_matrices(layout):
    model = Network(7).to(memory_format=layout)
    hand, hidden, others = copy.deepcopy(model), [], []
    for name, weight in hand.named_parameters():
        if name in ("wide.weight", "point.weight", "linear.weight"):
            # The columns in the order of memory.
            hwc = weight.ndim == 4 and layout == torch.channels_last
            matrix = (weight.permute(0, 2, 3, 1) if hwc else weight).flatten(1)
            hidden.append((name, nn.Parameter(matrix.detach().clone()), hwc))
        else:
            others.append((name, weight))
    muon = torch.optim.Muon([m for _, m, _ in hidden], lr=0.02, weight_decay=0.1, momentum=0.95)
    decays = {True: [], False: []}
    for name, weight in others:
        decays[name in ("first.weight", "last.weight")].append(weight)
    adamw = torch.optim.AdamW(
        [{"params": decays[True], "weight_decay": 0.1}, {"params": decays[False]}],
        lr=0.02, weight_decay=0.0, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    for step in range(10):
        drawn = gradients(model, step)
        for name, matrix, hwc in hidden:
            grad = drawn[name].permute(0, 2, 3, 1) if hwc else drawn[name]
            matrix.grad = grad.flatten(1).contiguous()
        for name, weight in others:
            weight.grad = torch.empty_like(weight).copy_(drawn[name])
        muon.step()
        adamw.step()
    take_steps(model, optimizer_of(model, fused=True), range(10))
    for name, matrix, hwc in hidden:
        weight = model.get_parameter(name).detach()
        found = (weight.permute(0, 2, 3, 1) if hwc else weight).flatten(1)
        assert torch.equal(found, matrix.detach()), name
    for name, weight in others:
        assert torch.equal(model.get_parameter(name), weight), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_matrix_shares_its_weights_memory(layout):
    model = Network(1).to(memory_format=layout)
    for weight in model.hidden():
        matrix = as_matrix(weight.detach(), weight)
        assert matrix.shape == (len(weight), weight[0].numel())
        assert matrix.data_ptr() == weight.data_ptr() and matrix.is_contiguous()
        matrix[-1, -1] = 7.0
        assert weight.flatten()[-1] == 7.0
        # A gradient in the layout of the weight is not copied; another one is.
        same = torch.empty_like(weight)
        assert as_matrix(same, weight, may_copy=True).data_ptr() == same.data_ptr()
    other = torch.randn(model.wide.weight.shape)
    found = as_matrix(other, model.wide.weight, may_copy=True)
    last = layout == torch.channels_last
    assert torch.equal(found, (other.permute(0, 2, 3, 1) if last else other).flatten(1))
    strided = torch.randn(4, 6, 3, 3)[:, ::2]
    with pytest.raises(RuntimeError):
        as_matrix(strided, strided)


def test_groups_hold_each_parameter_once_and_the_first_and_last_layer_by_choice():
    model = build_model(config("model=resnet18").model, 10)
    named = {weight: name for name, weight in model.named_parameters()}
    hidden = {named[weight] for weight in hidden_weights(model)}
    assert "conv1.weight" not in hidden and "fc.weight" not in hidden and len(hidden) == 19
    everything = {named[weight] for weight in hidden_weights(model, first_last=True)}
    assert everything - hidden == {"conv1.weight", "fc.weight"}
    optimizer = optimizer_of(model)
    listed = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(listed) == sorted(named.values())
    muon, ends, biases = optimizer.param_groups
    assert set(muon["param_names"]) == hidden and muon["muon"] and muon["lr_scale"] == 1.0
    assert ends["param_names"] == ["conv1.weight", "fc.weight"] and ends["weight_decay"] == 0.1
    assert biases["weight_decay"] == 0.0 and not ends["muon"] and not biases["muon"]


def test_the_schedule_scales_both_rates():
    made = config(
        "optimizer=muon", "model=resnet8", "optimizer.inner_lr=0.001", "optimizer.base_lr=0.05",
        "optimizer.bias_lr_scale=0.5", "batch=512", "scheduler.warmup_epochs=1", "epochs=4",
    )  # fmt: skip
    plan = make_plan(made, 2048)
    model = build_model(made.model, 10)
    optimizer = build_optimizer(made.optimizer, made.clip, model, plan.optimizer_lr)
    scheduler = build_scheduler(made.scheduler, plan, optimizer)
    seen = []
    for _ in range(plan.total_steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    # A batch of 4 times base_batch has twice the rate.
    assert seen[0] == pytest.approx([0.05, 0.001, 0.0005])
    assert seen[4] == pytest.approx([0.1, 0.002, 0.001]) and plan.peak_lr == 0.1
    assert all(row == pytest.approx([row[0], row[0] / 50, row[0] / 100]) for row in seen)


@pytest.mark.parametrize("change", ["state_dict", "pickle", "layout", "dtype and back"])
def test_steps_after_a_change_are_those_without_it(change):
    expected = Network(3).to(memory_format=torch.channels_last)
    model = copy.deepcopy(expected)
    take_steps(expected, optimizer_of(expected), range(6))
    optimizer = optimizer_of(model)
    take_steps(model, optimizer, range(3))
    if change == "state_dict":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        model, optimizer = copy.deepcopy(model), None
        optimizer = optimizer_of(model)
        optimizer.load_state_dict(torch.load(file, weights_only=True))
    elif change == "pickle":
        model, optimizer = copy.deepcopy((model, optimizer))
    elif change == "layout":
        model.to(memory_format=torch.contiguous_format)
    else:
        model.double().float()
    take_steps(model, optimizer, range(3, 6))
    for name, weight in model.named_parameters():
        other = expected.get_parameter(name)
        if change == "layout":
            assert (weight - other).abs().max() < 2e-3 * other.abs().max(), name
        else:
            assert torch.equal(weight, other), name


def test_the_state_has_the_shape_and_layout_of_its_parameter():
    model = Network(2).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(model)
    take_steps(model, optimizer, range(2))
    hidden = hidden_weights(model)
    for weight in model.parameters():
        state = optimizer.state[weight]
        names = {"momentum_buffer"} if weight in hidden else {"step", "exp_avg", "exp_avg_sq"}
        assert set(state) == names
        for name in names - {"step"}:
            assert state[name].shape == weight.shape and state[name].stride() == weight.stride()


def test_a_parameter_without_a_gradient_keeps_its_value():
    model = Network(2)
    before, optimizer = weights_of(model), optimizer_of(model)
    optimizer.step()
    model.point.weight.grad = torch.ones_like(model.point.weight)
    optimizer.step()
    changed = {name for name, w in model.named_parameters() if not torch.equal(w, before[name])}
    assert changed == {"point.weight"}


@pytest.mark.parametrize("first_last", ["false", "true"])
def test_the_memory_estimate_is_the_size_of_the_state(first_last):
    made = config("optimizer=muon", "model=resnet8", f"optimizer.muon_first_last={first_last}")
    model = build_model(made.model, 10)
    optimizer = build_optimizer(made.optimizer, made.clip, model, 0.1)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim
    )
    assert state_bytes(made.optimizer, model) == kept


def test_gradients_are_clipped_before_the_update(monkeypatch):
    largest, step = [], MuonAdamW.step

    def look(self):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        largest.append(max(float(grad.abs().max()) for grad in grads))
        step(self)

    monkeypatch.setattr(MuonAdamW, "step", look)
    for clip in (ClipConfig(None, None), ClipConfig(None, 1e-3)):
        torch.manual_seed(0)
        trained(build_model(config("model=resnet8").model, 10), "optimizer=muon", clip=clip)
    assert min(largest[:3]) > 1e-3 and max(largest[3:]) == pytest.approx(1e-3)


def test_the_plan_shows_both_rates(small, workplace, command):
    plan = [*small, "optimizer=muon", "optimizer.bias_lr_scale=0.5", "plan=true"]
    outcome = command("train.py", *plan)
    assert outcome.status == 0 and not files_below(workplace)
    assert "\nAdamW     for what Muon does not train: 0.015 times these rates\n" in outcome.out
    assert "\nbiases    and normalization parameters: 0.0075 times these rates\n" in outcome.out
    assert "\nmemory    about " in outcome.out


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_torch_without_muon_is_a_one_line_error(small, workplace, command, monkeypatch, flags):
    monkeypatch.setattr(engine.training.muon, "HAS_MUON", False)
    outcome = command("train.py", *flags, *small, "optimizer=muon")
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and not files_below(workplace)
    allowed = f"needs torch.optim.Muon of torch 2.9 or newer, and this is {torch.__version__}"
    assert f"error: optimizer=muon: {allowed}" in outcome.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.inner_lr=0"], "optimizer.inner_lr=0: must be a number above 0"),
        (["optimizer.adjust_lr=none"], "optimizer.adjust_lr=none: must be one of original, match"),
        (["optimizer.base_lr=1e-39"], "optimizer.inner_lr=1: must be at most 3.40282e+38 times"),
        (["optimizer.base_lr=1e38"], "optimizer.base_lr=1e+38: gives a peak rate of 5e+37, above"),
    ],
)
def test_mistakes_are_one_line(small, workplace, command, overrides, message):
    given = [*small, "optimizer=muon", "optimizer.inner_lr=1", *overrides]
    outcome = command("train.py", *given)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"error: {message}") and not files_below(workplace)


def test_the_largest_rates_diverge_without_an_error(small, workplace, command):
    rates = ["optimizer.base_lr=5e35", "optimizer.adjust_lr=match_rms_adamw"]
    huge = [*rates, "optimizer.inner_lr=3e38", "optimizer.weight_decay=3e38", "scheduler=constant"]
    outcome = command("train.py", *small, "optimizer=muon", *huge)
    assert outcome.status == 0 and "diverged" in outcome.out, outcome
