"""Captured steps on a CUDA device: equal to eager steps, and without synchronization."""

import pytest
import torch

import engine.training.step
from engine.config.schema import EMAConfig, ModelConfig
from engine.data.augment import Normalization, TrainingImages
from engine.system.runtime import start_runtime
from engine.training.build import build_ema, build_model, build_optimizer
from engine.training.loop import train_epoch
from engine.training.noise_scale import NoiseScale
from engine.training.plan import build_scheduler, make_plan
from engine.training.step import Step
from tests.helpers.runs import config
from tests.helpers.training import SETTINGS, images_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
all_settings = pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)


def make_step(overrides, epochs=3):
    made = config("batch=32", f"epochs={epochs}", *overrides)
    runtime = start_runtime("cuda", "fp32", 1, True, 0)
    model = build_model(ModelConfig("resnet8", "default", made.model.ghost_batch), 10).cuda()
    model.to(memory_format=runtime.memory_format)
    split = images_of(330)
    training_images = TrainingImages(split, Normalization.of(split.images), runtime.device)
    plan = make_plan(made, len(split))
    optimizer = build_optimizer(made.optimizer, made.clip, model, plan.optimizer_lr)
    noise = NoiseScale(runtime.device) if made.noise_scale else None
    step = Step(
        model, optimizer, training_images, plan, runtime, made.clip, made.loss.label_smoothing,
        build_ema(EMAConfig(made.ema.decay), model), noise,
    )  # fmt: skip
    return step, build_scheduler(made.scheduler, plan, optimizer)


@all_settings
def test_replayed_steps_equal_eager_steps(monkeypatch, overrides):
    ends = []
    for captures in (True, False):
        monkeypatch.setattr(engine.training.step, "captures", lambda _, answer=captures: answer)
        step, scheduler = make_step(overrides)
        losses = []
        for epoch in range(3):
            losses += train_epoch(step, scheduler, step.images.draw_epoch(0, epoch)).losses
        if captures:
            assert step.graph.captured is not None and not step.graph.failed
        ends.append((losses, [*step.model.state_dict().values()]))
    (graphed, state), (eager, expected) = ends
    assert graphed == pytest.approx(eager, rel=1e-3)
    for value, other in zip(state, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-3)


@all_settings
@pytest.mark.parametrize("captures", [True, False])
def test_no_step_waits_for_the_device(monkeypatch, overrides, captures):
    monkeypatch.setattr(engine.training.step, "captures", lambda _: captures)
    step, scheduler = make_step(overrides)
    step.model.train()
    draws = step.images.draw_epoch(0, 0)
    batches = draws.order.split(32)
    torch.cuda.synchronize()
    try:
        for place, batch in enumerate(batches[:9]):
            # The first steps choose kernels, create buffers and capture the graph.
            torch.cuda.set_sync_debug_mode("error" if place > 4 else "default")
            if step.replay(batch, draws) is None:
                step.gradients(batch, draws)
                step.update()
            scheduler.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
