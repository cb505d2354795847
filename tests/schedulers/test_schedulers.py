"""Each schedule against literal lists of rates, and its errors."""

import math

import numpy as np
import pytest
import torch

import schedulers
from schedulers import decay
from tests.helpers.training import rates_seen


def rates(scheduler_type, steps, peak=1.0, **options):
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = scheduler_type(optimizer, total_steps=steps, **options)
    return rates_seen(optimizer, scheduler, steps)


def test_polynomial_with_warmup_is_the_expected_list():
    seen = rates(
        schedulers.WarmupPolynomialLR, 7, peak=0.8, warmup_steps=2, start_lr=0.4, min_lr=0.0
    )
    assert seen == pytest.approx([0.4, 0.6, 0.8, 0.45, 0.2, 0.05, 0.0])


def test_polynomial_ends_at_its_minimum():
    seen = rates(schedulers.WarmupPolynomialLR, 5, power=1.0, min_lr=0.2)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_the_expected_list():
    seen = rates(schedulers.WarmupCosineLR, 5, min_lr=0.2)
    half = math.sqrt(0.5)
    expected = [1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2]
    assert seen == pytest.approx(expected)


def test_one_cycle_is_the_expected_triangle():
    seen = rates(
        schedulers.WarmupOneCycleLR, 9, peak=1.0, warmup_steps=3, start_lr=0.1, min_lr=0.05
    )
    assert seen == pytest.approx([0.1, 0.4, 0.7, 1.0, 0.81, 0.62, 0.43, 0.24, 0.05])
    seen = rates(schedulers.WarmupOneCycleLR, 5, peak=2.0, warmup_steps=2, start_lr=0.0)
    assert seen == [0.0, 1.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (0, [1.0, 0.5, 0.0]),
        (1, [0.5, 1.0, 0.0]),
        (2, [0.5, 0.75, 1.0]),  # the peak is the last step, so there is no decay
        (3, [0.5, 2 / 3, 5 / 6]),
    ],
)
def test_one_cycle_with_its_peak_at_either_end(warmup, expected):
    seen = rates(schedulers.WarmupOneCycleLR, 3, warmup_steps=warmup, start_lr=0.5)
    assert seen == pytest.approx(expected)


def test_multistep_counts_from_the_start_of_the_run():
    seen = rates(schedulers.WarmupMultiStepLR, 8, step_size=3, warmup_steps=2, start_lr=0.5)
    assert seen == pytest.approx([0.5, 0.75, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_multistep_drops_at_a_boundary_that_is_a_rounded_fraction():
    # 0.1 * 3 is a little more than 0.3: step 3 of 10 is still a boundary.
    assert decay.multistep(3, 0.1 * 3 * 10, 0.1) == pytest.approx(0.1)


def test_constant_is_the_expected_list():
    assert rates(schedulers.WarmupConstantLR, 4, warmup_steps=2, start_lr=0.0) == pytest.approx(
        [0.0, 0.5, 1.0, 1.0]
    )


TVLARS = {"steps_per_epoch": 2, "delay_epochs": 2, "steepness": math.log(4), "gamma_min": 0.01}


def test_tvlars_is_the_expected_list():
    """The exponential is 4 ** (t - 2): 1/16, 1/8, 1/4, 1/2, 1, 2, 4 and 8 at steps 0 to 7."""
    sigmoid = [16 / 17, 8 / 9, 4 / 5, 2 / 3, 1 / 2, 1 / 3, 1 / 5, 1 / 9]
    expected = [0.5 * (value + 0.01) for value in sigmoid]
    assert rates(schedulers.TVLARSLR, 8, peak=0.5, **TVLARS) == pytest.approx(expected, rel=1e-12)
    # 1 / (0.5 + 1/16), 1 / (0.5 + 1/8), 1 / (0.5 + 1/4)
    seen = rates(schedulers.TVLARSLR, 3, alpha=0.5, **TVLARS | {"gamma_min": 0})
    assert seen == pytest.approx([16 / 9, 8 / 5, 4 / 3], rel=1e-12)


def test_tvlars_at_its_limits():
    """Long before the delay the factor is 1 / alpha + gamma_min, and long after it gamma_min."""
    curve = schedulers.TVLARSLR(None, 10**9, 1, 2.0, 1.0, delay_epochs=1e6, gamma_min=0.25)
    assert curve.lr_at(0, 1.0) == 0.75
    assert curve.lr_at(10**6, 3.0) == pytest.approx(3 * (1 / 3 + 0.25), rel=1e-12)
    # exp of 8e8 exceeds the largest float.
    assert curve.lr_at(10**9 - 1, 2.0) == 0.5
    assert schedulers.tvlars(1e300, 1.0, 1e300, 0.0, 0.0) < 1e-300
    assert schedulers.tvlars(0.0, 1.0, 1e300, 1e300, 0.0) == 1.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", None, True], ids=str)
@pytest.mark.parametrize("option", ["steps_per_epoch", "alpha", *TVLARS])
def test_the_arguments_of_tvlars_are_checked(option, value):
    with pytest.raises(ValueError, match=f"{option}="):
        schedulers.TVLARSLR(None, 5, **TVLARS | {option: value})
    for above_zero in ("steps_per_epoch", "alpha", "steepness"):
        with pytest.raises(ValueError, match=f"{above_zero}=0: .* above 0"):
            schedulers.TVLARSLR(None, 5, **TVLARS | {above_zero: 0})


def test_warmup_over_the_whole_run_never_decays():
    seen = rates(schedulers.WarmupPolynomialLR, 4, warmup_steps=4, start_lr=0.0)
    assert seen == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_one_step_runs_at_the_peak():
    assert rates(schedulers.WarmupPolynomialLR, 1) == [1.0]


def test_each_group_has_its_own_peak():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 3.0)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = schedulers.WarmupPolynomialLR(optimizer, total_steps=3, power=1.0)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 1.5])


def test_a_groups_lr_scale_multiplies_every_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    groups[1]["lr_scale"] = 0.25
    optimizer = torch.optim.SGD(groups, lr=4.0)
    options = {"total_steps": 5, "warmup_steps": 2, "start_lr": 2.0, "min_lr": 1.0, "power": 1.0}
    scheduler = schedulers.WarmupPolynomialLR(optimizer, **options)
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [[2.0, 0.5], [3.0, 0.75], [4.0, 1.0], [2.5, 0.625], [1.0, 0.25]]


def test_groups_that_share_one_tensor_rate_get_separate_tensors():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    groups[1]["lr_scale"] = 0.25
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(4.0))
    scheduler = schedulers.WarmupPolynomialLR(optimizer, total_steps=3, power=1.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    seen = []
    for _ in range(3):
        seen.append([float(rate) for rate in rates])
        optimizer.step()
        scheduler.step()
    assert seen == [[4.0, 1.0], [2.0, 0.5], [0.0, 0.0]]


WARMUP = {"warmup_steps": 9, "start_lr": 0.03, "min_lr": 0.002}


@pytest.mark.parametrize(
    ("scheduler_type", "options"),
    [
        (schedulers.WarmupPolynomialLR, WARMUP),
        (schedulers.WarmupCosineLR, WARMUP),
        (schedulers.WarmupOneCycleLR, WARMUP),
        (schedulers.TVLARSLR, {"steps_per_epoch": 7, "delay_epochs": 3, "steepness": 1.5}),
    ],
)
@pytest.mark.parametrize("stop", [5, 9, 23])
def test_a_schedule_resumed_midway_has_bit_identical_rates(scheduler_type, options, stop):
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
        return optimizer, scheduler_type(optimizer, total_steps=50, **options)

    optimizer, scheduler = make()
    expected = []
    for step in range(50):
        if step == stop:
            saved = optimizer.state_dict(), scheduler.state_dict()
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    optimizer, scheduler = make()
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    resumed = []
    for _ in range(stop, 50):
        resumed.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert resumed == expected[stop:]


@pytest.mark.parametrize(
    "warmup", [{}, {"warmup_steps": 7, "start_lr": 0.03}, {"warmup_steps": 23}]
)
@pytest.mark.parametrize(
    ("scheduler_type", "options"),
    [
        (schedulers.WarmupConstantLR, {}),
        (schedulers.WarmupCosineLR, {"min_lr": 0.002}),
        (schedulers.WarmupPolynomialLR, {"min_lr": 0.002, "power": 1.5}),
        (schedulers.WarmupOneCycleLR, {"min_lr": 0.002}),
        (schedulers.WarmupMultiStepLR, {"step_size": 4.5, "gamma": 0.3}),
    ],
)
def test_a_curve_without_an_optimizer_has_the_same_rates(scheduler_type, options, warmup):
    curve = scheduler_type(None, total_steps=23, **options, **warmup)
    seen = rates(scheduler_type, 23, peak=0.7, **options, **warmup)
    assert [curve.lr_at(step, 0.7) for step in range(23)] == seen


@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps=0"),
        ({"total_steps": 5, "warmup_steps": 6}, "warmup_steps=6"),
        ({"total_steps": 5, "warmup_steps": -1}, "warmup_steps=-1"),
        ({"total_steps": 5, "start_lr": -0.1}, "start_lr=-0.1"),
        ({"total_steps": 5, "min_lr": -0.1}, "min_lr=-0.1"),
        ({"total_steps": 5, "power": 0.0}, "power=0.0"),
    ],
)
def test_an_error_names_the_wrong_argument(options, message, with_optimizer):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=message):
        schedulers.WarmupPolynomialLR(optimizer if with_optimizer else None, **options)


NOT_NUMBERS = [math.nan, math.inf, -math.inf, "1", None, True, [1.0], torch.tensor(math.nan)]
WRONG = [
    (option, value)
    for option in ("total_steps", "warmup_steps", "min_lr", "last_epoch")
    for value in NOT_NUMBERS
]
WRONG += [("start_lr", value) for value in NOT_NUMBERS if value is not None]
WRONG += [("total_steps", 2.5), ("warmup_steps", 0.5), ("last_epoch", -2)]


@pytest.mark.parametrize(("option", "value"), WRONG, ids=str)
@pytest.mark.parametrize(
    ("scheduler_type", "options"),
    [
        (schedulers.WarmupConstantLR, {}),
        (schedulers.WarmupCosineLR, {}),
        (schedulers.WarmupPolynomialLR, {}),
        (schedulers.WarmupOneCycleLR, {}),
        (schedulers.WarmupMultiStepLR, {"step_size": 2}),
    ],
)
def test_an_error_names_the_argument_that_is_not_a_finite_number(
    scheduler_type, options, option, value
):
    if option == "min_lr" and scheduler_type is schedulers.WarmupMultiStepLR:
        pytest.skip("has no minimum")
    with pytest.raises(ValueError, match=f"{option}="):
        scheduler_type(None, **{"total_steps": 5, **options, option: value})


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 0.0, -1.0], ids=str)
def test_the_arguments_of_a_single_decay_are_checked(value):
    with pytest.raises(ValueError, match="power="):
        schedulers.WarmupPolynomialLR(None, 5, power=value)
    for option in ("step_size", "gamma"):
        with pytest.raises(ValueError, match=f"{option}="):
            schedulers.WarmupMultiStepLR(None, **{"total_steps": 5, "step_size": 2, option: value})
    for rule in schedulers.SCALING_RULES.values():
        for batches in ((value, 128), (128, value)):
            with pytest.raises(ValueError, match="batch="):
                rule(*batches)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_groups_peak_and_scale_are_checked(value):
    for key in ("lr", "lr_scale"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        optimizer.param_groups[0][key] = value
        with pytest.raises(ValueError, match=f"{key}="):
            schedulers.WarmupConstantLR(optimizer, 5)
    with pytest.raises(ValueError, match="peak="):
        schedulers.WarmupConstantLR(None, 5).lr_at(0, value)


@pytest.mark.parametrize(
    "make",
    [np.float64, np.float32, np.array, torch.tensor],
    ids=["float64", "float32", "array", "tensor"],
)
def test_numpy_and_torch_numbers_give_the_same_curve(make):
    whole = np.int64 if make in (np.float64, np.float32) else make
    options = {"warmup_steps": whole(2), "start_lr": make(0.5), "min_lr": make(0.25)}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.param_groups[0]["lr_scale"] = make(0.5)
    scheduler = schedulers.WarmupPolynomialLR(optimizer, whole(6), power=make(2.0), **options)
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    plain = {"warmup_steps": 2, "start_lr": 0.5, "min_lr": 0.25}
    assert seen == [0.5 * r for r in rates(schedulers.WarmupPolynomialLR, 6, power=2.0, **plain)]
    assert all(type(rate) is float for rate in seen)
    steps = {"total_steps": whole(6), "step_size": make(2.0), "gamma": make(0.5)}
    curve = schedulers.WarmupMultiStepLR(None, **steps)
    assert [curve.lr_at(whole(s), make(1.0)) for s in (0, 2, 5)] == [1.0, 0.5, 0.25]
    assert schedulers.linear_scale(whole(256), whole(128)) == 2.0


@pytest.mark.parametrize("lr", [2.0, torch.tensor(2.0)], ids=str)
@pytest.mark.parametrize("own", [{}, {"lr": 4.0}, {"lr": 4.0, "lr_scale": 0.5}], ids=str)
def test_a_group_added_later_follows_the_curve(lr, own):
    """torch's StepLR includes such a group; its LambdaLR raises an error from zip."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    optimizer = torch.optim.SGD(params[:1], lr=lr)
    scheduler = schedulers.WarmupPolynomialLR(optimizer, 6, warmup_steps=1, min_lr=0.25)
    curve = [schedulers.WarmupPolynomialLR(None, 6, 1, min_lr=0.25).lr_at]
    for step in range(5):
        if step == 2:
            optimizer.add_param_group({"params": params[1:2], **own})
            optimizer.add_param_group({"params": params[2:]})
        optimizer.step()
        scheduler.step()
        found = [float(group["lr"]) for group in optimizer.param_groups]
        peaks = [2.0] if step < 2 else [2.0, own.get("lr", 2.0), 2.0]
        expected = [curve[0](step + 1, peak) for peak in peaks]
        if step >= 2:
            expected[1] *= own.get("lr_scale", 1.0)
        assert found == pytest.approx(expected)
    assert len(scheduler.get_last_lr()) == 3
    resumed = schedulers.WarmupPolynomialLR(optimizer, 6, warmup_steps=1, min_lr=0.25)
    resumed.load_state_dict(scheduler.state_dict())
    assert len(resumed.get_lr()) == 3


def test_the_error_for_a_removed_group_says_what_to_do():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = schedulers.WarmupConstantLR(optimizer, 5)
    del optimizer.param_groups[1]
    optimizer.step()
    with pytest.raises(ValueError, match=r"2 parameter groups .* has 1: add the missing"):
        scheduler.step()


@pytest.mark.parametrize(("rule", "scale"), [("linear", 32.0), ("sqrt", math.sqrt(32.0))])
def test_scaling_rules(rule, scale):
    assert schedulers.SCALING_RULES[rule](4096, 128) == scale
