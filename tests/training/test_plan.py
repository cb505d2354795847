"""Steps, passes and learning rates of a plan, its text, and its errors."""

import dataclasses
import math
import re

import pytest
import torch

from engine.errors import UserError
from engine.training.plan import build_scheduler, make_plan
from tests.helpers.runs import config
from tests.helpers.training import rates_seen, setup_of

# Learning rates that are easy to compute by hand and do not depend on the defaults.
LINEAR = ("optimizer.base_lr=0.1", "optimizer.lr_scaling=linear")


def plan(*overrides, examples=50_000):
    """Return the plan of a run, with the rates of LINEAR unless an experiment sets them."""
    rates = () if any(o.startswith("+experiment=") for o in overrides) else LINEAR
    return make_plan(config(*rates, *overrides), examples)


def test_the_default_rates_scale_with_the_square_root_of_the_batch():
    for optimizer, base in (("sgd", 0.1), ("lars", 4.0)):
        made = make_plan(config(f"optimizer={optimizer}", "batch=2048"), 50_000)
        assert (made.base_lr, made.peak_lr) == (base, pytest.approx(4 * base))
        assert made.bias_lr_scale == (0.1 if optimizer == "lars" else 1.0)


def test_the_short_last_batch_is_a_step():
    made = plan("epochs=3")
    assert (made.steps_per_epoch, made.total_steps) == (391, 1173)
    assert plan("batch=50000", "epochs=3").total_steps == 3


def test_linear_rule_warms_up_from_base_to_scaled_rate():
    made = plan("batch=4096", "epochs=15")
    assert made.rates() == {"base_lr": 0.1, "peak_lr": pytest.approx(3.2), "final_lr": 0.0}
    assert made.warmup_steps == 20  # a tenth of 15 epochs of 13 steps: 19.5


def test_sqrt_rule_and_base_batch():
    made = plan("batch=1024", "optimizer.lr_scaling=sqrt", "optimizer.base_batch=256")
    assert made.peak_lr == pytest.approx(0.2)


def test_without_a_rule_the_multiplier_sets_the_peak():
    made = plan("batch=4096", "optimizer.lr_scaling=none", "scheduler.warmup_multiplier=64")
    assert (made.base_lr, made.peak_lr) == (0.1, pytest.approx(6.4))
    made = plan("batch=4096", "optimizer.lr_scaling=none")
    assert (made.base_lr, made.peak_lr) == (0.1, 0.1)


def test_below_the_base_batch_the_run_starts_at_its_peak():
    made = plan("batch=32")
    assert (made.base_lr, made.peak_lr) == (0.025, 0.025)


def test_without_warmup_the_first_rate_is_the_peak():
    made = plan("batch=1024", "scheduler.warmup_epochs=0")
    assert (made.warmup_steps, made.base_lr, made.peak_lr) == (0, 0.8, 0.8)


def test_warmup_steps_override_warmup_epochs():
    made = plan("batch=4096", "epochs=15", "scheduler.warmup_steps=7")
    assert made.warmup_steps == 7
    assert plan("batch=4096", "scheduler.warmup_steps=0").base_lr == pytest.approx(3.2)
    recipe = plan("+experiment=attempt1", "batch=4096", "scheduler.warmup_steps=7")
    assert recipe.warmup_steps == 7


@pytest.mark.parametrize(
    ("overrides", "scaling"),
    [
        (["optimizer.lr_scaling=sqrt"], "peak 0.565685 = optimizer.base_lr 0.1 x sqrt(4096 / 128)"),
        (["optimizer.lr_scaling=linear"], "peak 3.2 = optimizer.base_lr 0.1 x 4096 / 128"),
        (["optimizer.lr_scaling=none"], "peak 0.1 = optimizer.base_lr 0.1 x 1"),
        (
            ["optimizer.lr_scaling=none", "scheduler.warmup_multiplier=5"],
            "peak 0.5 = optimizer.base_lr 0.1 x 5",
        ),
    ],
)
def test_the_plan_shows_how_the_peak_follows_from_the_batch(overrides, scaling):
    lines = plan("batch=4096", *overrides).describe().splitlines()
    assert f"scaling   {scaling}, {overrides[0]}" in lines


def test_the_plan_shows_a_separate_rate_of_biases():
    assert "biases" not in plan().describe()
    line = plan("optimizer.bias_lr_scale=0.05").describe().splitlines()[-1]
    assert line == "biases    and normalization parameters: 0.05 times these rates"


def test_final_fraction_is_a_fraction_of_the_peak():
    for scheduler in ("polynomial", "cosine", "onecycle"):
        keys = [f"scheduler={scheduler}", "scheduler.final_fraction=0.01", "batch=4096"]
        assert plan(*keys).final_lr == pytest.approx(0.032)
    assert plan("scheduler.final_fraction=1").final_lr == pytest.approx(0.1)
    assert plan("scheduler.final_fraction=0").final_lr == 0


def planned_rates(made, overrides, steps):
    """Return the optimizer's learning rate at each of the first `steps` steps of a plan."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=made.optimizer_lr)
    scheduler = build_scheduler(config(*overrides).scheduler, made, optimizer)
    return rates_seen(optimizer, scheduler, steps)


def test_one_cycle_starts_from_its_own_fraction_of_the_peak():
    # An epoch is one step of 256 images. The linear rule gives the peak 0.1 * 256 / 128.
    keys = ["scheduler=onecycle", "batch=256", "epochs=5", "scheduler.warmup_steps=2"]
    made = plan(*keys, examples=256)
    assert made.rates() == pytest.approx({"base_lr": 0.008, "peak_lr": 0.2, "final_lr": 0.0})
    expected = [0.008, 0.104, 0.2, 0.1, 0.0]
    assert planned_rates(made, keys, 5) == pytest.approx(expected)
    made = plan("scheduler=onecycle", "batch=256", "scheduler.start_fraction=null")
    assert made.base_lr == 0.1
    none = ["scheduler=onecycle", "optimizer.lr_scaling=none", "scheduler.warmup_multiplier=4"]
    assert plan(*none).rates() == pytest.approx({"base_lr": 0.016, "peak_lr": 0.4, "final_lr": 0})


def test_polynomial_with_final_fraction_is_the_expected_list():
    keys = ["batch=128", "epochs=5", "scheduler.warmup_steps=0", "scheduler.final_fraction=0.2"]
    made = plan(*keys, examples=128)
    assert planned_rates(made, keys, 5) == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02])


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ("polynomial", "decay     final + (peak - final) (1 - t)^1, t = (step - 20) / 174"),
        ("cosine", "decay     final + (peak - final) (1 + cos(pi t)) / 2, t = (step - 20) / 174"),
        ("onecycle", "decay     final + (peak - final) (1 - t), t = (step - 58) / 136"),
        ("multistep", "decay     peak x 0.1 ^ floor(step / 48.75)"),
        ("constant", "decay     none"),
    ],
)
def test_the_decay_formula_equals_the_schedule(scheduler, line):
    keys = ["batch=4096", "epochs=15", f"scheduler={scheduler}"]
    made = plan(*keys)
    assert made.describe().splitlines()[-1] == line
    step, peak, final = 100, made.peak_lr, made.final_lr
    formula = line.removeprefix("decay     ").partition(", t = ")
    t = eval(formula[2], {"step": step}) if formula[2] else None
    text = formula[0].replace(" x ", " * ").replace("^", "**").replace(") (", ") * (")
    names = {"peak": peak, "final": final, "step": step, "t": t, "none": peak}
    names |= {"floor": math.floor, "cos": math.cos}
    value = eval(text.replace("(pi t)", f"({math.pi} * t)"), names)
    assert planned_rates(made, keys, 101)[-1] == pytest.approx(value)


SIGMOID = ("scheduler=tvlars", "scheduler.steepness=0.5", "scheduler.gamma_min=0.01")


def test_tvlars_has_its_largest_rate_at_the_first_step():
    """By hand: 13 steps an epoch, and a delay of 1.5 epochs, a tenth of 15.

    The scaled rate is 0.1 * 32. The factors are those of 0, 14 12/13 and 1.5 epochs.
    """
    keys = [*LINEAR, *SIGMOID, "batch=4096", "epochs=15"]
    made = plan(*keys)
    first = 3.2 * (1 / (1 + math.exp(-0.75)) + 0.01)
    last = 3.2 * (1 / (1 + math.exp(0.5 * (194 / 13 - 1.5))) + 0.01)
    assert made.rates() == pytest.approx({"base_lr": first, "peak_lr": first, "final_lr": last})
    assert (made.warmup_steps, made.optimizer_lr) == (0, pytest.approx(3.2))
    rates = planned_rates(made, keys, 195)
    assert [rates[0], rates[-1]] == pytest.approx([first, last], rel=1e-12)
    assert max(rates) == rates[0] and rates == sorted(rates, reverse=True)
    halfway = planned_rates(made, [*keys, "scheduler.delay_epochs=2"], 195)
    assert halfway == rates  # the plan's delay is the schedule's
    given = plan(*keys, "scheduler.delay_epochs=2")
    assert planned_rates(given, keys, 27)[26] == pytest.approx(3.2 * 0.51)
    lines = made.describe().splitlines()
    assert lines[-3] == (
        f"rates     first {first:.6g}, peak {first:.6g} at step 0, final {last:.6g} at step 194"
    )
    scaled = "scaling   peak / f(0) = 3.2 = optimizer.base_lr 0.1 x 4096 / 128, "
    assert lines[-2].startswith(scaled)
    assert lines[-1] == (
        "decay     peak x f(t) / f(0), f(t) = 1 / (1 + exp(0.5 (t - 1.5))) + 0.01, t = step / 13"
    )

    def f(t):
        return 1 / (1 + math.exp(0.5 * (t - 1.5))) + 0.01

    assert [first * f(step / 13) / f(0) for step in (0, 100)] == pytest.approx(rates[::100])


def test_a_new_state_has_the_first_rate_of_tvlars():
    made = config(*SIGMOID, "optimizer=adamw", "batch=16", "epochs=4", "data=synthetic")
    setup = setup_of(made, 32)
    (weights, biases) = setup.make_state().optimizer.param_groups
    assert weights["lr"] == setup.plan.base_lr == biases["lr"]
    assert setup.plan.optimizer_lr > 1.5 * setup.plan.base_lr  # the delay is 0.4 epochs


def test_tvlars_without_a_scaling_rule_starts_from_base_lr():
    made = plan(*SIGMOID, "optimizer.lr_scaling=none", "optimizer.base_lr=2", "batch=4096")
    # The delay is 20 of 200 epochs: exp(-10).
    assert made.base_lr == pytest.approx(2 * (1 / (1 + math.exp(-10)) + 0.01), rel=1e-12)
    # exp of 0.5 * 180 is so large that only gamma_min is left.
    assert made.final_lr == pytest.approx(0.02, rel=1e-12)


@pytest.mark.parametrize(
    ("alpha", "rate", "largest"), [("1e-30", "1e9", "3.2e+40"), ("1e30", "1e38", "3.2e+39")]
)
def test_tvlars_refuses_rates_that_float32_cannot_hold(alpha, rate, largest):
    """A tiny alpha makes the first rate too large, a huge one that of the optimizer."""
    keys = ["batch=4096", f"scheduler.alpha={alpha}", f"optimizer.base_lr={rate}"]
    keys.append("scheduler.steepness=1e9")
    message = rf"^optimizer\.base_lr=.*: gives a peak rate of {re.escape(largest)}, which"
    with pytest.raises(UserError, match=message):
        plan(*LINEAR, *SIGMOID, *keys)


@pytest.mark.parametrize(
    ("scheduler", "final"),
    [
        (["scheduler=polynomial", "scheduler.min_lr=1e-5"], 1e-5),
        (["scheduler=cosine", "scheduler.min_lr=1e-5"], 1e-5),
        (["scheduler=constant"], 0.1),
        (["scheduler=multistep"], 1e-4),
        (["scheduler=multistep", "scheduler.step_size=60", "scheduler.gamma=0.5"], 0.0125),
    ],
)
def test_the_last_steps_rate(scheduler, final):
    assert plan(*scheduler).final_lr == pytest.approx(final)


def test_micro_batches_differ_by_at_most_one_example():
    made = plan("batch=1025")
    assert made.rank_passes(1025)[0] == [513, 512]
    assert made.rank_passes(1024)[0] == [1024]
    assert made.rank_passes(1)[0] == [1]
    for examples in range(1, 3000, 37):
        sizes = made.rank_passes(examples)[0]
        assert sum(sizes) == examples and max(sizes) <= 1024 and max(sizes) - min(sizes) <= 1


def test_with_ghost_groups_a_pass_holds_whole_groups():
    made = plan("batch=1000", "micro_batch=300", "model.ghost_batch=128")
    assert made.rank_passes(1000)[0] == [256, 256, 256, 232]
    whole = dataclasses.replace(made, micro_batch=1000)
    assert whole.rank_passes(1000)[0] == [1000]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch=50001"], "batch=50001: must be at most the training split's 50000 images"),
        (["scheduler.min_lr=0.2"], "scheduler.min_lr=0.2: must be at most the peak rate 0.1"),
        (
            ["batch=50000", "epochs=3", "scheduler.warmup_steps=4"],
            "scheduler.warmup_steps=4: must be at most the run's 3 steps",
        ),
    ],
)
def test_a_plan_that_does_not_fit_the_data_is_an_error(overrides, message):
    with pytest.raises(UserError) as raised:
        plan(*overrides)
    assert str(raised.value) == message


def test_a_drop_within_warm_up_is_an_error():
    steps = ["scheduler=multistep", "epochs=8", "batch=1000"]
    assert plan(*steps, "scheduler.warmup_steps=99").warmup_steps == 99
    with pytest.raises(UserError, match=r"warmup_steps=100: must be below the 100 steps after"):
        plan(*steps, "scheduler.warmup_steps=100")
    message = "scheduler.warmup_epochs=2: is 100 steps, and must be below the 100 steps after"
    with pytest.raises(UserError, match=message):
        plan(*steps, "scheduler.warmup_epochs=2")
    with pytest.raises(UserError, match=r"scheduler.warmup_fraction=0.5: is 200 steps, and must"):
        plan(*steps, "scheduler.warmup_fraction=0.5")
    with pytest.raises(UserError, match="step_fraction=1e-320: must be"):
        plan("scheduler=multistep", "scheduler.step_fraction=1e-320")


def test_the_plan_shows_that_the_peak_is_not_reached():
    short = ["epochs=1", "batch=25000"]
    assert "not reach" not in plan(*short, "scheduler.warmup_steps=1").describe()
    text = plan(*short, "scheduler.warmup_steps=2").describe()
    assert "at step 2, which the run does not reach, final" in text


@pytest.mark.parametrize(
    ("overrides", "examples", "key"),
    [
        (["batch=32"], 33, "batch=32"),
        (["batch=33", "micro_batch=1"], 33, "batch=33"),
        (["batch=4", "model.ghost_batch=1"], 8, "model.ghost_batch=1"),
        (["batch=32"], 34, None),
        (["batch=32", "model.ghost_batch=4"], 33, "batch=32"),
    ],
)
def test_a_pass_of_one_image_is_an_error_if_the_last_maps_are_1x1(overrides, examples, key):
    assert plan(*overrides, examples=examples).total_steps > 0
    overrides = ["model=resnet50_imagenet_stem", *overrides]
    if key is None:
        assert plan(*overrides, examples=examples).total_steps > 0
        return
    with pytest.raises(UserError, match=f"^{key}: must not give batch norm a single image"):
        plan(*overrides, examples=examples)


def test_every_rate_can_be_computed_from_the_description():
    text = plan("batch=4096", "epochs=15").describe()
    for part in ("195 = 15 epochs x 13", "last batch of an epoch 848", "4 x 1024", "first 0.1",
                 "peak 3.2 at step 20", "final 0 at step 194"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "world", "examples", "passes"),
    [
        (["batch=100"], 4, 100, [[25]] * 4),
        (["batch=100"], 3, 100, [[34], [33], [33]]),
        # All ranks make the same number of passes, even if one pass would be enough.
        (["batch=101", "micro_batch=50"], 2, 101, [[26, 25], [25, 25]]),
        (["batch=100"], 4, 2, [[1], [1], [0], [0]]),
        (["batch=100", "noise_scale=true"], 2, 100, [[25, 25], [25, 25]]),
        (["batch=100", "noise_scale=true"], 2, 3, [[1, 1], [1, 0]]),
        # Ghost groups are not split; the last one includes the remainder.
        (["batch=100", "model.ghost_batch=16"], 4, 100, [[32], [32], [16], [20]]),
        (
            ["batch=100", "model.ghost_batch=16", "micro_batch=16"],
            2,
            100,
            [[16] * 3, [16] * 2 + [20]],
        ),
        (["batch=100", "model.ghost_batch=16"], 4, 31, [[31], [0], [0], [0]]),
        (
            ["batch=96", "model.ghost_batch=16", "noise_scale=true"],
            4,
            96,
            [[16] * 2] * 2 + [[16]] * 2,
        ),
    ],
)
def test_ranks_share_a_batch(overrides, world, examples, passes):
    plan = make_plan(config(*overrides), 1000, world)
    assert plan.rank_passes(examples) == passes


def test_the_plan_shows_the_passes_of_each_rank():
    shown = make_plan(config("batch=100", "model.ghost_batch=16"), 1000, 4).describe()
    assert "2 ranks of 1 x 32, 1 rank of 1 x 16, 1 rank of 1 x 20 images a step" in shown


def test_options_that_do_not_fit_the_number_of_ranks_are_errors():
    with pytest.raises(UserError, match="sync_bn=true: needs several ranks; start them with"):
        make_plan(config("sync_bn=true"), 1000)
    with pytest.raises(UserError, match="sync_bn=true: must be false if"):
        config("sync_bn=true", "model.ghost_batch=8")
    ghosts = ["noise_scale=true", "batch=64", "model.ghost_batch=16"]
    make_plan(config(*ghosts), 1000, 2)
    with pytest.raises(UserError, match=r"needs two groups of .* on at least one rank"):
        make_plan(config(*ghosts), 1000, 4)


def test_a_peak_rate_beyond_float32_is_an_error():
    made = config(*LINEAR, "data=synthetic", "optimizer.base_lr=1e38", "batch=8192")
    with pytest.raises(UserError, match=r"optimizer\.base_lr=1e\+38: gives a peak rate of 6\.4e"):
        make_plan(made, 50_000)
