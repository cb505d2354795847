"""Evaluations inside an epoch, and runs that end at their target or after `max_steps`."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import engine.runs.epochs
import engine.training.step
import train
from engine.cli import exit_status
from engine.runs.history import evaluations
from engine.runs.records import load_records
from engine.runs.run import Run
from models import commit_batch_statistics
from tests.helpers.runs import STATE, assert_same, only_run, rows_of, state_of

# An epoch has 9 steps. Evaluations are after steps 4, 8 | 12, 16 | 20, 24 and 27, the last one.
STEPS = (4, 8, 12, 16, 20, 24, 27)
RUN = [
    "data=image_folder", "data.holdout=30", "model=resnet8", "epochs=3", "batch=10",
    "eval_every=4steps", "optimizer.base_lr=0.003", "threads=1", "deterministic=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(drawn_tree, tmp_path_factory):
    """Train the run to its last epoch; return overrides, directory, state, rows and target.

    The target is the hold-out accuracy in % after step 12, which no earlier evaluation reaches.
    """
    work = tmp_path_factory.mktemp("whole")
    run = [*RUN, f"data.root={drawn_tree}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setattr(sys, "argv", ["train.py", *run])
        assert exit_status(train.main) == 0
    directory = only_run(work)
    saved, rows = state_of(directory)
    found = {e.step: e.accuracy("holdout") for e in evaluations(rows_with_times(directory), 10)}
    early = [found[step] for step in STEPS if step < 12]
    assert max(early) < found[12]
    return SimpleNamespace(
        run=run, work=work, directory=directory, saved=saved, rows=rows, target=found[12]
    )


@pytest.fixture
def steps(monkeypatch):
    """Count optimizer steps; a signal is sent in the steps of `stop`, before they end."""
    counted = SimpleNamespace(done=0, stop=set())

    def commit(model):
        commit_batch_statistics(model)
        counted.done += 1
        if counted.done in counted.stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(engine.training.step, "commit_batch_statistics", commit)
    return counted


def rows_with_times(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def untimed(rows):
    """Return rows of `state_of` without the times of the evaluations inside an epoch."""
    return [
        {k: v for k, v in row.items() if k != "train_seconds"}
        | ({"evaluations": untimed(row["evaluations"])} if "evaluations" in row else {})
        for row in rows
    ]


def stopping(whole, *more):
    return [*whole.run, "stop_at_target=true", f"target_accuracy={whole.target!r}", *more]


def assert_resumed(got, expected):
    """Assert that the (checkpoint, rows) of two runs are equal, but for times."""
    for key in STATE:
        assert_same(got[0][key], expected[0][key])
    assert untimed(got[1]) == untimed(expected[1])


def test_evaluations_inside_an_epoch_are_kept_in_its_row(whole):
    rows = rows_with_times(whole.directory)
    assert [row["step"] for row in rows] == [9, 18, 27]
    inner = [[entry["step"] for entry in row["evaluations"]] for row in rows]
    assert inner == [[4, 8], [12, 16], [20, 24]]
    assert [row["holdout_accuracy"] is None for row in rows] == [True, True, False]
    for row in rows:
        seconds = [entry["train_seconds"] for entry in row["evaluations"]]
        assert 0 < seconds[0] < seconds[1] < row["train_seconds"]
        for entry in row["evaluations"]:
            assert set(entry) == {
                "step", "train_seconds", "test_accuracy", "test_loss", "holdout_accuracy",
                "holdout_loss",
            }  # fmt: skip
    found = list(evaluations(rows, 10))
    assert [e.step for e in found] == [4, 8, 9, 12, 16, 18, 20, 24, 27]
    assert found[3].examples == 90 + 30 and found[3].epochs == pytest.approx(1 + 3 / 9)
    assert found[3].train_seconds == pytest.approx(
        rows[0]["train_seconds"] + rows[1]["evaluations"][0]["train_seconds"]
    )


def test_a_run_ends_at_the_first_evaluation_at_or_above_its_target(whole, workplace, command):
    outcome = command("train.py", *stopping(whole))
    assert outcome.status == 0
    shown = f"\nends      at the first hold-out accuracy of {whole.target:g} % or more\n"
    assert shown in outcome.out
    directory = only_run(workplace)
    rows, summary = rows_with_times(directory), summary_of(directory)
    # The row of the steps before the end is the last one; the rest is as in the whole run.
    assert [row["step"] for row in rows] == [9, 12]
    assert untimed(state_of(directory)[1])[0] == untimed(whole.rows)[0]
    assert rows[1]["holdout_accuracy"] == whole.target and rows[1]["images"] == 30
    assert "evaluations" not in rows[1]
    assert summary["status"] == "completed" and summary["steps"] == 12
    assert summary["steps_to_target"] == 12 and summary["examples_to_target"] == 120
    seconds = sum(row["train_seconds"] for row in rows)
    assert summary["seconds_to_target"] == pytest.approx(seconds)
    assert summary["holdout_accuracy"] == whole.target
    again = command("train.py", *stopping(whole))
    assert again.status == 0 and "finished already" in again.out
    evaluated = command("val.py", f"checkpoint={directory}", "json=true")
    assert json.loads(evaluated.out)["test_accuracy"] == summary["test_accuracy"]
    assert json.loads(evaluated.out)["saved"] == "after step 12, in epoch 2 of 3"


@pytest.mark.parametrize(("most", "last"), [(6, 6), (9, 9), (30, 12)])
def test_max_steps_ends_a_run(whole, workplace, command, most, last):
    assert command("train.py", *stopping(whole, f"max_steps={most}")).status == 0
    directory = only_run(workplace)
    summary, rows = summary_of(directory), rows_with_times(directory)
    assert summary["status"] == "completed" and summary["steps"] == rows[-1]["step"] == last
    assert rows[-1]["holdout_accuracy"] is not None, "the end of a run is always evaluated"
    reached = last == 12
    for key in ("steps_to_target", "examples_to_target", "seconds_to_target"):
        assert (summary[key] is not None) == reached, key


def test_max_steps_leaves_the_schedule_as_it_is(whole, workplace, command):
    assert command("train.py", *whole.run, "max_steps=11").status == 0
    first, last = rows_with_times(only_run(workplace))
    assert untimed(state_of(only_run(workplace))[1])[0] == untimed(whole.rows)[0]
    # The rate falls from its peak at step 3 to 0 at step 26, counted from 0.
    assert (first["step"], last["step"]) == (9, 11)
    peak = 0.003 * (10 / 128) ** 0.5
    assert last["learning_rate"] == pytest.approx(peak * (1 - (10 - 3) / (26 - 3)))


def test_a_run_stopped_in_mid_epoch_resumes_to_the_bit(
    whole, workplace, command, steps, monkeypatch
):
    evaluate_splits, evaluated = engine.runs.epochs.evaluate_splits, []

    def interrupt(*arguments):
        evaluated.append(steps.done)
        if steps.done == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_splits(*arguments)

    start, started = Run.start, []

    def interrupt_start(self, *arguments, **options):
        started.append(steps.done)
        if started[-2:] == [9, 20]:
            os.kill(os.getpid(), signal.SIGTERM)
        start(self, *arguments, **options)

    monkeypatch.setattr(engine.runs.epochs, "evaluate_splits", interrupt)
    monkeypatch.setattr(Run, "start", interrupt_start)
    # At an evaluation, between two, at an epoch's last step, during an evaluation, then before
    # the next step, at the end.
    steps.stop = {4, 6, 9, 27}
    for stop in (4, 6, 9, 20, 20, 27):
        assert command("train.py", *whole.run).status == 143
        assert steps.done == stop
        assert summary_of(only_run(workplace))["status"] == "interrupted"
    assert command("train.py", *whole.run).status == 0
    assert steps.done == 27 and evaluated == list(STEPS), "nothing may be repeated"
    assert_resumed(state_of(only_run(workplace)), (whole.saved, whole.rows))
    again, once = summary_of(only_run(workplace)), summary_of(whole.directory)
    for key in ("steps", "test_accuracy", "best_test_accuracy", "best_epoch", "holdout_accuracy"):
        assert again[key] == once[key], key


def test_a_run_that_stops_at_its_target_resumes_to_the_bit(whole, workplace, command, steps):
    alone = stopping(whole, "group=alone")
    assert command("train.py", *alone).status == 0
    (expected,) = (workplace / "results" / "runs" / "alone").iterdir()
    steps.done, steps.stop = 0, {8, 10, 12}
    for stop in (8, 10):
        assert command("train.py", *stopping(whole)).status == 143
        assert steps.done == stop
    # The signal arrives in the run's last step, so that the run completes.
    assert command("train.py", *stopping(whole)).status == 0 and steps.done == 12
    assert_resumed(state_of(only_run(workplace)), state_of(expected))
    for key in ("status", "steps", "steps_to_target", "examples_to_target"):
        assert summary_of(only_run(workplace))[key] == summary_of(expected)[key]


def test_best_epochs_curves_and_tables_read_the_evaluations_inside_an_epoch(
    whole, command, monkeypatch
):
    monkeypatch.chdir(whole.work)
    best = json.loads(command("val.py", f"checkpoint={whole.directory}", "json=true").out)
    assert best["history"][0] == {
        "epoch": 1, "step": 4,
        "test_accuracy": rows_with_times(whole.directory)[0]["evaluations"][0]["test_accuracy"],
    }  # fmt: skip
    assert "1 (step 4): " in command("val.py", f"checkpoint={whole.directory}").out
    events = EventAccumulator(str(whole.directory))
    events.Reload()
    for tag in ("accuracy/holdout", "accuracy/test", "loss/test"):
        assert [event.step for event in events.Scalars(tag)] == list(STEPS), tag
    (record,) = load_records("default")
    first = record.first_at("holdout", whole.target)
    assert first is not None and (first.step, first.epoch, first.inside) == (12, 2, True)


def test_the_columns_to_the_target_read_the_evaluations_inside_an_epoch(whole, workplace, command):
    target = f"target_accuracy={whole.target!r}"
    assert command("train.py", "-m", *whole.run, "data.test_size=0", target).status == 0
    (row,) = rows_of(workplace / "results" / "default" / "table.csv")
    assert (row["steps_to_target_mean"], row["examples_to_target_mean"]) == ("12.0", "120.0")
    page = (workplace / "results" / "default" / "README.md").read_text()
    assert f"First epoch at {whole.target:.2f} %" in page and "| 2 |" in page
