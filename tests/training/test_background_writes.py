"""Checkpoints are written in the background, with the state at the time of the call."""

import copy
import errno
import json
import threading

import pytest
import torch

import engine.training.checkpoint
from engine.training.checkpoint import (
    background_writes,
    load_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from engine.training.loop import Progress
from tests.helpers.runs import config, only_run
from tests.helpers.training import setup_of


def test_a_checkpoint_has_the_state_at_the_time_of_the_call(tmp_path, monkeypatch):
    made = config("model=resnet8", "batch=32", "ema.decay=0.5", "noise_scale=true")
    setup = setup_of(made, 64)
    state = setup.make_state()
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    expected, history = copy.deepcopy(state.copy()), [{"epoch": 1}]
    release = threading.Event()

    def delayed(path, content):
        assert release.wait(60)
        write_checkpoint(path, content)

    monkeypatch.setattr(engine.training.checkpoint, "write_checkpoint", delayed)
    path = tmp_path / "checkpoint.pt"
    with background_writes() as write:
        save_checkpoint(path, setup, state, Progress(2, history), write)
        state.optimizer.step()
        state.scheduler.step()
        state.ema.update_parameters(state.model)
        state.noise.sums.fill_(7.0)
        history.append({"epoch": 2})
        assert not path.exists()
        release.set()
    saved = load_checkpoint(path)
    assert saved.history == [{"epoch": 1}]
    parts = {"model": saved.model, "ema": saved.ema, "noise_scale": saved.noise_scale}
    for name, part in parts.items():
        for key, value in part.items():
            torch.testing.assert_close(value, expected[name][key], rtol=0, atol=0)
    for key, kept in saved.optimizer["state"].items():
        buffer = expected["optimizer"]["state"][key]["momentum_buffer"]
        assert torch.equal(kept["momentum_buffer"], buffer)
    assert saved.scheduler["last_epoch"] == 0


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_failed_write_ends_the_run(small, workplace, command, monkeypatch, epoch):
    def fill(path, content):
        if content["epoch"] == epoch:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_checkpoint(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(engine.training.checkpoint, "write_checkpoint", fill)
        outcome = command("train.py", *small)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: [Errno 28] No space left on device")
    summary = json.loads((only_run(workplace) / "summary.json").read_text())
    assert summary["status"] == "failed"
    again = command("train.py", *small)
    assert again.status == 0 and ("resuming  after epoch 1" in again.out) == (epoch == 2)


def test_one_file_is_written_at_a_time():
    active, counts = [], []

    def write():
        active.append(1)
        counts.append(len(active))
        threading.Event().wait(0.05)
        active.pop()

    with background_writes() as start:
        for _ in range(3):
            start(write)
    assert counts == [1, 1, 1]
