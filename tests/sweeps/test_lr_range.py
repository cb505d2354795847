"""The learning-rate range test: its steps, when it stops, and the rate that it suggests."""

import math

import pytest
import torch

from engine.data.augment import Normalization, TrainingImages
from engine.sweeps.lr_range import RangeTest, endless_batches, growing_rates, run_range_test
from engine.system.runtime import start_runtime
from engine.training.build import build_optimizer
from engine.training.plan import base_lr_for, make_plan
from engine.training.step import NO_CLIP, Step
from tests.helpers.runs import config
from tests.helpers.training import images_of, make_plain


def test_rates_grow_by_one_factor():
    assert growing_rates(0.001, 10.0, 5) == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0])


def test_the_suggestion_is_the_rate_of_the_lowest_loss():
    # The loss is constant up to rate 0.01, falls as a cosine to its minimum at 1, then rises.
    rates = growing_rates(1e-4, 100.0, 121)
    losses = []
    for rate in rates:
        x = min(max((math.log10(rate) + 2) / 2, 0.0), 1.0)
        losses.append(2 + math.cos(math.pi * x) + max(0.0, math.log10(rate)) ** 2)
    made = RangeTest(rates, losses, "")
    assert made.rates[made.steepest()] == pytest.approx(0.1, rel=0.05)
    assert made.suggested() == pytest.approx(1.0, rel=0.15) and not made.falls_to_the_end()
    assert RangeTest(rates[:80], losses[:80], "").falls_to_the_end()


def test_a_loss_that_never_falls_suggests_nothing():
    rates = growing_rates(1e-4, 1.0, 30)
    assert RangeTest(rates, [float(step) for step in range(30)], "").suggested() is None


def make_test(rates, *overrides, most=4.0):
    made, split = config("batch=40", "epochs=1", *overrides), images_of(90)
    plan, runtime = make_plan(made, 90), start_runtime("cpu", "fp32", 1, False, 0)
    training_images = TrainingImages(split, Normalization.of(split.images), runtime.device)
    model = make_plain()
    optimizer = build_optimizer(made.optimizer, NO_CLIP, model, plan.optimizer_lr)
    tested = run_range_test(Step(model, optimizer, training_images, plan, runtime), 0, rates, most)
    return tested, model, optimizer


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_each_step_is_taken_at_its_rate(scale):
    rates = [0.1, 0.2, 0.4]
    plain = ("optimizer.momentum=0", "optimizer.weight_decay=0")
    tested, model, _ = make_test(rates, *plain, f"optimizer.bias_lr_scale={scale}")
    split = images_of(90)
    training_images = TrainingImages(split, Normalization.of(split.images), torch.device("cpu"))
    reference, losses = make_plain(), []
    for rate, (batch, draws) in zip(rates, endless_batches(training_images, 40, 0), strict=False):
        images, labels = training_images.load(batch, draws)
        loss = torch.nn.functional.cross_entropy(reference(images), labels)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, reference.parameters())
        for (name, p), g in zip(reference.named_parameters(), gradients, strict=True):
            p.data -= rate * (scale if name.endswith("bias") else 1.0) * g
    assert tested.losses == pytest.approx(losses, rel=1e-5) and tested.rates == rates
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_batches_are_full_and_continue_into_the_next_epoch():
    split = images_of(90)
    training_images = TrainingImages(split, Normalization.of(split.images), torch.device("cpu"))
    batches = endless_batches(training_images, 40, 0)
    seen = [next(batches)[0] for _ in range(4)]
    assert [len(batch) for batch in seen] == [40] * 4
    assert torch.equal(seen[2], training_images.draw_epoch(0, 2).order[:40])


def test_it_stops_if_the_loss_rises_or_is_no_longer_finite():
    turned, _, _ = make_test(growing_rates(0.01, 1e4, 100), most=1.5)
    assert turned.stopped == "the loss was 1.5 times its best"
    assert len(turned.rates) == len(turned.losses) < 100
    lost, _, _ = make_test([0.1, 0.1, 1e38, 1e38, 1e38], most=1e30)
    assert lost.stopped == "the loss was no longer finite"
    assert all(map(math.isfinite, lost.losses))


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=lars"],
        ["optimizer=sgd"],
        ["optimizer.lr_scaling=none"],
        ["optimizer.lr_scaling=none", "scheduler.warmup_multiplier=8"],
        ["scheduler=onecycle", "optimizer.base_batch=256"],
        ["scheduler=tvlars", "optimizer=adamw", "scheduler.delay_epochs=0"],
        ["+experiment=attempt2"],
    ],
)
def test_the_suggested_base_lr_has_the_suggested_peak(overrides):
    made = config("batch=2048", *overrides)
    pasted = config("batch=2048", *overrides, f"optimizer.base_lr={base_lr_for(made, 1.7)!r}")
    assert make_plan(pasted, 50_000).peak_lr == pytest.approx(1.7)
