"""A replayed step equals an eager step, tested on the CPU with a stand-in for CUDA graphs.

`Tape` records a step's operations and repeats them on the same tensors without the step's Python
code. It freezes what a CUDA graph freezes: values read by the host, a learning rate passed as a
number, state kept in Python.
"""

import contextlib
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import engine.training.cuda_graph
import engine.training.step
from engine.config.optimizers import SGDConfig
from engine.config.schema import EMAConfig, ModelConfig
from engine.data.augment import Normalization, TrainingImages
from engine.system.runtime import Runtime, start_runtime
from engine.training.build import build_ema, build_model, build_optimizer
from engine.training.loop import train_epoch
from engine.training.noise_scale import NoiseScale
from engine.training.plan import build_scheduler, make_plan
from engine.training.step import Step
from models.batch_norm import batch_norms
from tests.helpers.runs import config, only_run
from tests.helpers.training import SETTINGS, images_of


class Tape(TorchDispatchMode):
    """A stand-in for a CUDA graph: records operations and repeats them on the same tensors."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        self.operations.append((function, arguments, keywords or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, arguments, keywords, result in self.operations:
            again = function(*arguments, **keywords)
            pairs = [(result, again)]
            if isinstance(result, tuple | list):
                pairs = zip(result, again, strict=True)
            for old, new in pairs:
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def capture_on_tape(function):
    """Run and record a function; return the replay function and the result."""
    with Tape() as tape:
        result = function()
    return tape.replay, result


class Restoring:
    """Capture a step on a tape and restore its state, because a CUDA capture computes nothing."""

    def __init__(self, step):
        self.step = step

    def tensors(self):
        step = self.step
        states = [v for s in step.optimizer.state.values() for v in s.values()]
        averaged = [] if step.ema is None else [*step.ema.parameters(), *step.ema.buffers()]
        sums = [] if step.noise is None else [step.noise.sums]
        model = [*step.model.parameters(), *step.model.buffers()]
        return [t for t in [*model, *states, *averaged, *sums] if isinstance(t, torch.Tensor)]

    def capture(self, function):
        before = [t.detach().clone() for t in self.tensors()]
        replay, result = capture_on_tape(function)
        with torch.no_grad():
            for tensor, value in zip(self.tensors(), before, strict=True):
                tensor.copy_(value)
        return replay, result


@pytest.fixture
def captured(monkeypatch):
    """Capture steps on the CPU on tapes; return a list with one entry per capture."""
    captures = []
    init = Step.__init__

    def remember(step, *arguments, **options):
        init(step, *arguments, **options)

        def capture(function):
            captures.append(step)
            return Restoring(step).capture(function)

        monkeypatch.setattr(engine.training.cuda_graph, "capture", capture)

    monkeypatch.setattr(Step, "__init__", remember)
    monkeypatch.setattr(engine.training.step, "captures", lambda runtime: True)
    return captures


class MetaRuntime(Runtime):
    """A runtime on torch's meta device, which has no autocast."""

    def autocast(self):
        return contextlib.nullcontext()


def make_step(overrides, device="cpu", epochs=3):
    """Return a step for batches of 32 out of 150 images of 16 x 16, and its schedule."""
    made = config("batch=32", f"epochs={epochs}", "threads=1", *overrides)
    torch.manual_seed(0)
    model = build_model(ModelConfig("resnet8", "default", made.model.ghost_batch), 10)
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    split = images_of(150, side=16)
    if device != "cpu":
        runtime, model = MetaRuntime(torch.device(device), "fp32", 1), model.to(device)
    training_images = TrainingImages(split, Normalization.of(split.images), runtime.device)
    plan = make_plan(made, len(split))
    optimizer = build_optimizer(made.optimizer, made.clip, model, plan.optimizer_lr)
    for group in optimizer.param_groups:
        if made.optimizer.name == "lars" or device != "cpu":
            # Like the CUDA path, this one keeps no numbers on the host.
            group["foreach"], group["fused"] = True, None
    scheduler = build_scheduler(made.scheduler, plan, optimizer)
    noise = NoiseScale(runtime.device) if made.noise_scale else None
    step = Step(
        model, optimizer, training_images, plan, runtime, made.clip, made.loss.label_smoothing,
        build_ema(EMAConfig(made.ema.decay), model), noise,
        cuda_graph=made.optimizer.cuda_graph,
    )  # fmt: skip
    return step, scheduler


def train(overrides, log_layers_every=None, epochs=3):
    step, scheduler = make_step(overrides, epochs=epochs)
    outcomes = [
        train_epoch(step, scheduler, step.images.draw_epoch(0, e), None, log_layers_every)
        for e in range(epochs)
    ]
    ema = {} if step.ema is None else {f"ema.{k}": v for k, v in step.ema.state_dict().items()}
    buffers = {
        f"{name}.{i}": value
        for i, state in enumerate(step.optimizer.state.values())
        for name, value in state.items()
    }
    return step, outcomes, {**step.model.state_dict(), **ema, **buffers}


def test_an_optimizer_that_no_graph_captures_steps_eagerly(captured, monkeypatch, capsys):
    monkeypatch.setattr(SGDConfig, "cuda_graph", False)
    step, _, _ = train(["optimizer=sgd"])
    assert captured == [] and step.graph is None
    assert capsys.readouterr().err == "steps run eagerly: no CUDA graph captures SGD\n"


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)
def test_replayed_steps_equal_eager_steps(captured, monkeypatch, overrides):
    replays = []
    call = engine.training.cuda_graph.CapturedStep.__call__

    def counted(graph, *arguments):
        replays.append(1)
        return call(graph, *arguments)

    monkeypatch.setattr(engine.training.cuda_graph.CapturedStep, "__call__", counted)
    step, graphed, state = train(overrides)
    assert step.ema is None or int(step.ema.n_averaged) == 15
    # 3 epochs have 4 full batches and a short one each; the first 3 full batches run eagerly.
    assert len(captured) == 1 and len(replays) == 12 - 3
    monkeypatch.setattr(engine.training.step, "captures", lambda runtime: False)
    _, eager, expected = train(overrides)
    for name, value in expected.items():
        # A captured step has its learning rate in fp32.
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for one, other in zip(graphed, eager, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.gradient_norms == pytest.approx(other.gradient_norms, rel=1e-3)
        assert one.rates == other.rates and one.accuracy == other.accuracy
        for left, right in zip(one.noise, other.noise, strict=True):
            assert left.gradient_variance == pytest.approx(right.gradient_variance, rel=1e-3)


def test_the_learning_rate_is_a_tensor_before_the_capture_too(captured):
    """Otherwise a resumed run would round the rates of other steps to fp32."""
    step, _ = make_step(["optimizer=sgd"])
    assert step.graph.captured is None
    for group in step.optimizer.param_groups:
        assert group["lr"].dtype is torch.float32


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_steps_whose_layers_are_logged_are_not_replayed(captured, name):
    _, outcomes, _ = train([f"optimizer={name}"], log_layers_every=4)
    assert len(captured) == 1
    assert [n for o in outcomes for n, _ in o.layers] == [4, 8, 12]


def test_the_seconds_of_a_capture_are_start_up(captured, monkeypatch):
    """By a clock that knows no other time than gradients' and the capture's."""
    now, gradients = [0.0], Step.gradients
    monkeypatch.setattr(Runtime, "wall_clock", lambda self: now[0])
    call = engine.training.cuda_graph.CapturedStep.__call__

    def timed(seconds, function):
        def run(*arguments):
            now[0] += seconds
            return function(*arguments)

        return run

    monkeypatch.setattr(Step, "gradients", timed(1.0, gradients))
    monkeypatch.setattr(engine.training.cuda_graph.CapturedStep, "__call__", timed(1.0, call))
    step, scheduler = make_step(["optimizer=sgd"])
    capture = timed(99.0, engine.training.cuda_graph.capture)
    monkeypatch.setattr(engine.training.cuda_graph, "capture", capture)
    epochs = [train_epoch(step, scheduler, step.images.draw_epoch(0, e)) for e in range(2)]
    # Capturing calls `gradients` once more than there are steps.
    assert len(captured) == 1
    assert [epoch.startup_seconds for epoch in epochs] == [100.0, 0.0]
    assert [epoch.seconds for epoch in epochs] == [5.0, 5.0]


def test_steps_run_eagerly_after_a_failed_capture(captured, monkeypatch, capsys):
    update = Step.update_on_device

    def fail(function):
        def refuse(step):
            # A failed capture leaves tensors behind that were never computed.
            for layer in batch_norms(step.model):
                layer.sums.fill_(math.nan)
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

        with monkeypatch.context() as patch:
            patch.setattr(Step, "update_on_device", refuse)
            return function()

    step, scheduler = make_step(["optimizer=lars"])
    monkeypatch.setattr(engine.training.cuda_graph, "capture", fail)
    first = train_epoch(step, scheduler, step.images.draw_epoch(0, 0))
    assert Step.update_on_device is update and step.graph.failed
    printed = capsys.readouterr().err
    assert printed.startswith("steps run eagerly: ") and printed.count("\n") == 1
    assert "operation not permitted when stream is capturing" in printed
    monkeypatch.setattr(engine.training.step, "captures", lambda runtime: False)
    plain, scheduler = make_step(["optimizer=lars"])
    again = train_epoch(plain, scheduler, plain.images.draw_epoch(0, 0))
    assert first.losses == pytest.approx(again.losses, rel=1e-5)
    for buffer, expected in zip(step.model.buffers(), plain.model.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_a_captured_run_has_plain_numbers(small, workplace, command, captured):
    run = [*small, "optimizer=lars", "epochs=3"]
    assert command("train.py", *run).status == 0
    assert captured
    state = torch.load(only_run(workplace) / "checkpoint.pt", weights_only=True)["optimizer"]
    for group in state["param_groups"]:
        assert type(group["lr"]) is float and group["capturable"] is False


FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


class Watch(TorchDispatchMode):
    """Fail on operations that synchronize host and device."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        given = [a for a in arguments if isinstance(a, torch.Tensor)]
        on_device = any(tensor.is_meta for tensor in given)
        assert not (on_device and name in FORBIDDEN), f"{name} is read by the host"
        result = function(*arguments, **(keywords or {}))
        if name in ("_to_copy", "copy_") and given:
            places = {t.device.type for t in [*given, result]}
            assert len(places) == 1, f"{name} moves between {places}"
        return result


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)
def test_no_step_waits_for_its_device(monkeypatch, overrides):
    """Run on the meta device, which holds no values that the host could read."""
    if "optimizer=adamw" in overrides:
        pytest.skip("torch fuses AdamW on real devices only, and counts its steps on the CPU here")
    step, scheduler = make_step(overrides, device="meta")
    draws = step.images.draw_epoch(0, 0)
    batches = list(itertools.islice(draws.order.split(32), 3))

    def take(batch):
        step.model.train()
        step.gradients(batch, draws)
        step.update()
        scheduler.step()

    take(batches[0])  # creates constants, momentum buffers and averages
    take(batches[1])
    # torch.tensor copies from the host, which a dispatch mode does not see.
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("copied from the host"))
    with Watch():
        take(batches[2])
