"""Measure the fewest steps to a target accuracy against the batch, with a fair search of the rate.

Batches are searched from the smallest to the largest, each optimizer by itself, with the same
number of trials. The smallest batch begins with the optimizer's own rate, every other one with the
best rate of the batch before it. Then the best rate is trained with other seeds: the result.

A round's trials, the steps at which they end and the steps between their evaluations follow from
the outcomes of whole earlier rounds alone. So a restart decides the same, and neither the order of
the runs nor how many train at once matters. A trial ends at the fewest steps that an earlier round
of its cell needed to reach the target. Beyond those it cannot win, so this is fair.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.config.optimizers import title_of
from engine.runs.records import DIVERGED
from engine.sweeps.tune import Cell, rounded
from engine.system.terminal import duration

RATE = "optimizer.base_lr"
# Steps between evaluations, as a share of the fewest steps expected.
EVALUATION_SHARE = 0.05
# A longer warm-up, as a share of the fewest steps, is reported.
WARMUP_SHARE = 0.2
# A larger batch needs no more steps than a smaller one but for noise, so its first trials may take
# this many times the fewest steps of the batch before it.
FIRST_SLACK = 1.5
# The other seeds may take this many times the steps of the search's best trial.
SEED_SLACK = 2.0


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        optimizer: label of the optimizer, such as `lars-adamw`.
        batch: examples per step.
        base_lr: the value of `optimizer.base_lr`.
        seed: the run's seed.
        max_steps: optimizer steps after which it ends.
        eval_steps: optimizer steps between its evaluations.
        reported: True if it is a result, False if it belongs to the search.

    """

    optimizer: str
    batch: int
    base_lr: float
    seed: int
    max_steps: int
    eval_steps: int
    reported: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a finished run found.

    Attributes:
        steps: optimizer steps to the target; None if the run did not reach it.
        accuracy: last hold-out accuracy in %; None if the run diverged.
        seconds: wall seconds that the run added to the search.

    """

    steps: int | None
    accuracy: float | None
    seconds: float = 0.0

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> "Outcome":
        """Return the outcome of a finished run from its summary."""
        lost = summary["status"] == DIVERGED
        seconds = summary["wall_seconds"] / (summary.get("runs_at_once") or 1)
        if lost:
            return cls(None, None, seconds)
        return cls(summary["steps_to_target"], summary["holdout_accuracy"], seconds)

    @property
    def score(self) -> float | None:
        """Return the score by which trials are compared; None if the run diverged.

        It is positive for a run that reached the target, and larger for fewer steps. It is negative
        for one that did not, and larger for a higher accuracy.
        """
        if self.steps is not None:
            return 1.0 / self.steps
        return None if self.accuracy is None else self.accuracy - 100.0


# Trains the runs of a round, those that are finished already excepted, and returns all outcomes.
Train = Callable[[Sequence[Trial]], Sequence[Outcome]]


@dataclass(frozen=True)
class Budget:
    """What each optimizer gets at each batch.

    Attributes:
        trials: number of rates to try, at least 3.
        seeds: number of other seeds to train with the best rate.
        factor: ratio between neighboring rates.
        seed: the search's seed; the other ones follow it.
        first_steps: optimizer steps after which the first trial at the smallest batch ends.
        first_evaluation: steps between the evaluations of the trials there.
        warmup_steps: optimizer steps of warm-up.

    """

    trials: int
    seeds: int
    factor: float
    seed: int
    first_steps: int
    first_evaluation: int
    warmup_steps: int = 0


@dataclass
class Search:
    """The search for the rate of one optimizer at one batch.

    Attributes:
        cell: the rates tried, and their scores.
        bound: optimizer steps after which a trial ends while none has reached the target.
        eval_steps: optimizer steps between the evaluations of each trial.
        why: why the latest rates are tried, in words.
        fewest: fewest steps to the target; None if no trial reached it.

    """

    cell: Cell
    bound: int
    eval_steps: int
    why: str
    fewest: int | None = None

    @property
    def title(self) -> str:
        """Return the optimizer's name as reports write it."""
        return title_of(self.cell.optimizer)

    @property
    def rate(self) -> float:
        """Return the best rate so far."""
        return self.cell.best()[0]

    def untried(self) -> list[float]:
        """Return the rates that have no score yet."""
        return [rate for rate in self.cell.axes[RATE] if (rate,) not in self.cell.scores]

    def widen(self, factor: float) -> None:
        """Add the next round's rates: both neighbors of the first one, then one at a time."""
        rates = self.cell.axes[RATE]
        if len(rates) == 1:
            (center,) = rates
            lost = self.cell.scores[(center,)] is None
            self.why = f"below {center:g}, which diverged" if lost else f"next to {center:g}"
            below = center / factor
            rates += map(rounded, (below, below / factor if lost else center * factor))
            rates.sort()
            return
        edge, best = self.cell.edge(RATE), self.rate
        self.why = f"beyond {best:g}, the best" if edge else f"near {best:g}, the best"
        if all(score is None for score in self.cell.scores.values()):
            self.why = f"below {best:g}, since all diverged"
        self.cell.grow(RATE, factor)

    def trials(self, seed: int) -> list[Trial]:
        """Return the trials of the next round."""
        end = self.fewest or self.bound
        optimizer, batch = self.cell.optimizer, self.cell.batch
        return [
            Trial(optimizer, batch, rate, seed, end, self.eval_steps) for rate in self.untried()
        ]

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Record the outcome of a trial."""
        self.cell.scores[(trial.base_lr,)] = outcome.score
        if outcome.steps is not None:
            self.fewest = min(outcome.steps, self.fewest or outcome.steps)

    def reported(self, budget: Budget) -> list[Trial]:
        """Return the runs with other seeds at the best rate, also if no trial reached the target.

        They are then shown as censored, so that no batch is missing from the result.
        """
        end, steps = self.bound, self.eval_steps
        if self.fewest is not None:
            end, steps = math.ceil(SEED_SLACK * self.fewest), evaluation_steps(self.fewest)
        seeds = range(budget.seed + 1, budget.seed + 1 + budget.seeds)
        cell = self.cell
        return [Trial(cell.optimizer, cell.batch, self.rate, s, end, steps, True) for s in seeds]

    def notes(self, warmup_steps: int) -> list[str]:
        """Return lines on what makes the steps of this batch too many: its rate, its warm-up."""
        lines, start = [], f"note      batch {self.cell.batch}, {self.title}: "
        if edge := self.cell.edge(RATE):
            place, tried = "smallest" if edge < 0 else "largest", len(self.cell.points())
            lines.append(
                f"{start}the best rate, {self.rate:g}, is the {place} of the {tried} tried; more "
                "trials may find a better one"
            )
        if self.fewest is not None and warmup_steps > WARMUP_SHARE * self.fewest:
            share = 100 * warmup_steps / self.fewest
            lines.append(
                f"{start}the warm-up of {warmup_steps} steps is {share:.0f} % of the fewest steps, "
                f"{self.fewest}; scheduler.warmup_steps sets it"
            )
        return lines


def evaluation_steps(expected: float) -> int:
    """Return the steps between evaluations of a run that is expected to take this many steps.

    >>> evaluation_steps(1000), evaluation_steps(119), evaluation_steps(3)
    (50, 5, 1)
    """
    return max(1, int(EVALUATION_SHARE * expected))


def begin(optimizer: str, batch: int, rate: float, before: Search | None, budget: Budget) -> Search:
    """Return the search at a batch.

    Args:
        optimizer: name of the optimizer.
        batch: examples per step.
        rate: the optimizer's own base rate.
        before: the finished search at the next smaller batch; None at the smallest one.
        budget: what each search gets.

    """
    if before is None:
        why, bound, steps = "its own rate", budget.first_steps, budget.first_evaluation
    else:
        rate, why = before.rate, f"the best at batch {before.cell.batch}"
        bound, shrinks = before.bound, before.cell.batch / batch
        steps = max(1, int(before.eval_steps * shrinks))
        if before.fewest is not None:
            bound = min(math.ceil(FIRST_SLACK * before.fewest), budget.first_steps)
            # The fewest steps possible are those of perfect scaling.
            steps = evaluation_steps(before.fewest * shrinks)
    return Search(Cell(optimizer, batch, [], {RATE: [rate]}), bound, steps, why)


@dataclass
class Rounds:
    """Trains round after round, and prints a line before each.

    Attributes:
        train: trains the runs of a round.
        say: prints a line.
        rounds: number of rounds.
        trials: number of runs of all rounds.
        done: number of rounds so far.
        seconds: wall seconds of the runs so far.

    """

    train: Train
    say: Callable[[str], None]
    rounds: int
    trials: int
    done: int = 0
    seconds: list[float] = field(default_factory=list)

    def run(self, trials: Sequence[Trial], what: str) -> Sequence[Outcome]:
        """Train the runs of a round and return their outcomes.

        Args:
            trials: the runs.
            what: what is trained and why, in words.

        """
        self.done += 1
        left = ""
        if self.seconds:
            mean, missing = sum(self.seconds) / len(self.seconds), self.trials - len(self.seconds)
            left = f"; about {duration(mean * missing)} left"
        self.say(f"round     {self.done} of {self.rounds}  {what}{left}")
        outcomes = self.train(trials)
        self.seconds += [outcome.seconds for outcome in outcomes]
        return outcomes


def measure_steps(
    own_rates: Mapping[str, float],
    batches: Sequence[int],
    budget: Budget,
    train: Train,
    say: Callable[[str], None] = print,
) -> list[Search]:
    """Search the best rate of each optimizer at each batch and train it with other seeds.

    Args:
        own_rates: the base rate that each optimizer begins with at the smallest batch, by name.
        batches: the batches.
        budget: what each optimizer gets at each batch.
        train: trains the runs of a round.
        say: prints a line.

    """
    cells = len(own_rates) * len(batches)
    count = cells * (budget.trials + budget.seeds)
    rounds = Rounds(train, say, len(batches) * budget.trials, count)
    last: dict[str, Search] = {}
    found: list[Search] = []
    for batch in sorted(batches):
        here = [begin(o, batch, rate, last.get(o), budget) for o, rate in own_rates.items()]
        # The first round has one trial, the second one two, the others one.
        for number in range(budget.trials - 1):
            if number:
                for search in here:
                    search.widen(budget.factor)
            trials = [(search, t) for search in here for t in search.trials(budget.seed)]
            rates = [(s, ", ".join(f"{rate:g}" for rate in s.untried())) for s in here]
            what = ", ".join(f"{s.title} {tried} ({s.why})" for s, tried in rates)
            outcomes = rounds.run([t for _, t in trials], f"batch {batch}: {what}")
            for (search, trial), outcome in zip(trials, outcomes, strict=True):
                search.add(trial, outcome)
        for note in [note for search in here for note in search.notes(budget.warmup_steps)]:
            say(note)
        best = ", ".join(f"{s.title} {s.rate:g} ({_result(s)})" for s in here)
        seeds = f"{budget.seeds} other seed{'s' * (budget.seeds > 1)}"
        rounds.run(
            [trial for search in here for trial in search.reported(budget)],
            f"batch {batch}: {seeds} at the best rate, {best}",
        )
        last = {search.cell.optimizer: search for search in here}
        found += here
    return found


def _result(search: Search) -> str:
    if search.fewest is None:
        return f"target not reached in {search.bound:,} steps"
    return f"{search.fewest:,} steps"
