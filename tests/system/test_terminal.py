import io
import re

import pytest

from engine.system import terminal
from engine.system.resources import RUNS_AT_ONCE
from engine.system.terminal import Display, epoch_line, shows_bar
from tests.helpers.screen import Screen

ROW = {
    "epoch": 3, "step": 30, "train_loss": 1.2341, "test_accuracy": 61.204, "holdout_accuracy": 5.0,
    "learning_rate": 0.1, "images_per_second": 850.4,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def attach(monkeypatch):
    """A function that makes stderr a terminal and returns what it shows."""
    monkeypatch.delenv("TERM", raising=False)

    def attach():
        # Not at set-up, because pytest replaces stderr again when the test begins.
        stream = Screen()
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return attach


def test_an_epochs_line_has_the_form_that_others_read():
    assert epoch_line(ROW, 40, True, 750.4) == (
        "epoch 3/40  train loss 1.234  test accuracy 61.20 %  best  rate 0.1  850 images/s"
        "  0:12:30 left"
    )
    held = {**ROW, "test_accuracy": None, "learning_rate": 22.627417, "images_per_second": 2983.2}
    assert epoch_line(held, 40, False, 0) == (
        "epoch 3/40  train loss 1.234  hold-out accuracy 5.00 %  rate 22.63  2,983 images/s"
        "  0:00:00 left"
    )
    lost = {**ROW, "test_accuracy": None, "holdout_accuracy": None, "train_loss": None}
    assert epoch_line(lost, 40, False, 4) == (
        "epoch 3/40  train loss nan  rate 0.1  850 images/s  0:00:04 left"
    )


def test_the_best_accuracy_and_the_time_left_include_epochs_before_a_resume(clock, capsys):
    display = Display("lines", epochs=5, steps=50, history=[{"test_accuracy": 61.3}])
    with display.steps(range(10), first_step=20, begun_at=5) as batches:
        assert list(batches) == [5, 6, 7, 8, 9]
    clock[0] += 10  # For 5 steps, so 20 more take 40 s.
    display.end_epoch(ROW)
    display.end_epoch({**ROW, "epoch": 4, "step": 40, "test_accuracy": 61.4})
    first, second = capsys.readouterr().out.splitlines()
    assert "best" not in first and first.endswith("0:00:40 left")
    assert "61.40 %  best  rate" in second


def test_without_a_bar_a_long_epoch_prints_a_line_every_30_seconds(clock, capsys):
    display = Display("auto", epochs=5, steps=500)
    with display.steps(range(100), first_step=0, begun_at=0):
        clock[0] += 29.9
        assert not display.due()
        clock[0] += 0.1
        assert display.due()
        display.show(12, 100, 1200, 1.5, 33.33)
        assert not display.due()
    clock[0] += 31
    assert list(display.watch(range(0, 3000, 1000))) == [0, 1000, 2000]
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "epoch 1/5  step 12/100  train loss 1.500  train accuracy 33.3 %  40 images/s",
        "epoch 1/5  evaluation 0/3",
    ]
    assert err == ""


def test_a_terminal_also_gets_a_bar_that_leaves_nothing(clock, attach, capsys):
    screen = attach()
    display = Display("auto", epochs=5, steps=500)
    with display.steps(range(100), first_step=100, begun_at=0) as batches:
        for done, _ in enumerate(batches, 1):
            clock[0] += 1
            if display.due():
                display.show(done, 100, 10 * done, 1.5, 33.33)
    states = [state for state in screen.getvalue().split("\r") if state.strip()]
    assert "epoch 2/5 |" in states[-1]
    assert "accuracy=33.3%, images_per_s=10, loss=1.500]" in states[-1]
    assert screen.getvalue().endswith("\r" + " " * 79 + "\r") or screen.getvalue().endswith("\r")
    assert "\x1b[3" not in screen.getvalue()  # no colour
    display.end_epoch(ROW)
    assert capsys.readouterr().out.startswith("epoch 3/5  train loss")


@pytest.mark.parametrize("mode", ["auto", "bar", "lines", "off"])
def test_when_a_bar_is_shown(monkeypatch, attach, mode):
    attach()
    assert shows_bar(mode) == (mode in ("auto", "bar"))
    monkeypatch.setenv("TERM", "dumb")
    assert shows_bar(mode) == (mode == "bar")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert shows_bar(mode) == (mode == "bar")


def test_runs_at_the_same_time_print_their_names_and_no_bars(monkeypatch, clock, attach, capsys):
    screen = attach()
    monkeypatch.setenv(RUNS_AT_ONCE, "2")
    display = Display("auto", epochs=5, steps=50, name="a-run")
    with display.steps(range(10), first_step=20, begun_at=0):
        display.show(1, 10, 10, 1.0, 10.0)
    display.end_epoch(ROW)
    assert re.findall("^a-run  epoch 3/5  (step|train)", capsys.readouterr().out, re.M) == [
        "step", "train",
    ]  # fmt: skip
    assert screen.getvalue() == ""


def test_nothing_is_shown_when_off_or_on_other_ranks(clock, attach, capsys):
    screen = attach()
    for display in (Display("off", 5, 50), Display("auto", 5, 50, rank=1)):
        with display.steps(range(10), first_step=0, begun_at=0):
            clock[0] += 100
            assert not display.due()
        display.end_epoch(ROW)
    assert capsys.readouterr().out == "" and screen.getvalue() == ""
