"""Interleaved timing, so that other load on the machine affects every candidate equally."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Every candidate gets at least this number of rounds, even if no time is left.
LEAST_ROUNDS = 2
# The warm-up may use this part of the time, but its first round is always done.
WARMUP_SHARE = 0.2


@dataclass(frozen=True)
class Candidate:
    """A step to time.

    Attributes:
        step: the timed function.
        prepare: called before each step, not timed.

    """

    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass
class Turns:
    """The timings of one candidate.

    Attributes:
        planned: number of rounds that it is to get.
        seconds: seconds of each round.
        cost: seconds that its last turn took with everything that is not timed.
        warm: False during the warm-up.

    """

    planned: int
    seconds: list[float]
    cost: float = 0.0
    warm: bool = False

    def describe(self) -> str:
        """Return which round comes next, as text."""
        return f"round {len(self.seconds) + 1} of {self.planned}" if self.warm else "warm-up"


def interleave(
    candidates: dict[str, Candidate],
    rounds: int,
    device: torch.device,
    warmup: int = 3,
    seconds: float = math.inf,
    watch: Callable[[str, Turns], object] = lambda name, turns: None,
) -> dict[str, list[float]]:
    """Time the candidates in turns, in an order that rotates between rounds.

    The first round decides how many rounds each candidate gets (`plan_rounds`). A candidate that
    gets fewer rounds than others pauses in some rounds, spread over all of them.

    Returns the seconds of each round, by candidate.

    Args:
        candidates: the candidates, by name.
        rounds: the most timings of each.
        device: synchronized before and after each step.
        warmup: number of earlier rounds, which are not returned.
        seconds: the time for everything. It is exceeded only for the first round of the warm-up and
            for `LEAST_ROUNDS` of each candidate.
        watch: called before each step with the candidate's name and its timings so far.

    """
    started = time.monotonic()
    table = {name: Turns(rounds, []) for name in candidates}

    def take(name: str) -> float:
        turns, candidate = table[name], candidates[name]
        watch(name, turns)
        begun = time.monotonic()
        candidate.prepare()
        elapsed = _time(candidate.step, device)
        turns.cost = time.monotonic() - begun
        return elapsed

    for turn in range(warmup):
        if turn and time.monotonic() - started > WARMUP_SHARE * seconds:
            break
        for name in candidates:
            take(name)
    for turns in table.values():
        turns.warm = True
    names = list(candidates)
    for turn in range(rounds):
        left = started + seconds - time.monotonic()
        if turn == 1:
            costs = {name: turns.cost for name, turns in table.items()}
            for name, planned in plan_rounds(costs, rounds, left).items():
                table[name].planned = planned
        longest = max(turns.planned for turns in table.values())
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            turns = table[name]
            done = len(turns.seconds)
            if done >= LEAST_ROUNDS and time.monotonic() + turns.cost > started + seconds:
                continue
            # The last rounds find nothing due if every candidate gets fewer.
            if done < min(turns.planned, turns.planned * (turn + 1) / longest):
                turns.seconds.append(take(name))
    return {name: turns.seconds for name, turns in table.items()}


def plan_rounds(costs: dict[str, float], rounds: int, seconds: float) -> dict[str, int]:
    """Return how many rounds each candidate gets, its first round included.

    The time is divided equally. What a fast candidate leaves of its share goes to slower ones.

    Args:
        costs: seconds of a candidate's first round, by name.
        rounds: the most rounds of each.
        seconds: the time left after the first round.

    """
    planned = dict.fromkeys(costs, rounds)
    left = seconds
    for place, name in enumerate(sorted(costs, key=lambda name: costs[name])):
        share, cost = max(0.0, left) / (len(costs) - place), max(costs[name], 1e-9)
        if share < cost * (rounds - 1):
            planned[name] = max(LEAST_ROUNDS, 1 + int(share / cost))
        left -= cost * (planned[name] - 1)
    return planned


def summarise(seconds: list[float]) -> dict[str, float]:
    """Return the median, the minimum and both quartiles of some seconds, in milliseconds."""
    low, median, high = (1000 * s for s in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "min_ms": 1000 * min(seconds), "q1_ms": low, "q3_ms": high}


def describe_rounds(times: dict[str, list[float]], rounds: int, average: str = "Medians") -> str:
    """Return how many rounds a table's figures are of, and which candidates have fewer.

    Args:
        times: seconds of each round, by candidate.
        rounds: the most rounds of each.
        average: what the figures are.

    """
    counts = {name: len(seconds) for name, seconds in times.items()}
    most = max(counts.values())
    text = f"{average} of {most} rounds"
    if most < rounds:
        text += f"; the time did not suffice for {rounds}"
    if fewer := [f"{name} {count}" for name, count in counts.items() if count < most]:
        text += f"; fewer if a round is too slow for its share of the time: {', '.join(fewer)}"
    return f"{text}."


def copy_bandwidth(device: torch.device, megabytes: int = 256, rounds: int = 15) -> float:
    """Return the bytes per second of a large copy, reads and writes counted, in the fastest round.

    Args:
        device: the device to copy on.
        megabytes: size of the copy in MiB.
        rounds: the most timings.

    """
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / fastest(lambda: target.copy_(source), device, rounds)


def fastest(
    step: Callable[[], object], device: torch.device, rounds: int, seconds: float = 1.0
) -> float:
    """Return the seconds of the fastest of several rounds.

    Args:
        step: the timed function.
        device: synchronized before and after each step.
        rounds: the most timings.
        seconds: no timing begins after this time, except for the first `LEAST_ROUNDS`.

    """
    end = time.monotonic() + seconds
    found: list[float] = []
    while len(found) < rounds and (len(found) < LEAST_ROUNDS or time.monotonic() < end):
        found.append(_time(step, device))
    return min(found)


def _time(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
