"""A loss, gradient or state that is not finite ends the run as diverged."""

import json
import math

import pytest
import torch

import engine.training.loop
import engine.training.step
from models import commit_batch_statistics
from models.batch_norm import BatchNorm2d
from tests.helpers.runs import only_run, rewrite

CHANCE = pytest.approx(100 / 3)


def spoil_variance(value):
    def spoil(model):
        first = next(m for m in model.modules() if isinstance(m, BatchNorm2d))
        first.running_var[0] = value

    return spoil


def spoil_weight(model):
    next(model.parameters()).data[0].fill_(math.nan)


SPOILERS = {
    "a weight": spoil_weight,
    "a running variance": spoil_variance(math.nan),
    "a variance that overflows": spoil_variance(math.inf),
}


def assert_diverged(workplace, command, outcome, steps):
    assert outcome.status == 0, outcome
    directory = only_run(workplace)
    text = (directory / "summary.json").read_text() + (directory / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["test_accuracy"]) == ("diverged", CHANCE)
    assert summary["steps"] == steps
    evaluated = command("val.py", f"checkpoint={directory}", "json=true")
    result = json.loads(evaluated.out)
    assert (result["diverged"], result["test_accuracy"]) == (True, CHANCE)
    return torch.load(directory / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize(
    ("what", "step", "steps"),
    [
        # The next loss shows a weight. The end of the epoch shows state that training does not use.
        ("a weight", 2, 3),
        ("a weight", 8, 8),
        ("a running variance", 2, 4),
        ("a variance that overflows", 8, 8),
    ],
)
def test_a_state_that_is_not_finite(small, workplace, command, monkeypatch, what, step, steps):
    done = []

    def commit(model):
        commit_batch_statistics(model)
        done.append(1)
        if len(done) == step:
            SPOILERS[what](model)

    monkeypatch.setattr(engine.training.step, "commit_batch_statistics", commit)
    outcome = command("train.py", *small)
    assert_diverged(workplace, command, outcome, steps)


def test_a_last_update_that_makes_the_loss_infinite(small, workplace, command):
    wild = ["optimizer.lr_scaling=none", "optimizer.base_lr=1e38", "scheduler=constant"]
    outcome = command(
        "train.py", *small, *wild, "scheduler.warmup_fraction=0", "epochs=1", "batch=120"
    )
    assert_diverged(workplace, command, outcome, 1)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_no_update_uses_values_that_are_not_finite(small, workplace, command, monkeypatch, what):
    accumulate, weights = engine.training.step.accumulate_gradients, []

    def spoil(model, *rest, **options):
        loss, correct, norm = accumulate(model, *rest, **options)
        weights.append(next(model.parameters()).detach().clone())
        if len(weights) == 3 and what == "loss":
            loss = loss * math.nan
        elif len(weights) == 3:
            next(model.parameters()).grad[0].fill_(math.inf)
        return loss, correct, norm

    monkeypatch.setattr(engine.training.step, "accumulate_gradients", spoil)
    saved = assert_diverged(workplace, command, command("train.py", *small), 3)
    assert len(weights) == 3 and not torch.equal(weights[1], weights[2])
    assert torch.equal(next(iter(saved["model"].values())), weights[2])


@pytest.mark.parametrize("part", ["model", "optimizer", "ema"])
def test_a_resumed_run_whose_state_is_not_finite(small, workplace, command, monkeypatch, part):
    train_epoch = engine.training.loop.train_epoch

    def stop(*arguments):
        raise KeyboardInterrupt

    epochs = iter([train_epoch, stop])
    with monkeypatch.context() as patch:
        patch.setattr(engine.training.loop, "train_epoch", lambda *rest: next(epochs)(*rest))
        assert command("train.py", *small, "ema.decay=0.9").status == 130
    path = only_run(workplace) / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    if part == "optimizer":
        content[part]["state"][0]["momentum_buffer"].fill_(math.nan)
    else:
        key = next(key for key in content[part] if key.endswith("running_var"))
        content[part][key][0] = math.inf
    rewrite(path, content)
    monkeypatch.setattr(
        engine.training.loop, "train_epoch", lambda *_: pytest.fail("it kept training")
    )
    outcome = command("train.py", *small, "ema.decay=0.9")
    assert_diverged(workplace, command, outcome, 4)
