"""Estimates of a run's memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import engine.training.memory
from engine.system.runtime import Runtime
from engine.training.build import build_model
from engine.training.memory import saved_bytes
from tests.helpers import files_below
from tests.helpers.runs import config

MIB = 2**20


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_a_pass_of_a_few_images_estimates_the_full_trace(name):
    made, runtime = config(f"model={name}").model, Runtime(torch.device("cpu"), "fp32", 1)
    with FakeTensorMode():
        expected = saved_bytes(build_model(made, 10), 512, runtime)
    few = saved_bytes(build_model(made, 10), engine.training.memory.MEASURED, runtime)
    assert few * 512 / engine.training.memory.MEASURED == pytest.approx(expected, rel=0.02)


def test_a_run_that_cannot_fit_is_refused_before_it_starts(small, workplace, command, monkeypatch):
    monkeypatch.setattr(engine.training.memory, "available_bytes", lambda: 5 * MIB)
    large = [*small, "batch=120", "precision=fp32"]
    outcome = command("train.py", *large, "micro_batch=100")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: micro_batch=100: the run needs about ")
    # A step has two passes of 60 images, and each image needs 0.57 MiB.
    assert "a pass of 60 images 3" in outcome.err and "5 MiB are available" in outcome.err
    assert not files_below(workplace)
    # The same batch fits in smaller passes.
    assert command("train.py", *large, "micro_batch=4").status == 0


def test_the_check_does_not_change_the_random_state(small, workplace, command, monkeypatch):
    def first_loss(group):
        assert command("train.py", *small, "deterministic=true", f"group={group}").status == 0
        (directory,) = (workplace / "results" / "runs" / group).iterdir()
        saved = torch.load(directory / "checkpoint.pt", weights_only=True)
        return saved["history"][0]["train_loss"]

    checked = first_loss("checked")
    monkeypatch.setattr(engine.training.memory, "available_bytes", lambda: None)
    assert first_loss("unchecked") == checked
