import dataclasses
import json
import math
import sys

import pytest
import torch

import engine.data.dataset
from engine.cli import exit_status
from engine.data.augment import Normalization, TrainingPictures
from engine.sweeps.lr_range import RangeTest, endless_batches, growing_rates, run_range_test
from engine.system.runtime import start_runtime
from engine.training.build import build_optimizer
from engine.training.plan import base_lr_for, make_plan
from engine.training.step import NO_CLIP, Step
from scripts import lr_range
from tests.helpers import Outcome, files_below
from tests.helpers.runs import config
from tests.helpers.training import make_plain, pictures_of


@pytest.fixture
def lr_range_command(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lr_range", *map(str, arguments)])
        capsys.readouterr()
        status = exit_status(lr_range.main)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


def test_rates_grow_by_one_factor():
    assert growing_rates(0.001, 10.0, 5) == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0])


def test_the_suggestion_is_the_rate_of_the_lowest_loss():
    # The loss is level to 0.01, falls as a sine to its lowest at 1, and turns.
    rates = growing_rates(1e-4, 100.0, 121)
    losses = []
    for rate in rates:
        x = min(max((math.log10(rate) + 2) / 2, 0.0), 1.0)
        losses.append(2 + math.cos(math.pi * x) + max(0.0, math.log10(rate)) ** 2)
    made = RangeTest(rates, losses, "")
    assert made.rates[made.steepest()] == pytest.approx(0.1, rel=0.05)
    assert made.suggested() == pytest.approx(1.0, rel=0.15) and not made.falls_to_the_end()
    assert RangeTest(rates[:80], losses[:80], "").falls_to_the_end()


def test_a_loss_that_never_falls_suggests_nothing():
    rates = growing_rates(1e-4, 1.0, 30)
    assert RangeTest(rates, [float(step) for step in range(30)], "").suggested() is None


def make_test(rates, *overrides, most=4.0):
    made, split = config("batch=40", "epochs=1", *overrides), pictures_of(90)
    plan, runtime = make_plan(made, 90), start_runtime("cpu", "fp32", 1, False, 0)
    pictures = TrainingPictures(split, Normalization.of(split.images), runtime.device)
    model = make_plain()
    optimizer = build_optimizer(made.optimizer, NO_CLIP, model, plan.peak_lr)
    tested = run_range_test(Step(model, optimizer, pictures, plan, runtime), 0, rates, most)
    return tested, model, optimizer


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_each_step_is_taken_at_its_rate(scale):
    rates = [0.1, 0.2, 0.4]
    plain = ("optimizer.momentum=0", "optimizer.weight_decay=0")
    tested, model, _ = make_test(rates, *plain, f"optimizer.bias_lr_scale={scale}")
    split = pictures_of(90)
    pictures = TrainingPictures(split, Normalization.of(split.images), torch.device("cpu"))
    reference, losses = make_plain(), []
    for rate, (batch, draws) in zip(rates, endless_batches(pictures, 40, 0), strict=False):
        images, labels = pictures.batch(batch, draws)
        loss = torch.nn.functional.cross_entropy(reference(images), labels)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, reference.parameters())
        for (name, p), g in zip(reference.named_parameters(), gradients, strict=True):
            p.data -= rate * (scale if name.endswith("bias") else 1.0) * g
    assert tested.losses == pytest.approx(losses, rel=1e-5) and tested.rates == rates
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_batches_are_whole_and_go_on_into_the_next_epoch():
    split = pictures_of(90)
    pictures = TrainingPictures(split, Normalization.of(split.images), torch.device("cpu"))
    batches = endless_batches(pictures, 40, 0)
    seen = [next(batches)[0] for _ in range(4)]
    assert [len(batch) for batch in seen] == [40] * 4
    assert torch.equal(seen[2], pictures.draw_epoch(0, 2).order[:40])


def test_it_stops_where_the_loss_turns_or_is_no_longer_finite():
    turned, _, _ = make_test(growing_rates(0.01, 1e4, 100), most=1.5)
    assert turned.stopped == "the loss was 1.5 times its best"
    assert len(turned.rates) == len(turned.losses) < 100
    lost, _, _ = make_test([0.1, 0.1, 1e38, 1e38, 1e38], most=1e30)
    assert lost.stopped == "the loss was no longer finite"
    assert all(map(math.isfinite, lost.losses))


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=lars"],
        ["optimizer=sgd"],
        ["optimizer.lr_scaling=none"],
        ["optimizer.lr_scaling=none", "scheduler.warmup_multiplier=8"],
        ["scheduler=onecycle", "optimizer.base_batch=256"],
        ["+experiment=attempt2"],
    ],
)
def test_the_pasted_rate_has_the_suggested_peak(overrides):
    made = config("batch=2048", *overrides)
    pasted = config("batch=2048", *overrides, f"optimizer.base_lr={base_lr_for(made, 1.7)!r}")
    assert make_plan(pasted, 50_000).peak_lr == pytest.approx(1.7)


def test_a_test_from_the_command_line(small, workplace, lr_range_command, monkeypatch):
    load = engine.data.dataset.load_data

    # The test split is not there: to look at it would raise.
    monkeypatch.setattr(
        engine.data.dataset, "load_data", lambda c: dataclasses.replace(load(c), test=None)
    )
    run = [*small, "optimizer=lars", "batch=60", "range.steps=40"]
    outcome = lr_range_command(*run)
    assert outcome.status == 0, outcome.err
    (path,) = workplace.glob("results/lr_range/*.json")
    assert path.with_suffix(".png").stat().st_size > 0
    assert len(files_below(workplace)) == 4  # two folders, two files
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


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("optimizer=adam", "optimizer=adam: must be one of lars, sgd"),
        ("batch=121", "batch=121: must be at most the training split's 120 images"),
        ("range.steps=5", "range.steps=5: must be a whole number at least 20"),
        ("range.low=abc", "range.low=abc: must be a number above 0 or null"),
        ("range.lwo=1", "range.lwo=1: unknown key; did you mean range.low"),
        ("range.high=1e-9", "range.high=1e-09: must be above range.low="),
        ("range.low=1e30", "range.high=5: must be above range.low=1e+30"),
        ("plan=true", "plan=true: scripts.lr_range has no dry run"),
        ("-m", "scripts.lr_range: tests one choice of keys at a time"),
        ("group=..", "group=..: must be letters"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    small, workplace, lr_range_command, argument, told
):
    key = argument.partition("=")[0]
    outcome = lr_range_command(*[o for o in small if not o.startswith(f"{key}=")], argument)
    assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err
    assert told in outcome.err and outcome.out == ""
    assert not files_below(workplace)


def test_rates_far_too_high_are_told(small, workplace, lr_range_command):
    outcome = lr_range_command(*small, "range.low=1e20", "range.high=1e25")
    assert outcome.status == 2 and outcome.err.startswith("error: range.low=1e+20: must be lower")
    assert not files_below(workplace)


def test_help_tells_of_its_keys(lr_range_command):
    outcome = lr_range_command("--help")
    assert outcome.status == 0
    for key in dataclasses.fields(lr_range.Arguments):
        assert f"range.{key.name} " in outcome.out
