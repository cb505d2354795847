"""Small networks, images that they can learn, and short training runs."""

import torch
from torch import nn

from engine.config.optimizers import MEMBERS, AdamWConfig
from engine.config.schema import ModelConfig
from engine.data.augment import Normalization, TrainingImages
from engine.data.dataset import Dataset, Split
from engine.system.runtime import start_runtime
from engine.training.build import build_model, build_optimizer
from engine.training.loop import train_epoch
from engine.training.plan import build_scheduler, make_plan
from engine.training.setup import Setup
from engine.training.step import NO_CLIP, Step
from tests.helpers.runs import config

# Overrides for training steps that a CUDA graph can capture, by name.
# Adam divides a gradient by its size. Without a large eps it makes steps of rounding errors.
SETTINGS = {
    **{
        name: [f"optimizer={name}", *["optimizer.eps=1e-3"] * issubclass(member, AdamWConfig)]
        for name, member in MEMBERS.items() if member.cuda_graph
    },
    "lars, nesterov": ["optimizer=lars", "optimizer.nesterov=true"],
    "lars, as timm": ["optimizer=lars", "optimizer.variant=timm"],
    "clipping": ["optimizer=sgd", "clip.norm=0.5", "clip.value=0.1"],
    "lars, clipping": ["optimizer=lars", "clip.norm=0.5", "clip.value=0.1"],
    "ghosts, passes, average, noise": [
        "optimizer=lars", "model.ghost_batch=8", "micro_batch=16", "ema.decay=0.8",
        "noise_scale=true", "loss.label_smoothing=0.1",
    ],
}  # fmt: skip


def images_of(count, seed=0, side=32):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.randint(0, 200, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    return Split(images + labels.view(-1, 1, 1, 1).to(torch.uint8) * 5, labels)


def setup_of(made, count):
    """Return the setup of a run on `count` random images, in fp32 on one CPU thread."""
    runtime = start_runtime("cpu", "fp32", 1, False, made.seed)
    split = images_of(count)
    data = Dataset(made.data.name, tuple("abcdefghij"), split, split, None)
    return Setup(made, runtime, data, make_plan(made, count))


class Plain(nn.Module):
    """A network without batch norm, so that its gradient is a mean over examples."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.conv(x).tanh().mean(dim=(2, 3)))


class DoubleImages(TrainingImages):
    """Training images in float64, so that results differ only by the order of sums."""

    def load(self, index, draws):
        images, labels = super().load(index, draws)
        return images.double(), labels


def rates_seen(optimizer, scheduler, steps):
    """Return the optimizer's learning rate at each step of a schedule."""
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def make_plain():
    torch.manual_seed(0)
    return Plain()


def make_resnet(ghost):
    torch.manual_seed(0)
    return build_model(ModelConfig("resnet8", "default", ghost), 10)


def trained(
    model,
    *overrides,
    count=90,
    clip=NO_CLIP,
    dtype=torch.float32,
    epochs=1,
    split=None,
    label_smoothing=0.0,
    ema=None,
    noise=None,
    **more,
):
    """Train a model; return it with the outcome of the last epoch."""
    made = config("batch=40", "epochs=2", *overrides)
    split = split or images_of(count)
    plan = make_plan(made, len(split))
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    double = dtype == torch.float64
    images_type = DoubleImages if double else TrainingImages
    images = images_type(split, Normalization.of(split.images), runtime.device)
    model = model.to(dtype)
    optimizer = build_optimizer(made.optimizer, clip, model, plan.optimizer_lr)
    scheduler = build_scheduler(made.scheduler, plan, optimizer)
    step = Step(
        model,
        optimizer,
        images,
        plan,
        runtime,
        clip,
        label_smoothing,
        ema=ema,
        noise=noise,
    )
    for epoch in range(epochs):
        outcome = train_epoch(step, scheduler, images.draw_epoch(0, epoch), **more)
    return model, outcome
