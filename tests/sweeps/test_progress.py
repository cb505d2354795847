import pytest

from engine.sweeps.progress import SweepProgress
from tests.helpers.screen import Screen


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


def test_a_terminal_has_a_bar_below_the_runs_lines(runs, capsys, monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.delenv("TERM", raising=False)
    progress = SweepProgress(runs, at_once=1, mode="auto")
    with progress.shown():
        print("a line of a run")
        runs[0].over = True
        progress.run_ended()
    assert capsys.readouterr().out == "a line of a run\n"
    assert "0/3 runs, 0:03:00 left" in screen.getvalue()
    assert "1/3 runs, 0:02:00 left" in screen.getvalue()
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_progress_off_shows_nothing(runs, capsys):
    progress = SweepProgress(runs, at_once=1, mode="off")
    with progress.shown():
        runs[0].over = True
        progress.run_ended()
    assert capsys.readouterr() == ("", "")
