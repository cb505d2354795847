"""The fit of steps to a target against the batch: known truths, and a problem solved exactly."""

import doctest

import numpy as np
import pytest

from engine.report import fit
from engine.report.fit import Fit, fit_steps

EIGHT = [64 * 2**k for k in range(8)]


def noisy_steps(rng, b_crit, batches, seeds=3, noise=0.05):
    """Return batch and steps of each run, with log-normal noise of 5 %."""
    sizes = np.repeat(batches, seeds)
    steps = 1000 * (1 + b_crit / sizes) * np.exp(rng.normal(0, noise, len(sizes)))
    return sizes.tolist(), steps.tolist()


@pytest.mark.parametrize("b_crit", [100, 1000, 10_000])
def test_the_interval_holds_the_truth_in_nine_of_ten_draws(b_crit):
    rng = np.random.default_rng(b_crit)
    found = [fit_steps(*noisy_steps(rng, b_crit, EIGHT)) for _ in range(100)]
    assert all(isinstance(each, Fit) for each in found)
    held = sum(each.low <= b_crit <= each.high for each in found)
    assert 83 <= held <= 97
    assert np.median([each.b_crit for each in found]) == pytest.approx(b_crit, rel=0.1)
    assert np.median([each.s_min for each in found]) == pytest.approx(1000, rel=0.1)


def test_a_curve_without_noise_is_found_exactly():
    steps = [300 * (1 + 1500 / batch) for batch in EIGHT]
    found = fit_steps(EIGHT, steps)
    assert (found.b_crit, found.s_min) == pytest.approx((1500, 300), rel=1e-5)
    assert (found.low, found.high) == pytest.approx((1500, 1500), rel=1e-5)
    assert found.e_min == pytest.approx(450_000, rel=1e-5)
    assert found.steps(1500) == pytest.approx(600, rel=1e-5)


def test_the_fit_is_the_least_squares_of_the_logarithms():
    batches, steps = noisy_steps(np.random.default_rng(5), 700, EIGHT)
    found = fit_steps(batches, steps)

    def squares(b_crit, s_min):
        model = np.log(s_min) + np.log(1 + b_crit / np.array(batches))
        return ((np.log(steps) - model) ** 2).sum()

    least = squares(found.b_crit, found.s_min)
    for b_crit, s_min in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99), (1.01, 0.99), (0.99, 1.01)):
        assert squares(found.b_crit * b_crit, found.s_min * s_min) > least
    # 24 runs about a curve of two parameters: 1.717 is Student's 95 % quantile for 22.
    scatter = 1.717**2 * least / 22
    for end in (found.low, found.high):
        at_end = min(squares(end, s_min) for s_min in found.s_min * np.linspace(0.9, 1.1, 2001))
        assert at_end - least >= 0.999 * scatter


def test_a_common_error_of_a_batch_widens_the_interval():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        batches, steps = noisy_steps(rng, 1000, EIGHT, noise=0.01)
        errors = np.repeat(np.exp(rng.normal(0, 0.1, len(EIGHT))), 3)
        found = fit_steps(batches, (steps * errors).tolist())
        held += found.low <= 1000 <= found.high
    assert 166 <= held <= 194


@pytest.mark.parametrize(
    ("batches", "law", "reason"),
    [
        ([64, 128], lambda b: 1 + 100 / b, "A fit needs 3 batch sizes, not 2."),
        (EIGHT, lambda b: 1e6 / b, "perfect scaling: the critical batch size is above"),
        (EIGHT, lambda b: 500.0, "the floor: the critical batch size is below"),
        ([64, 512, 4096], lambda b: {64: 900, 512: 2000, 4096: 300}[b], "scatter too much"),
    ],
    ids=["two batches", "perfect scaling", "floor", "scatter"],
)
def test_data_that_cannot_tell_give_a_reason(batches, law, reason):
    rng = np.random.default_rng(2)
    sizes = np.repeat(batches, 3)
    steps = [law(batch) * np.exp(rng.normal(0, 0.03)) for batch in sizes]
    assert reason in fit_steps(sizes.tolist(), steps)


def test_an_end_that_the_data_do_not_bound_is_open():
    batches = [64, 256, 1024, 4096]
    steps = [
        2000 * (1 + 3000 / b) * error for b, error in zip(batches, (1, 1.3, 0.75, 1), strict=True)
    ]
    found = fit_steps(batches, steps)
    assert found.low > 100 and found.high is None and 1000 < found.b_crit < 4096


def test_one_seed_per_batch_is_enough():
    batches, steps = noisy_steps(np.random.default_rng(1), 1000, EIGHT, seeds=1)
    found = fit_steps(batches, steps)
    assert found.low < 1000 < found.high < 2 * found.low


def test_the_examples_of_the_docstrings():
    failed, tried = doctest.testmod(fit)
    assert tried >= 1 and not failed


# A noisy quadratic, (1/2) sum of h_i w_i^2, whose gradients have the variance SIGMA_i^2 / batch.
H = np.geomspace(0.02, 1.0, 12)
SIGMA = 3.0 * np.sqrt(H)
GOAL = 0.02 * H.sum() / 2


def exact_steps(rates, batch, most=4000):
    """Return the steps to GOAL of E[w^2] <- (1 - lr h)^2 E[w^2] + lr^2 sigma^2 / batch, from 1."""
    rates = np.asarray(rates)[:, None]
    squares = np.ones((len(rates), len(H)))
    steps = np.full(len(rates), most)
    for step in range(1, most):
        squares = (1 - rates * H) ** 2 * squares + rates**2 * SIGMA**2 / batch
        steps = np.minimum(steps, np.where((H * squares).sum(1) / 2 <= GOAL, step, most))
    return steps


def simulated_steps(rate, batch, rng, copies=1000):
    """Return the steps of SGD until the mean loss over `copies` of the problem is GOAL."""
    w = np.ones((copies, len(H)))
    for step in range(1, 4000):
        noise = rng.normal(0, 1, w.shape) * SIGMA / np.sqrt(batch)
        w -= rate * (H * w + noise)
        if (H * w**2).sum(1).mean() / 2 <= GOAL:
            return step
    raise AssertionError("the goal was not reached")


def test_the_critical_batch_size_of_a_noisy_quadratic():
    rng, rates = np.random.default_rng(0), np.geomspace(0.002, 1.9, 60)
    batches, exact, simulated = [16, 64, 256, 1024, 4096], [], []
    for batch in batches:
        steps = exact_steps(rates, batch)
        exact.append(int(steps.min()))
        simulated.append(simulated_steps(rates[steps.argmin()], batch, rng))
    assert exact[0] > 20 * exact[-1]
    assert simulated == pytest.approx(exact, rel=0.05)
    truth, found = fit_steps(batches, exact), fit_steps(batches, simulated)
    assert 16 < truth.b_crit < 4096
    assert found.b_crit == pytest.approx(truth.b_crit, rel=0.15)
