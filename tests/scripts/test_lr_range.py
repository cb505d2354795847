"""The command scripts.lr_range."""

import dataclasses
import json
import sys

import pytest

import engine.data.dataset
from engine.cli import exit_status
from engine.config.optimizers import TITLES
from engine.training.plan import make_plan
from scripts import lr_range
from tests.helpers import Outcome, files_below
from tests.helpers.runs import config


@pytest.fixture
def lr_range_command(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lr_range", *map(str, arguments)])
        capsys.readouterr()
        status = exit_status(lr_range.main)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.mark.drawn
def test_the_command_writes_and_prints_a_rate(small, workplace, lr_range_command, monkeypatch):
    load = engine.data.dataset.load_data

    # There is no test split, so any use of it would raise.
    monkeypatch.setattr(
        engine.data.dataset, "load_data", lambda c: dataclasses.replace(load(c), test=None)
    )
    run = [*small, "optimizer=lars", "batch=60", "range.steps=40"]
    outcome = lr_range_command(*run)
    assert outcome.status == 0, outcome.err
    (path,) = workplace.glob("results/lr_range/*.json")
    assert path.with_suffix(".png").stat().st_size > 0
    assert len(files_below(workplace)) == 5  # two folders, three files
    found = json.loads(path.read_text())
    assert found["learning_rate"] == sorted(found["learning_rate"])
    lowest = found["smoothed_loss"].index(min(found["smoothed_loss"]))
    assert found["suggested_peak_lr"] == found["learning_rate"][lowest]
    assert found["steepest_loss_lr"] <= found["suggested_peak_lr"]
    assert outcome.out.splitlines()[-1] == f"optimizer.base_lr={found['suggested_base_lr']:g}"
    made = config("optimizer=lars", "batch=60", outcome.out.splitlines()[-1])
    assert make_plan(made, 120).peak_lr == pytest.approx(found["suggested_peak_lr"], rel=0.01)
    assert found["command"].startswith("python -m scripts.lr_range data=image_folder")
    numbers = path.read_text()
    assert lr_range_command(*run, "group=other").status == 0
    (other,) = workplace.glob("results/other/*.json")
    assert json.loads(other.read_text())["train_loss"] == json.loads(numbers)["train_loss"]


def test_muons_two_rates_keep_their_ratio(small, workplace, lr_range_command):
    outcome = lr_range_command(*small, "optimizer=muon", "batch=60", "range.steps=20")
    assert outcome.status == 0, outcome.err
    base, inner = outcome.out.splitlines()[-1].split()
    made = config("optimizer=muon", base, inner).optimizer
    assert made.base_lr != 0.02 and made.inner_lr_scale == pytest.approx(0.015, rel=0.01)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer=adam", f"optimizer=adam: must be one of {', '.join(sorted(TITLES))}"),
        ("batch=121", "batch=121: must be at most the training split's 120 images"),
        ("range.steps=5", "range.steps=5: must be a whole number at least 20"),
        ("range.low=abc", "range.low=abc: must be a number above 0 or null"),
        ("range.lwo=1", "range.lwo=1: unknown key; did you mean range.low"),
        ("range.high=1e-9", "range.high=1e-09: must be above range.low="),
        ("range.low=1e30", "range.high=5: must be above range.low=1e+30"),
        ("plan=true", "plan=true: scripts.lr_range has no dry run"),
        ("-m", "scripts.lr_range: tests one configuration at a time"),
        ("group=..", "group=..: must be letters"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    small, workplace, lr_range_command, argument, message
):
    key = argument.partition("=")[0]
    outcome = lr_range_command(*[o for o in small if not o.startswith(f"{key}=")], argument)
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err
    assert message in outcome.err and outcome.out == ""
    assert not files_below(workplace)


def test_rates_that_are_far_too_high_are_refused(small, workplace, lr_range_command):
    outcome = lr_range_command(*small, "range.low=1e20", "range.high=1e25")
    assert outcome.status == 2 and outcome.err.startswith("error: range.low=1e+20: must be lower")
    assert not files_below(workplace)


def test_help_lists_its_keys(lr_range_command):
    outcome = lr_range_command("--help")
    assert outcome.status == 0
    for key in dataclasses.fields(lr_range.Arguments):
        assert f"range.{key.name} " in outcome.out
