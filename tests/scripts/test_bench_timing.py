import io
import sys
from types import SimpleNamespace

import pytest

from scripts.bench import progress, timing
from scripts.bench.progress import Progress
from scripts.bench.timing import Candidate, describe_rounds, interleave, plan_rounds, summarise
from tests.helpers.runs import CPU


class Clock:
    """A clock that only the candidates advance, in place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def candidate(self, seconds: float) -> Candidate:
        def step() -> None:
            self.now += seconds

        return Candidate(step)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(timing, "time", found)
    monkeypatch.setattr(progress, "time", found)
    return found


def take(clock, costs, rounds, seconds, warmup=1):
    """Interleave candidates of given costs; return the rounds of each, and the order of all."""
    order = []
    candidates = {name: clock.candidate(cost) for name, cost in costs.items()}
    times = interleave(
        candidates, rounds, CPU, warmup, seconds, lambda name, turns: order.append(name)
    )
    for name, taken in times.items():
        assert taken == pytest.approx([costs[name]] * len(taken))
    return {name: len(taken) for name, taken in times.items()}, "".join(order)


def test_all_rounds_are_done_if_the_time_suffices(clock):
    assert take(clock, {"a": 1, "b": 1, "c": 1}, 3, 100) == ({"a": 3, "b": 3, "c": 3}, "abc" * 2
                                                            + "bca" + "cab")  # fmt: skip
    counts, order = take(clock, {"a": 1, "b": 1}, 2, 100, warmup=3)
    assert counts == {"a": 2, "b": 2} and order == "ab" * 4 + "ba"


def test_rounds_end_with_the_time(clock):
    counts, _ = take(clock, {"a": 1, "b": 1}, 40, 20)
    assert counts == {"a": 9, "b": 9} and clock.now == 1020
    # A long warm-up ends after a fifth of the time.
    counts, order = take(clock, {"a": 1, "b": 1}, 40, 20, warmup=20)
    assert order.startswith("ab" * 3) and clock.now == 1040 and counts == {"a": 7, "b": 7}


def test_a_slow_candidate_gets_fewer_rounds_spread_over_all(clock):
    counts, order = take(clock, {"fast": 1, "slow": 10}, 20, 80)
    assert counts == {"fast": 20, "slow": 4} and clock.now <= 1080
    # After the warm-up: in the rounds 1, 6, 11 and 16, of which every second one begins with it.
    gaps = [len(gap) for gap in order.replace("fast", ".").split("slow")[1:]]
    assert gaps == [1, 4, 6, 4, 5]


def test_rounds_that_become_slower_end_with_the_time_too(clock):
    costs = iter([1.0, 1.0] + [5.0] * 30)

    def step() -> None:
        clock.now += next(costs)

    times = interleave({"a": Candidate(step)}, 20, CPU, 1, 20.0)
    # After the first round 18 s are left, which suffice for 18 rounds like it.
    assert times["a"] == pytest.approx([1.0, 5.0, 5.0, 5.0]) and clock.now == 1017


def test_every_candidate_gets_two_rounds_even_without_time(clock):
    assert take(clock, {"a": 1, "b": 50}, 9, 0)[0] == {"a": 2, "b": 2}
    # The time is used in the middle of the rounds.
    assert take(clock, {"a": 4, "b": 4, "c": 4}, 9, 25)[0] == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("costs", "seconds", "planned"),
    [
        ({"a": 1.0, "b": 2.0}, 100.0, {"a": 5, "b": 5}),
        # Of 12 s each gets 6, which are 4 more rounds of a, and with the 2 s it leaves 2 of b.
        ({"b": 4.0, "a": 1.0}, 12.0, {"a": 5, "b": 3}),
        ({"a": 1.0, "b": 1.0}, 4.0, {"a": 3, "b": 3}),
        ({"a": 1.0, "b": 9.0}, 0.0, {"a": 2, "b": 2}),
        ({"a": 0.0, "b": 9.0}, -1.0, {"a": 2, "b": 2}),
    ],
)
def test_rounds_are_planned_by_equal_shares_of_the_time(costs, seconds, planned):
    assert plan_rounds(costs, 5, seconds) == planned


def test_a_table_says_how_many_rounds_it_is_of():
    assert describe_rounds({"a": [1.0] * 5, "b": [1.0] * 5}, 5) == "Medians of 5 rounds."
    assert describe_rounds({"a": [1.0] * 4, "b": [1.0] * 2, "c": [1.0] * 3}, 5, "Means") == (
        "Means of 4 rounds; the time did not suffice for 5; fewer if a round is too slow for its "
        "share of the time: b 2, c 3."
    )


def test_a_log_has_a_line_for_each_candidate(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    said = Progress(2.0)
    said.place = "step (part 1 of 2)"
    for seconds, activity in ((5, "a"), (5, "b"), (5, "a"), (5, "b"), (30, "a"), (0, "a")):
        clock.now += seconds
        said.say(activity, "round 1 of 2", 0.001)
    said.place = "step (part 2 of 2)"
    said.say("a")
    clock.now += 100
    said.say("b")
    said.clear()
    assert log.getvalue().splitlines() == [
        "1:55 left, step (part 1 of 2), round 1 of 2, a",
        "1:50 left, step (part 1 of 2), round 1 of 2, b",
        "1:10 left, step (part 1 of 2), round 1 of 2, a",
        "1:10 left, step (part 2 of 2), a",
        "no time left, step (part 2 of 2), b",
    ]


def test_a_terminal_has_one_line_that_is_rewritten(clock, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    said = Progress(1.0)
    said.say("x" * 200)
    # Brief work is shown at most five times a second, long work always.
    said.say("brief", "", 0.001)
    said.say("long", "", 2.0)
    clock.now += 0.3
    said.say("brief", "", 0.001)
    said.clear()
    said.clear()
    erase = "\r\x1b[K"
    shown = ["1:00 left, " + "x" * 68, "1:00 left, long", "0:59 left, brief", ""]
    assert screen.getvalue() == "".join(erase + line for line in shown)


def test_progress_survives_a_closed_stderr(monkeypatch):
    def fail(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False, write=fail))
    Progress(1.0).say("a")


def test_medians_and_quartiles():
    figures = summarise([0.004, 0.001, 0.002, 0.003, 0.010])
    assert figures == pytest.approx({"median_ms": 3, "min_ms": 1, "q1_ms": 2, "q3_ms": 4})
