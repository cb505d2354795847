"""Build a run's parts from its configuration: runtime, data, plan, state and step.

Training, evaluation, the learning-rate range test and the benchmarks all build them here.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import nn

from engine.config.schema import Config
from engine.config.wrapped import stepper
from engine.data.augment import Normalization, TrainingImages
from engine.data.dataset import Dataset, load_data, plan_data
from engine.system import distributed
from engine.system.runtime import Runtime, check_sync_bn, start_runtime
from engine.training.build import build_ema, build_model, build_optimizer
from engine.training.noise_scale import NoiseScale
from engine.training.plan import Plan, build_scheduler, check_plan, make_plan
from engine.training.state import State
from engine.training.step import Step


@dataclass(frozen=True)
class Setup:
    """The parts of a run that exist before its weights are drawn, and methods that build the rest.

    Attributes:
        config: the run's configuration.
        runtime: device, precision and ranks.
        data: training, test and hold-out split.
        plan: steps and learning rates.

    """

    config: Config
    runtime: Runtime
    data: Dataset
    plan: Plan

    @cached_property
    def normalization(self) -> Normalization:
        """Return mean and standard deviation of the training split."""
        return Normalization.of(self.data.train.images)

    def make_state(self, model: nn.Module | None = None) -> State:
        """Return the initial training state on the run's device.

        Args:
            model: replaces the configured model, whose weights are drawn from torch's current
                random state.

        """
        config = self.config
        if model is None:
            model = build_model(config.model, len(self.data.classes), config.sync_bn)
        self.runtime.place(model)
        optimizer = build_optimizer(config.optimizer, config.clip, model, self.plan.optimizer_lr)
        return State(
            model,
            optimizer,
            build_scheduler(config.scheduler, self.plan, optimizer),
            build_ema(config.ema, model),
            NoiseScale(self.runtime.device) if config.noise_scale else None,
        )

    def make_images(self) -> TrainingImages:
        """Return the training split on the device, padded for cropping."""
        return TrainingImages(self.data.train, self.normalization, self.runtime.device)

    def make_step(self, state: State, images: TrainingImages) -> Step:
        """Return the optimizer step over a state, into which any checkpoint is already loaded."""
        config, network = self.config, state.model
        # LARSWrapper in a CUDA graph is not tested.
        captured = config.optimizer.cuda_graph and stepper(config.optimizer) is config.optimizer
        if config.compile:
            network = self.runtime.compile(network)
            if self.runtime.rank == 0:
                print("compiling the network, in the first steps", flush=True)
        return Step(
            distributed.distribute(network), state.optimizer, images, self.plan, self.runtime,
            clip=config.clip, label_smoothing=config.loss.label_smoothing, ema=state.ema,
            noise=state.noise, compiled=config.compile, cuda_graph=captured,
        )  # fmt: skip


def prepare(config: Config) -> Setup:
    """Start the runtime, load the data and make the plan; raise UserError if one of them fails.

    A dry run (`plan`) needs only the number of images.
    """
    runtime = runtime_of(config)
    check_sync_bn(config.sync_bn, runtime)
    check_plan(config, runtime.world_size)
    read = plan_data if config.plan else load_data
    data = distributed.cached_by_first(lambda: read(config.data))
    return Setup(config, runtime, data, make_plan(config, len(data.train), runtime.world_size))


def runtime_of(config: Config) -> Runtime:
    """Start and return the configured runtime."""
    return start_runtime(
        config.device, config.precision, config.threads, config.deterministic, config.seed
    )
