"""The noise scale against exact values and against gradients computed one batch at a time."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from engine.config.schema import ClipConfig
from engine.data.augment import TrainingImages
from engine.errors import UserError
from engine.training.noise_scale import SMOOTHING, NoiseEstimate, NoiseScale, estimates
from engine.training.plan import make_plan
from tests.helpers.runs import CPU, config, only_run
from tests.helpers.training import images_of, make_plain, trained


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("first", "whole"), [(16, 64), (8, 72), (32, 64)])
def test_on_a_quadratic_the_estimate_is_within_a_tenth_of_the_exact_value(seed, first, whole):
    # An example x has loss (w - x)' H (w - x) / 2 and gradient H (w - x). The gradient has the
    # known mean H (w - mean) and covariance H C H.
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.rand(200, generator=generator) + 0.5
    spread = torch.rand(200, generator=generator) + 0.5
    mean = torch.randn(200, generator=generator)
    weights = torch.nn.Parameter(mean + 0.3 * torch.randn(200, generator=generator))
    with torch.no_grad():
        trace = (curvature * spread).square().sum()
        exact = float(trace / (curvature * (weights - mean)).square().sum())
    assert 5 < exact < 50

    noise = NoiseScale(CPU)
    for _ in range(300):
        x = mean + spread * torch.randn(whole, 200, generator=generator)
        norms = []
        for part in (x[:first], x):
            loss = (curvature * (weights - part).square()).sum(1).mean() / 2
            (gradient,) = torch.autograd.grad(loss, weights)
            norms.append(gradient.norm())
        sums = noise.update(*norms, first, whole)
    (made,) = estimates(sums[None])
    assert made.noise_scale == pytest.approx(exact, rel=0.1)
    assert made.gradient_variance == pytest.approx(float(trace), rel=0.1)


def reference(model, batches, first):
    """Return the averages after each step, from gradients computed one batch at a time."""
    split = images_of(90)
    from engine.data.augment import Normalization

    training_images = TrainingImages(split, Normalization.of(split.images), CPU)
    draws = training_images.draw_epoch(0, 0)
    weight = variance = squared = 0.0
    expected = []
    for batch, small in zip(draws.order.split(batches), first, strict=True):
        squares = []
        for index in (batch[:small], batch):
            images, labels = training_images.load(index, draws)
            loss = F.cross_entropy(model(images), labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            squares.append(sum(float(g.double().square().sum()) for g in gradients))
        b, whole = small, len(batch)
        now_squared = (whole * squares[1] - b * squares[0]) / (whole - b)
        now_variance = (squares[0] - squares[1]) / (1 / b - 1 / whole)
        weight = SMOOTHING * weight + 1 - SMOOTHING
        variance = SMOOTHING * variance + (1 - SMOOTHING) * now_variance
        squared = SMOOTHING * squared + (1 - SMOOTHING) * now_squared
        expected.append((variance / weight, squared / weight))
    return expected


@pytest.mark.parametrize(
    ("micro_batch", "first"), [("micro_batch=1024", [20, 20, 5]), ("micro_batch=15", [14, 14, 5])]
)
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_an_epoch_estimates_it_from_first_pass_and_batch(optimizer, micro_batch, first):
    # At a rate near 0 the weights do not change. Weight decay and clipping do not affect it.
    keys = [f"optimizer={optimizer}", "optimizer.lr_scaling=none", "optimizer.base_lr=1e-12"]
    keys += ["optimizer.weight_decay=0.5", "noise_scale=true", micro_batch]
    model, outcome = trained(
        make_plain(), *keys, clip=ClipConfig(1e-3, 1e-4), noise=NoiseScale(CPU)
    )
    made = [(e.gradient_variance, e.gradient_squared) for e in outcome.noise]
    expected = reference(model, 40, first)
    assert len(made) == 3
    for one, other in zip(made, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_batch_takes_at_least_two_passes():
    made = make_plan(config("noise_scale=true", "batch=100"), 1000)
    assert made.rank_passes(100)[0] == [50, 50]
    assert made.rank_passes(1)[0] == [1]
    assert made.rank_passes(3)[0] == [2, 1]
    keys = ["noise_scale=true", "batch=400", "model.ghost_batch=100"]
    made = make_plan(config(*keys), 1000)
    assert made.rank_passes(400)[0] == [200, 200]
    assert made.rank_passes(370)[0] == [200, 170]
    assert made.rank_passes(250)[0] == [100, 150]
    assert made.rank_passes(150)[0] == [150]
    made = make_plan(config(*keys, "micro_batch=100"), 1000)
    assert made.rank_passes(400)[0] == [100] * 4
    assert make_plan(config("batch=100"), 1000).rank_passes(100)[0] == [100]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch=1"], "noise_scale=true: needs a batch of two groups or more, not batch=1"),
        (
            ["batch=100", "model.ghost_batch=64"],
            "two groups of model.ghost_batch=64 examples or more, not batch=100",
        ),
        (["noise_scale=1"], "noise_scale=1: must be true or false"),
    ],
)
def test_a_batch_of_one_group_is_an_error(overrides, message):
    with pytest.raises(UserError) as raised:
        config("noise_scale=true", *overrides)
    assert message in str(raised.value)


def test_a_step_of_one_pass_does_not_change_the_averages():
    noise = NoiseScale(CPU)
    one = torch.tensor(2.0), torch.tensor(1.0)
    before = noise.update(*one, 10, 20).clone()
    assert torch.equal(noise.update(None, one[1], 20, 20), before)
    (made,) = estimates(before[None])
    assert made == NoiseEstimate(pytest.approx(60.0), pytest.approx(-2.0))
    assert made.noise_scale is None  # the estimate of |G|^2 is negative
    assert NoiseEstimate(-1.0, 2.0).noise_scale is None
    (made,) = estimates(NoiseScale(CPU).sums[None])
    assert math.isnan(made.gradient_squared) and made.noise_scale is None


def test_only_a_run_with_noise_scale_writes_it(small, workplace, command):
    assert command("train.py", *small, "noise_scale=true").status == 0
    directory = only_run(workplace)
    summary = json.loads((directory / "summary.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["gradient_variance"] > 0
        expected = row["gradient_variance"] / row["gradient_squared"]
        assert row["noise_scale"] == (pytest.approx(expected) if expected > 0 else None)
    assert summary["noise_scale"] == rows[-1]["noise_scale"]
    assert command("train.py", *small, "group=without").status == 0
    for path in (workplace / "results" / "runs" / "without").glob("*/*.json*"):
        assert "noise_scale" not in path.read_text()
