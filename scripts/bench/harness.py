"""This project's training loop on random pictures, made ready to be timed."""

import math

import torch
from torch import nn

from engine.config.schema import ConstantConfig, SGDConfig
from engine.data.augment import Normalization, TrainingPictures
from engine.data.dataset import Split
from engine.system.runtime import start_runtime
from engine.training.build import build_optimizer
from engine.training.loop import TrainedEpoch, train_epoch
from engine.training.plan import Plan, build_scheduler
from engine.training.step import NO_CLIP, Step

BATCH = 128
MICRO_BATCH = 1024
SGD = SGDConfig("sgd", 0.05, "none", BATCH, 0.9, 0.0, False, 5e-4, "all")


def random_split(images: int) -> Split:
    """Draw pictures and labels: speed does not depend on what they show."""
    return Split(
        torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8),
        torch.randint(0, 10, (images,)),
    )


class Harness:
    """A network with everything that `train_epoch` takes; an epoch is of `images` pictures."""

    def __init__(
        self,
        model: nn.Module,
        images: int,
        device: torch.device,
        settings: SGDConfig = SGD,
        batch: int = BATCH,
        log_layers_every: int | None = None,
        pictures_type: type[TrainingPictures] = TrainingPictures,
        compiled: bool = False,
    ) -> None:
        """Build as train.py does, at the precision it would choose and a constant rate."""
        # Every harness of a part sets the same threads and precision.
        self.runtime = start_runtime(device.type, "auto", None, False, 0)
        split = random_split(images)
        self.normalization = Normalization.of(split.images)
        self.pictures = pictures_type(split, self.normalization, self.runtime.device)
        self.model = model.to(self.runtime.device, memory_format=self.runtime.memory_format)
        steps = math.ceil(images / batch)
        self.plan = Plan(images, batch, MICRO_BATCH, None, 1, steps, steps, 0, 0.05, 0.05, 0.05)
        self.optimizer = build_optimizer(settings, NO_CLIP, model, self.plan.peak_lr)
        constant = ConstantConfig("constant", 0.0, 0.0, None)
        self.scheduler = build_scheduler(constant, self.plan, self.optimizer)
        network = self.runtime.compile(self.model) if compiled else self.model
        self.step = Step(network, self.optimizer, self.pictures, self.plan, self.runtime)
        self.log_layers_every = log_layers_every

    def epoch(self) -> TrainedEpoch:
        """Train one pass over the pictures."""
        draws = self.pictures.draw_epoch(0, 0)
        return train_epoch(self.step, self.scheduler, draws, "", self.log_layers_every)
