"""Compiling and warm-up: start-up, not training, and nothing that training would notice."""

import json
import signal

import pytest
import torch
from torch import nn

import engine.runs.run
from engine.system.runtime import Runtime
from engine.system.signals import Pauses
from engine.training.loop import train_epoch
from engine.training.metrics import PartialEpoch
from engine.training.step import Step
from tests.helpers.runs import TOOLBOX, assert_same, config, only_run, state_of
from tests.helpers.training import setup_of

COMPILED = ["compile=true", "deterministic=true", "epochs=3"]


class Shadow(nn.Module):
    """A stand-in for a compiled model, which draws random numbers as it is compiled."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.sizes = []

    def forward(self, images):
        if len(images) not in self.sizes:
            self.sizes.append(len(images))
            torch.rand(3)
        return self.model(images)


@pytest.fixture
def not_compiled(monkeypatch):
    """Let compile=true compile nothing; return the models that it was asked for."""
    models = []

    def compile(self, model):
        models.append(Shadow(model))
        return models[-1]

    monkeypatch.setattr(Runtime, "compile", compile)
    return models


def make_step(*overrides, count=90):
    setup = setup_of(config("batch=40", "model=resnet8", "epochs=2", *overrides), count)
    torch.manual_seed(0)
    state = setup.make_state()
    return setup.make_step(state, setup.make_images()), state


def test_a_run_ends_bit_equal_with_and_without_warm_up_and_resumed(
    small, workplace, command, monkeypatch, not_compiled
):
    run, ends = [*small, *COMPILED, *TOOLBOX, "micro_batch=16"], []
    with monkeypatch.context() as patch:
        patch.setattr(Step, "warm_up", lambda self, draws: None)
        patch.setattr(Shadow, "forward", lambda self, images: self.model(images))
        assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    ends.append(state_of(directory))
    assert command("train.py", *run, "resume=false").status == 0
    ends.append(state_of(directory))
    # Of 120 images 32 are a batch, in passes of 16; the last 24 of an epoch are 16 and 8.
    assert not_compiled[-1].sizes == [16, 8]
    calls = iter(range(100))

    def due(self):
        # It is asked before each of an epoch's four steps and twice at the epoch's end.
        if next(calls) == 6 + 2:
            self.signal = signal.SIGINT
        return self.signal is not None

    with monkeypatch.context() as patch:
        patch.setattr(Pauses, "due", due)
        assert command("train.py", *run, "resume=false").status == 130
    resumed = command("train.py", *run)
    assert resumed.status == 0
    assert "resuming  after epoch 1 of 3 and step 2 of 4 of the next" in resumed.out
    ends.append(state_of(directory))
    for saved, rows in ends[1:]:
        for key in ("model", "optimizer", "scheduler", "ema", "noise_scale", "random_states"):
            assert_same(saved[key], ends[0][0][key])
        assert rows == ends[0][1]


@pytest.mark.parametrize(
    ("overrides", "count", "expected"),
    [
        ([], 90, [40, 10]),
        (["micro_batch=16"], 90, [14, 13, 10]),
        (["micro_batch=16"], 80, [14, 13]),
        (["micro_batch=16", "model.ghost_batch=8"], 92, [16, 8, 12]),
    ],
)
def test_every_size_of_pass_is_warmed_up_and_no_other(
    not_compiled, monkeypatch, overrides, count, expected
):
    step, state = make_step("compile=true", *overrides, count=count)
    draws = step.images.draw_epoch(0, 1)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    drawn = torch.get_rng_state()
    step.model.train()
    step.warm_up(draws)
    (model,) = not_compiled
    assert model.sizes == expected
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_same(dict(state.model.state_dict()), before)
    assert all(p.grad is None for p in step.parameters) and not step.optimizer.state
    assert not any(b.any() for name, b in state.model.named_buffers() if name.endswith("sums"))
    train_epoch(step, state.scheduler, draws)
    assert sorted(model.sizes) == sorted(expected)
    monkeypatch.setattr(Shadow, "forward", lambda *_: pytest.fail("warmed up twice"))
    step.warm_up(draws)


def test_a_rank_warms_up_its_own_passes_as_often_as_the_others():
    plan = setup_of(config("batch=41", "micro_batch=7"), 87).plan
    two = plan.__class__(**{**vars(plan), "world_size": 2})
    assert two.rank_passes(41) == [[7, 7, 7], [7, 7, 6]] and two.rank_passes(5) == [[3], [2]]
    assert two.distinct_passes(0) == [7, 7, 3] and two.distinct_passes(1) == [7, 6, 2]
    ghosts = plan.__class__(**{**vars(plan), "world_size": 2, "ghost_batch": 7, "batch": 35})
    assert ghosts.rank_passes(35) == [[7, 7, 7], [7, 7]]
    assert ghosts.distinct_passes(0)[:2] == [7, 7] and ghosts.distinct_passes(1)[:1] == [7]


def test_start_up_counts_in_no_epochs_training_seconds(not_compiled, monkeypatch):
    """By a clock that knows no other time than the forward passes'."""
    now = [0.0]
    monkeypatch.setattr(Runtime, "wall_clock", lambda self: now[0])
    step, state = make_step("compile=true")
    forward = Shadow.forward

    def timed(self, images):
        now[0] += 1.0 if len(images) in self.sizes else 100.0
        return forward(self, images)

    monkeypatch.setattr(Shadow, "forward", timed)
    begun = PartialEpoch.of_no_steps(3, torch.device("cpu"))
    begun.startup_seconds = 7.0
    epochs = [
        train_epoch(step, state.scheduler, step.images.draw_epoch(0, e), None, None, part)
        for e, part in ((0, begun), (1, None))
    ]
    assert [e.startup_seconds for e in epochs] == [207.0, 0.0]
    assert [e.seconds for e in epochs] == [3.0, 3.0]


def test_what_is_not_compiled_has_no_start_up(monkeypatch):
    step, state = make_step()
    assert train_epoch(step, state.scheduler, step.images.draw_epoch(0, 0)).startup_seconds == 0


def test_a_resumed_run_adds_its_start_up(small, workplace, command, monkeypatch, not_compiled):
    """Each process starts up once; an epoch of an earlier version has none."""
    warm_up = Step.warm_up

    def slow(self, draws):
        if self.cold:
            self.startup_seconds += 1000.0
        warm_up(self, draws)

    monkeypatch.setattr(Step, "warm_up", slow)
    record_epoch = engine.runs.run.Run.record_epoch

    def stop(self, row, trained):
        record_epoch(self, row, trained)
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    run = [*small, "epochs=3", "compile=true"]
    with monkeypatch.context() as patch:
        patch.setattr(engine.runs.run.Run, "record_epoch", stop)
        assert command("train.py", *run).status == 130
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    summary = json.loads((directory / "summary.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["startup_seconds"] // 1000 for row in rows] == [1, 1, 0]
    assert summary["startup_seconds"] == sum(row["startup_seconds"] for row in rows)
    assert summary["train_seconds"] < 1000
