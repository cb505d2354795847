"""An epoch's updates, metrics and divergence; clipping; LARS' telemetry."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.config.schema import ClipConfig
from engine.data.augment import Normalization, TrainingImages
from engine.system.runtime import start_runtime
from engine.training.build import build_optimizer
from engine.training.loop import train_epoch
from engine.training.plan import build_scheduler, make_plan
from engine.training.step import NO_CLIP, Step, clip_gradients
from lars import LARS
from models import BatchNorm2d
from tests.helpers.runs import config
from tests.helpers.training import DoubleImages, images_of, make_plain, make_resnet, trained


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_micro_batches_equal_one_batch(optimizer):
    whole, one = trained(make_plain(), f"optimizer={optimizer}", dtype=torch.float64, epochs=2)
    parts, many = trained(
        make_plain(), f"optimizer={optimizer}", "micro_batch=7", dtype=torch.float64, epochs=2
    )
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    # The reported loss is summed in float32.
    assert many.loss == pytest.approx(one.loss, rel=1e-5)
    assert many.accuracy == one.accuracy


def test_with_ghost_groups_the_result_does_not_depend_on_the_micro_batch():
    results = [
        trained(make_resnet(8), "model.ghost_batch=8", f"micro_batch={size}", dtype=torch.float64)[
            0
        ]
        for size in (8, 16, 40)
    ]
    for other in results[1:]:
        for (name, a), b in zip(
            results[0].state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-9), name
    for name, buffer in results[0].named_buffers():
        if name.endswith(".sums"):
            assert not buffer.any(), f"{name} was not reset by the last step"
            continue
        moved = buffer == 3 if name.endswith("num_batches_tracked") else buffer.abs() > 0
        assert moved.all(), f"{name} was not updated by the epoch's three steps"


class Normalized(nn.Module):
    """One convolution and one ghost batch norm, fast on large batches of small images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = BatchNorm2d(4, 128)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_ten_large_steps_do_not_depend_on_the_micro_batch(dtype, close):
    split = images_of(4096 + 300, side=8)  # an epoch's second step has groups of 128 and 172
    results = []
    for size in (128, 512, 4096):
        torch.manual_seed(0)
        overrides = ["batch=4096", f"micro_batch={size}", "model.ghost_batch=128", "epochs=5"]
        model, outcome = trained(Normalized(), *overrides, split=split, dtype=dtype, epochs=5)
        assert outcome.last_step == 10 and int(model.norm.num_batches_tracked) == 10
        results.append(model.state_dict())
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.allclose(value, other[name], rtol=close, atol=close), name


def test_loss_and_accuracy_count_every_example_once():
    # At a rate near 0 the weights do not change, so the metrics are those of the initial weights.
    model = make_plain()
    still = ["optimizer.lr_scaling=none", "optimizer.base_lr=1e-12"]
    _, outcome = trained(model, *still, count=90)
    split = images_of(90)
    training_images = TrainingImages(split, Normalization.of(split.images), torch.device("cpu"))
    draws = training_images.draw_epoch(0, 0)
    images, labels = training_images.load(draws.order, draws)
    logits = model(images)
    assert outcome.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert outcome.accuracy == pytest.approx(
        100 * float((logits.argmax(1) == labels).float().mean())
    )
    assert (outcome.images, outcome.last_step, len(outcome.losses)) == (90, 3, 3)


def test_the_update_is_a_plain_sgd_step_on_the_batch_mean():
    model, reference = make_plain().double(), make_plain().double()
    settings = ["optimizer.lr_scaling=none", "scheduler=constant", "scheduler.warmup_epochs=0"]
    settings += ["optimizer.base_lr=0.1"]
    trained(model, *settings, "batch=90", "micro_batch=40", dtype=torch.float64)
    split = images_of(90)
    training_images = DoubleImages(split, Normalization.of(split.images), torch.device("cpu"))
    draws = training_images.draw_epoch(0, 0)
    images, labels = training_images.load(draws.order, draws)
    F.cross_entropy(reference(images), labels).backward()
    for moved, start in zip(model.parameters(), reference.parameters(), strict=True):
        expected = start - 0.1 * (start.grad + 5e-4 * start)
        assert torch.allclose(moved, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("nonfinite", ["loss", "gradient"])
def test_divergence_is_returned_before_it_changes_the_weights(nonfinite):
    model = make_plain()
    if nonfinite == "loss":
        with torch.no_grad():
            model.fc.bias[0] = float("inf")
    else:
        model.fc.weight.register_hook(lambda g: g * float("nan"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, outcome = trained(model)
    assert outcome.diverged and outcome.loss is None and outcome.accuracy is None
    assert len(outcome.losses) == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_clipping_bounds_the_norm_and_then_the_values():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    assert float(clip_gradients([parameter], ClipConfig(norm=5.0, value=None))) == 50.0
    assert parameter.grad.tolist() == pytest.approx([3.0, 4.0], rel=1e-4)
    clip_gradients([parameter], ClipConfig(norm=None, value=3.5))
    assert parameter.grad.tolist() == pytest.approx([3.0, 3.5], rel=1e-4)


def test_sgd_and_lars_clip_equally():
    moved = []
    for name in ("sgd", "lars"):
        parameter = nn.Parameter(torch.zeros(4))
        parameter.grad = torch.tensor([30.0, 4.0, 0.0, -1.0])
        clip = ClipConfig(norm=1.0, value=0.5)
        if name == "sgd":
            clip_gradients([parameter], clip)
            moved.append(parameter.grad)
        else:
            LARS([parameter], lr=1.0, adapt=False, momentum=0.0, weight_decay=0.0,
                 clip_norm=clip.norm, clip_value=clip.value).step()  # fmt: skip
            moved.append(-parameter.detach())
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_bf16_autocast_trains_close_to_fp32(name):
    torch.manual_seed(0)
    made = config("batch=40", "epochs=1", f"optimizer={name}")
    split = images_of(120)
    plan = make_plan(made, 120)
    losses = {}
    for precision in ("fp32", "bf16"):
        runtime = start_runtime("cpu", precision, 1, False, 0)
        model = make_resnet(None)
        training_images = TrainingImages(split, Normalization.of(split.images), runtime.device)
        optimizer = build_optimizer(made.optimizer, NO_CLIP, model, plan.optimizer_lr)
        scheduler = build_scheduler(made.scheduler, plan, optimizer)
        step = Step(model, optimizer, training_images, plan, runtime)
        losses[precision] = train_epoch(step, scheduler, training_images.draw_epoch(0, 1)).losses
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_lars_clips_without_changing_the_gradient():
    seen = {}
    for name in ("lars", "sgd"):
        model, _ = trained(make_plain(), f"optimizer={name}", clip=ClipConfig(1e-3, None), count=40)
        seen[name] = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert seen["sgd"] == pytest.approx(1e-3, rel=1e-3)
    assert seen["lars"] > 0.1
    fast = ("optimizer=lars", "optimizer.bias_lr_scale=1")
    free, _ = trained(make_plain(), *fast, count=40)
    clipped, _ = trained(make_plain(), *fast, clip=ClipConfig(1e-3, None), count=40)
    # The bias has no trust ratio, so clipping changes its update.
    assert not torch.allclose(free.fc.bias, clipped.fc.bias, rtol=0.5)


def test_layers_are_logged_by_name_every_n_steps():
    made = config("batch=40", "epochs=2", "optimizer=lars")
    split = images_of(200)
    plan = make_plan(made, 200)
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    training_images = TrainingImages(split, Normalization.of(split.images), runtime.device)
    model = make_plain()
    optimizer = build_optimizer(made.optimizer, NO_CLIP, model, plan.optimizer_lr)
    scheduler = build_scheduler(made.scheduler, plan, optimizer)
    step = Step(model, optimizer, training_images, plan, runtime)
    steps = []
    for epoch in range(2):
        outcome = train_epoch(step, scheduler, training_images.draw_epoch(0, epoch), None, 3)
        steps += [step for step, _ in outcome.layers]
    assert steps == [3, 6, 9]
    layers = outcome.layers[-1][1]
    assert set(layers) == {"conv.weight", "fc.weight", "conv.bias", "fc.bias"}
    figures = layers["conv.weight"]
    assert set(figures) == {"weight_norm", "gradient_norm", "trust_ratio", "effective_rate"}
    expected = 0.001 * figures["weight_norm"]
    expected /= figures["gradient_norm"] + 5e-4 * figures["weight_norm"]
    assert float(figures["trust_ratio"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(layers["fc.bias"]["trust_ratio"]) == 1.0
