import dataclasses

import pytest

from engine.parse import UserError
from engine.plan import make_plan
from tests.test_config import config


def plan(*overrides, examples=50_000):
    return make_plan(config(*overrides), examples)


def test_the_ragged_last_batch_is_a_step():
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


def test_micro_batches_are_even_and_whole():
    made = plan("batch=1025")
    assert made.micro_batch_sizes(1025) == [513, 512]
    assert made.micro_batch_sizes(1024) == [1024]
    assert made.micro_batch_sizes(1) == [1]
    for examples in range(1, 3000, 37):
        sizes = made.micro_batch_sizes(examples)
        assert sum(sizes) == examples and max(sizes) <= 1024 and max(sizes) - min(sizes) <= 1


def test_with_ghost_groups_a_pass_holds_whole_groups():
    made = plan("batch=1000", "micro_batch=300", "model.ghost_batch=128")
    assert made.micro_batch_sizes(1000) == [256, 256, 256, 232]
    whole = dataclasses.replace(made, micro_batch=1000)
    assert whole.micro_batch_sizes(1000) == [1000]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["batch=50001"], "batch=50001: must be at most the training split's 50000 images"),
        (["scheduler.min_lr=0.2"], "scheduler.min_lr=0.2: must be at most the peak rate 0.1"),
    ],
)
def test_what_does_not_fit_the_data_is_told(overrides, told):
    with pytest.raises(UserError) as raised:
        plan(*overrides)
    assert str(raised.value) == told


def test_the_description_allows_every_rate_to_be_worked_out():
    text = plan("batch=4096", "epochs=15").describe()
    for part in ("195 = 15 epochs x 13", "the last of an epoch 848", "4 x 1024", "first 0.1",
                 "peak 3.2 at step 20", "final 0 at step 194"):  # fmt: skip
        assert part in text
