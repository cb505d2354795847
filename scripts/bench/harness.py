"""This project's training loop on random images, ready to be timed."""

import dataclasses
import functools
from typing import cast

import torch
from torch import nn

from engine.config.compose import make_jobs
from engine.config.keys import Device
from engine.config.optimizers import Optimizers, SGDConfig
from engine.config.schedules import ConstantConfig
from engine.config.schema import Config
from engine.data import SIDE
from engine.data.augment import TrainingImages
from engine.data.dataset import Dataset, Split
from engine.training.loop import train_epoch
from engine.training.metrics import TrainedEpoch
from engine.training.plan import make_plan
from engine.training.setup import Setup, runtime_of

BATCH = 128
MICRO_BATCH = 1024
SGD = SGDConfig(
    name="sgd", base_lr=0.05, lr_scaling="none", base_batch=BATCH, momentum=0.9, dampening=0.0,
    nesterov=False, weight_decay=5e-4, decay="all",
)  # fmt: skip
CLASSES = tuple(str(label) for label in range(10))


def random_split(images: int) -> Split:
    """Return random images and labels; speed does not depend on their content."""
    return Split(
        torch.randint(0, 256, (images, SIDE, SIDE, 3), dtype=torch.uint8),
        torch.randint(0, 10, (images,)),
    )


@functools.cache
def default_config() -> Config:
    """Return the configuration that a Harness starts from."""
    (job,) = make_jobs("train", Config, [["data=synthetic", "epochs=1"]])
    config: Config = job.config
    return config


class Harness:
    """A network with everything that `train_epoch` needs, at a constant learning rate.

    It is built as in train.py, with the precision that train.py would choose.

    Args:
        model: the network.
        images: images per epoch.
        device: the device to compute on.
        settings: keys of the optimizer.
        batch: batch size.
        log_layers_every: steps between measurements of each layer; None for no measurements.
        images_type: class of the training images.
        compiled: True to compile the network.

    """

    def __init__(
        self,
        model: nn.Module,
        images: int,
        device: torch.device,
        settings: Optimizers = SGD,
        batch: int = BATCH,
        log_layers_every: int | None = None,
        images_type: type[TrainingImages] = TrainingImages,
        compiled: bool = False,
    ) -> None:
        config = dataclasses.replace(
            default_config(),
            device=cast(Device, device.type),
            batch=batch,
            micro_batch=MICRO_BATCH,
            compile=compiled,
            optimizer=settings,
            scheduler=ConstantConfig("constant", 0.0, 0.0, None),
        )
        # Every harness of a part sets the same threads and precision.
        runtime = runtime_of(config)
        split = random_split(images)
        data = Dataset("random", CLASSES, split, split, None)
        self.setup = Setup(config, runtime, data, make_plan(config, images))
        self.state = self.setup.make_state(model)
        self.images = images_type(split, self.setup.normalization, runtime.device)
        self.step = self.setup.make_step(self.state, self.images)
        self.log_layers_every = log_layers_every

    def epoch(self) -> TrainedEpoch:
        """Train one epoch."""
        draws = self.images.draw_epoch(0, 0)
        trained = train_epoch(self.step, self.state.scheduler, draws, None, self.log_layers_every)
        assert isinstance(trained, TrainedEpoch), "nothing pauses the epoch"
        return trained
