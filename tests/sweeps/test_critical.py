"""The search for the fewest steps to a target, with steps from a formula in place of training."""

import doctest
import math

import pytest

from engine.sweeps import critical
from engine.sweeps.critical import RATE, Budget, Outcome, measure_steps

BUDGET = Budget(
    trials=5, seeds=3, factor=2.0, seed=0, first_steps=4000, first_evaluation=20, warmup_steps=10
)
BATCHES = (256, 64, 128)


class Made:
    """A stand-in for training: the steps at a rate, or infinity if it diverges.

    Args:
        steps_at: returns the steps to the target from optimizer, batch and rate.

    """

    def __init__(self, steps_at):
        self.steps_at, self.rounds, self.lines = steps_at, [], []

    def train(self, trials):
        self.rounds.append(list(trials))
        return [self.outcome(trial) for trial in trials]

    def outcome(self, trial):
        steps = self.steps_at(trial.optimizer, trial.batch, trial.base_lr)
        if steps == math.inf:
            return Outcome(None, None, 1.0)
        # The run is evaluated after multiples of `eval_steps`, and at its end.
        seen = min(trial.max_steps, math.ceil(steps / trial.eval_steps) * trial.eval_steps)
        if seen < steps:
            return Outcome(None, 70.0 * seen / steps, 1.0)
        return Outcome(seen, 70.5, 1.0)

    def run(self, own=None, batches=BATCHES, budget=BUDGET):
        own = own or {"sgd": 0.1}
        self.searches = measure_steps(own, batches, budget, self.train, self.lines.append)
        return {(s.cell.optimizer, s.cell.batch): s for s in self.searches}

    @property
    def trials(self):
        return [trial for trials in self.rounds for trial in trials]

    def rates(self, batch, optimizer="sgd"):
        """Return the rates of the search in the order in which they were tried."""
        found = [t for t in self.trials if (t.optimizer, t.batch) == (optimizer, batch)]
        return [trial.base_lr for trial in found if not trial.reported]


def valley(best, floor=1000.0):
    """Return steps that double with each octave from the best rate."""

    def steps_at(optimizer, batch, rate):
        # B_crit is 128.
        fewest = floor * (1 + 128 / batch)
        return fewest * 2 ** abs(math.log2(rate / best[optimizer]))

    return steps_at


def test_every_optimizer_and_batch_gets_the_same_number_of_trials_and_seeds():
    made = Made(valley({"sgd": 0.1, "lars": 64.0}))
    found = made.run({"sgd": 0.1, "lars": 4.0})
    assert len(found) == 6 and all(len(s.cell.points()) == 5 for s in found.values())
    sizes = [len(trials) for trials in made.rounds]
    # One trial, two, one and one of each optimizer, then three seeds, at each of three batches.
    assert sizes == [2, 4, 2, 2, 6] * 3
    assert [{t.batch for t in trials} for trials in made.rounds[::5]] == [{64}, {128}, {256}]
    for place, trials in enumerate(made.rounds):
        reported = place % 5 == 4
        assert all(trial.reported == reported for trial in trials)
        assert {trial.seed for trial in trials} == ({1, 2, 3} if reported else {0})


def test_the_smallest_batch_begins_with_its_own_rate_and_the_others_with_the_best_before():
    made = Made(valley({"sgd": 0.2}))
    found = made.run()
    # The best of the first two rounds is on the edge. The last trials are near the best.
    assert made.rates(64) == pytest.approx([0.1, 0.05, 0.2, 0.4, 0.141421], rel=1e-5)
    assert found["sgd", 64].rate == 0.2
    assert made.rates(128)[:3] == [0.2, 0.1, 0.4]
    assert [line for line in made.lines if line.startswith("note")] == []
    reported = [trial for trial in made.trials if trial.reported]
    assert {trial.base_lr for trial in reported} == {0.2}


def test_the_grid_widens_beyond_an_edge_and_a_best_rate_there_is_noted():
    made = Made(valley({"sgd": 100.0}))
    found = made.run(batches=(64,), budget=BUDGET)
    assert made.rates(64) == [0.1, 0.05, 0.2, 0.4, 0.8]
    assert found["sgd", 64].fewest is None and found["sgd", 64].rate == 0.8
    (note,) = [line for line in made.lines if line.startswith("note")]
    assert "batch 64, SGD: the best rate, 0.8, is the largest of the 5 tried" in note


def test_a_trial_ends_at_the_fewest_steps_of_whole_earlier_rounds():
    made = Made(valley({"sgd": 0.2}))
    made.run(batches=(64, 128))
    search = [trials for trials in made.rounds if not trials[0].reported]
    # 0.1 takes 6000 steps and is censored at 4000; 0.2 takes 3000.
    assert [[t.max_steps for t in trials] for trials in search[:4]] == [
        [4000], [4000, 4000], [3000], [3000]
    ]  # fmt: skip
    # The next batch's first trial may take 1.5 times the 3000 steps, but not more than 4000.
    assert [t.max_steps for t in search[4]] == [4000]
    # 2000 steps at batch 128, evaluated every 5 % of the 1500 steps of perfect scaling.
    assert [t.eval_steps for trials in search[4:] for t in trials] == [75] * 5
    assert search[5][0].max_steps == math.ceil(2000 / 75) * 75 == 2025
    last = made.rounds[-1][0]
    assert (last.max_steps, last.eval_steps) == (2 * 2025, 101)


def test_evaluations_are_at_most_5_percent_of_the_fewest_steps_and_at_least_one_step():
    made = Made(valley({"sgd": 0.1}, floor=4.0))
    found = made.run(batches=(64, 128, 256, 8192))
    for trial in made.trials:
        fewest = 4.0 * (1 + 128 / trial.batch)
        assert trial.eval_steps == 1 or trial.batch == 64 or trial.eval_steps <= 0.05 * fewest
    assert found["sgd", 8192].fewest == 5


def test_a_batch_at_which_no_rate_reaches_the_target_is_reported_as_censored():
    made = Made(lambda optimizer, batch, rate: valley({"sgd": 0.2})("sgd", 64, rate)
                if batch == 64 else 1e9 / rate)  # fmt: skip
    found = made.run()
    assert found["sgd", 64].fewest == 3000 and found["sgd", 128].fewest is None
    # The accuracy leads the search to larger rates. The next batch begins there, with equal bounds.
    assert made.rates(128) == [0.2, 0.1, 0.4, 0.8, 1.6] and made.rates(256)[0] == 1.6
    reported = [t for t in made.trials if t.reported and t.batch == 128]
    assert [(t.base_lr, t.max_steps, t.eval_steps) for t in reported] == [(1.6, 4000, 75)] * 3
    assert {(t.max_steps, t.eval_steps) for t in made.trials if t.batch == 256} == {(4000, 37)}
    (line,) = [line for line in made.lines if "batch 128: 3 other seeds" in line]
    assert "SGD 1.6 (target not reached in 4,000 steps)" in line


def test_after_a_divergence_smaller_rates_are_tried():
    steps = valley({"sgd": 0.02})
    made = Made(lambda *cell: math.inf if cell[2] > 0.04 else steps(*cell))
    found = made.run(batches=(64,))
    assert made.rates(64) == pytest.approx([0.1, 0.025, 0.05, 0.0125, 0.0176777], rel=1e-5)
    assert found["sgd", 64].rate == 0.0176777
    made = Made(lambda *cell: math.inf)
    found = made.run(batches=(64, 128))
    assert made.rates(64) == [0.1, 0.025, 0.05, 0.0125, 0.00625]
    assert found["sgd", 64].fewest is None and made.rates(128)[0] == 0.00625
    assert "below 0.025, since all diverged" in made.lines[2]


def test_each_optimizer_is_searched_by_itself():
    best = {"sgd": 0.2, "lars": 32.0}
    alone, both = Made(valley(best)), Made(valley(best))
    alone.run({"lars": 4.0})
    both.run({"sgd": 0.1, "lars": 4.0})
    assert [t for t in both.trials if t.optimizer == "lars"] == alone.trials
    # More batches add trials and change none.
    more = Made(valley(best))
    more.run({"lars": 4.0}, batches=(*BATCHES, 512))
    assert more.trials[: len(alone.trials)] == alone.trials


@pytest.mark.parametrize("kills", [1, 5])
def test_a_study_that_is_killed_and_restarted_trains_the_same_runs(kills):
    best = {"sgd": 0.2, "lars": 32.0}
    own = {"sgd": 0.1, "lars": 4.0}
    whole = Made(valley(best))
    whole.run(own)
    kept, trained, count = {}, [], len(whole.trials)
    stops = {count * (k + 1) // (kills + 1) for k in range(kills)}

    class Killed(Exception):
        pass

    made = Made(valley(best))

    def train(trials):
        # Several runs train at once, and the last of a round ends first.
        for trial in reversed(trials):
            if trial not in kept:
                if len(trained) in stops:
                    stops.remove(len(trained))
                    raise Killed
                trained.append(trial)
                kept[trial] = made.outcome(trial)
        return [kept[trial] for trial in trials]

    for _ in range(kills):
        with pytest.raises(Killed):
            measure_steps(own, BATCHES, BUDGET, train, lambda line: None)
    measure_steps(own, BATCHES, BUDGET, train, lambda line: None)
    assert len(trained) == count and set(trained) == set(whole.trials)


def test_a_line_before_each_round_says_what_is_trained_and_why():
    made = Made(valley({"sgd": 0.2, "lars": 4.0}))
    made.run({"sgd": 0.1, "lars": 4.0}, batches=(64, 128))
    assert made.lines[:5] == [
        "round     1 of 10  batch 64: SGD 0.1 (its own rate), LARS 4 (its own rate)",
        "round     2 of 10  batch 64: SGD 0.05, 0.2 (next to 0.1), LARS 2, 8 (next to 4); "
        "about 0:00:30 left",
        "round     3 of 10  batch 64: SGD 0.4 (beyond 0.2, the best), LARS 2.82843 (near 4, the "
        "best); about 0:00:26 left",
        "round     4 of 10  batch 64: SGD 0.141421 (near 0.2, the best), LARS 3.36359 (near 4, the "
        "best); about 0:00:24 left",
        "round     5 of 10  batch 64: 3 other seeds at the best rate, SGD 0.2 (3,000 steps), LARS "
        "4 (3,000 steps); about 0:00:22 left",
    ]
    assert "SGD 0.2 (the best at batch 64), LARS 4 (the best at batch 64)" in made.lines[5]


def test_a_long_warm_up_is_noted():
    made = Made(valley({"sgd": 0.1}, floor=10.0))
    made.run(batches=(64,))
    (note,) = [line for line in made.lines if line.startswith("note")]
    assert "SGD: the warm-up of 10 steps is 25 % of the fewest steps, 40;" in note


def test_outcomes_are_read_from_summaries():
    summary = {
        "status": "completed", "steps_to_target": 300, "holdout_accuracy": 70.5,
        "wall_seconds": 8.0, "runs_at_once": 4,
    }  # fmt: skip
    assert Outcome.of(summary) == Outcome(300, 70.5, 2.0)
    missed = Outcome.of(summary | {"steps_to_target": None, "runs_at_once": None})
    assert missed == Outcome(None, 70.5, 8.0)
    lost = Outcome.of(summary | {"status": "diverged", "steps_to_target": None})
    assert lost.score is None
    scores = [o.score for o in (Outcome(300, 70.5), Outcome(400, 99.0), missed, Outcome(None, 0.0))]
    assert scores == sorted(scores, reverse=True) and scores[1] > 0 > scores[2]


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(critical).failed == 0
    assert RATE == "optimizer.base_lr"
