import sys

import pytest

from engine.sweeps.progress import SweepProgress
from engine.system.terminal import say
from tests.helpers.screen import Screen, SecondStream


class FakeRun:
    def __init__(self):
        self.over = False

    def finished(self):
        return self.over


@pytest.fixture
def runs(monkeypatch):
    """Three runs of 60 s each, none finished."""
    runs = [FakeRun() for _ in range(3)]
    monkeypatch.setattr(
        SweepProgress, "_seconds_left",
        lambda self: 60.0 * sum(not run.over for run in runs) / self.at_once,
    )  # fmt: skip
    return runs


def test_a_log_has_a_line_after_each_run(runs, capsys):
    progress = SweepProgress(runs, at_once=2, mode="auto")
    with progress.shown():
        for run in runs:
            run.over = True
            progress.run_ended()
            progress.run_ended()  # A run that was interrupted changes nothing.
    assert capsys.readouterr().out.splitlines() == [
        "sweep     1 of 3 runs done, 0:01:00 left",
        "sweep     2 of 3 runs done, 0:00:30 left",
    ]


def test_a_terminal_has_a_bar_below_the_runs_lines(runs, monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stdout", SecondStream(screen))
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    progress = SweepProgress(runs, at_once=1, mode="auto")
    with progress.shown():
        print("the first line of a run", flush=True)
        assert_rows(screen, "the first line of a run", bar="0/3 runs, 0:03:00 left")
        runs[0].over = True
        progress.run_ended()
        say("a line of the sweep")
        assert_rows(screen, "the first line of a run", "a line of the sweep", bar="1/3 runs")
        monkeypatch.setattr("engine.sweeps.progress.ESTIMATE_SECONDS", 0.0)
        print("a line with a new estimate")
        print("a warning", file=sys.stderr)
        print("a line that does not end", end="")
        assert screen.rows()[2:-1] == ["a line with a new estimate", "a warning"]
    print("\nafter")
    assert screen.rows()[4:] == ["a line that does not end", "", "after", ""]


def assert_rows(screen, *lines, bar):
    *above, last = screen.rows()
    assert above == list(lines)
    assert last.startswith("sweep |") and bar in last


def test_progress_off_shows_nothing(runs, capsys):
    progress = SweepProgress(runs, at_once=1, mode="off")
    with progress.shown():
        runs[0].over = True
        progress.run_ended()
    assert capsys.readouterr() == ("", "")
