"""Train one epoch and collect its metrics.

Sums stay on the device. The host reads them every `CHECK_EVERY` steps on CUDA, every step on the
CPU, and at the end of the epoch, to detect divergence. Divergence is returned, not raised. A run
that stops between two steps keeps the sums of the steps done (`PartialEpoch`), from which a resumed
run makes the epoch's row and curves.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.data.augment import EpochDraws
from engine.system.distributed import add_over_ranks, any_rank
from engine.system.sharing import lacked_cpu
from engine.system.terminal import Display
from engine.training.evaluate import Evaluations
from engine.training.noise_scale import NoiseEstimate, estimates
from engine.training.state import is_finite
from engine.training.step import Step
from lars.layerwise import LayerwiseOptimizer
from schedulers import WarmupLR

CHECK_EVERY = 50
# Telemetry of LARS or LAMB: the step's number, then 0-d tensors by parameter name and statistic.
LayerStatistics = tuple[int, dict[str | int, dict[str, Tensor]]]


@dataclass
class PartialEpoch:
    """An epoch's metrics after `len(rates)` of its S steps; tensors are 0 beyond these.

    Attributes:
        losses: mean loss of each step's batch, float32 [S].
        gradient_norms: gradient norm of each step before clipping, float32 [S].
        noise: the sums of `NoiseScale` after each step, float32 [S, 3].
        correct: number of correctly classified examples, int64 [].
        rates: learning rate of each step done.
        layers: the optimizer's telemetry of the logged steps.
        seconds: duration of the steps done.
        startup_seconds: duration of compiling, warm-up and capture, not part of `seconds`.
        shared_machine: True if other processes took CPU from the steps; None if not recorded.

    """

    losses: Tensor
    gradient_norms: Tensor
    noise: Tensor
    correct: Tensor
    rates: list[float] = dataclasses.field(default_factory=list)
    layers: list[LayerStatistics] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    # Checkpoints of earlier versions have neither.
    startup_seconds: float = 0.0
    shared_machine: bool | None = None

    @classmethod
    def of_no_steps(cls, steps: int, device: torch.device) -> "PartialEpoch":
        """Return an epoch of `steps` steps of which none is done."""
        return cls(
            losses=torch.zeros(steps, device=device),
            gradient_norms=torch.zeros(steps, device=device),
            noise=torch.zeros(steps, 3, device=device),
            correct=torch.zeros((), dtype=torch.int64, device=device),
            shared_machine=False,
        )

    def to(self, device: torch.device) -> "PartialEpoch":
        """Return a copy whose tensors are on `device`."""
        names = ("losses", "gradient_norms", "noise", "correct")
        moved = {name: getattr(self, name).to(device) for name in names}
        return dataclasses.replace(self, **moved)

    def is_finite(self, steps: slice) -> bool:
        """Return True if the losses and gradient norms of `steps` are finite.

        This synchronizes with the device once.
        """
        return bool(torch.isfinite(self.losses[steps] + self.gradient_norms[steps]).all())

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as a checkpoint holds them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epochs: number of epochs of the whole run.
        history: one row per finished epoch, as in metrics.jsonl.
        part: the steps done of the next epoch; None between epochs.
        diverged: True if the run has diverged.

    """

    epochs: int
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    part: PartialEpoch | None = None
    diverged: bool = False

    @property
    def epoch(self) -> int:
        """Return the number of the next epoch, counted from 1."""
        return len(self.history) + 1

    @property
    def over(self) -> bool:
        """Return True if the run is complete or has diverged."""
        return self.diverged or len(self.history) == self.epochs


@dataclass(frozen=True)
class TrainedEpoch:
    """The metrics of a trained epoch.

    Attributes:
        loss: mean over the examples seen; None if the epoch diverged.
        accuracy: in % of the examples seen; None if the epoch diverged.
        seconds: duration of the training steps, without evaluation.
        startup_seconds: as in `PartialEpoch`.
        shared_machine: as in `PartialEpoch`.
        images: number of examples seen.
        last_step: optimizer steps since the start of the run.
        losses: mean loss of each step's batch.
        rates: learning rate of each step.
        gradient_norms: gradient norm of each step before clipping.
        diverged: True if a loss, a gradient or the state is not finite.
        layers: the optimizer's telemetry of the logged steps.
        noise: estimate after each step; empty if the run does not estimate it.

    """

    loss: float | None
    accuracy: float | None
    seconds: float
    startup_seconds: float
    shared_machine: bool | None
    images: int
    last_step: int
    losses: list[float]
    rates: list[float]
    gradient_norms: list[float]
    diverged: bool
    layers: list[LayerStatistics]
    noise: list[NoiseEstimate]

    @classmethod
    def of(
        cls, part: PartialEpoch, sizes: Sequence[int], first_step: int, diverged: bool, noise: bool
    ) -> "TrainedEpoch":
        """Return the metrics of an epoch's steps.

        Args:
            part: the steps' metrics.
            sizes: batch size of each step done.
            first_step: optimizer steps of the run before this epoch.
            diverged: True if the epoch diverged; its last noise estimate is then left out.
            noise: True if the run estimates the noise scale.

        """
        done, images = len(sizes), sum(sizes)
        losses = part.losses.tolist()[:done]
        total = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        return cls(
            loss=None if diverged else total / images,
            accuracy=None if diverged else 100.0 * int(part.correct) / images,
            seconds=part.seconds,
            startup_seconds=part.startup_seconds,
            shared_machine=part.shared_machine,
            images=images,
            last_step=first_step + done,
            losses=losses,
            rates=part.rates,
            gradient_norms=part.gradient_norms.tolist()[:done],
            diverged=diverged,
            layers=part.layers,
            noise=estimates(part.noise[: done - diverged]) if noise else [],
        )


class StepTimer:
    """Times the steps that this process takes in an epoch, and start-up separately.

    Constructing it warms the step up and then starts the clock.

    Args:
        step: the run's optimizer step.
        draws: sample order and augmentation of the epoch.

    """

    def __init__(self, step: Step, draws: EpochDraws) -> None:
        self.step, self.cold_seconds = step, step.startup_seconds
        step.warm_up(draws)
        self.warm_seconds = step.startup_seconds
        self.started, self.cpu_started = step.runtime.wall_clock(), time.process_time()

    def add_to(self, part: PartialEpoch, others: Callable[[], bool]) -> None:
        """Add the measured seconds to `part`; mark it if other processes took CPU meanwhile.

        Args:
            part: the epoch's metrics.
            others: returns True if other processes train runs on this machine.

        """
        runtime, startup_seconds = self.step.runtime, self.step.startup_seconds
        # The clock also runs while a graph is captured, which is start-up.
        seconds = runtime.wall_clock() - self.started - (startup_seconds - self.warm_seconds)
        cpu_seconds = time.process_time() - self.cpu_started
        part.seconds += seconds
        part.startup_seconds += startup_seconds - self.cold_seconds
        if lacked_cpu(runtime, cpu_seconds, seconds) or others():
            part.shared_machine = True


def train_epoch(
    step: Step,
    scheduler: WarmupLR,
    draws: EpochDraws,
    display: Display | None = None,
    log_layers_every: int | None = None,
    begun: PartialEpoch | None = None,
    pause: Callable[[], bool] = lambda: False,
    others: Callable[[], bool] = lambda: False,
) -> TrainedEpoch | PartialEpoch:
    """Train one pass over the split, the short last batch included.

    Each rank trains on its part of each batch; the result covers all ranks and is the same on all.
    On the CPU every step's loss and gradient are checked before the update, so no update uses
    values that are not finite. On CUDA the host checks every `CHECK_EVERY` steps, because each
    check waits for the device.

    Args:
        step: the run's optimizer step.
        scheduler: the run's learning-rate schedule; `last_epoch` counts the steps done.
        draws: sample order and augmentation of the epoch.
        display: shows the progress; None shows nothing.
        log_layers_every: keep the per-layer telemetry of LARS or LAMB of every step of the run
            whose number is a multiple of this; None keeps none.
        begun: the steps already done; the epoch resumes after them.
        pause: called before a step and after the last one. If it returns True on any rank, the
            epoch stops there and is returned as a PartialEpoch. Several ranks call it only at the
            start and after each check.
        others: returns True if other processes train runs on this machine; called after the last
            step.

    """
    step.model.train()
    plan, runtime, optimizer = step.plan, step.runtime, step.optimizer
    batches = draws.order.split(plan.batch)
    part = begun or PartialEpoch.of_no_steps(len(batches), runtime.device)
    part = part.to(runtime.device)
    begun_at = looked_at = len(part.rates)
    # Counts from before a resume belong to rank 0 only, because the ranks' counts are added up.
    correct = part.correct if runtime.rank == 0 else torch.zeros_like(part.correct)
    own_images = begun_at * plan.batch if runtime.rank == 0 else 0
    first_step = scheduler.last_epoch - begun_at
    paused = diverged = False
    check_every = 1 if runtime.device.type == "cpu" else CHECK_EVERY
    display = display or Display()
    timer = StepTimer(step, draws)
    with display.steps(batches, first_step, begun_at) as remaining:
        for place, index in enumerate(remaining, begun_at):
            # Ranks must stop at the same step, and they exchange losses only at a check.
            if (runtime.world_size == 1 or looked_at == place) and (paused := any_rank(pause())):
                break
            number = first_step + place + 1
            logged = log_layers_every is not None and number % log_layers_every == 0
            if isinstance(optimizer, LayerwiseOptimizer):
                optimizer.telemetry = logged
            replayed = None if logged else step.replay(index, draws)
            figures = replayed or step.gradients(index, draws)
            part.losses[place], part.gradient_norms[place] = figures.loss, figures.gradient_norm
            if figures.noise is not None:
                part.noise[place] = figures.noise
            correct += figures.correct
            own_images += sum(plan.rank_passes(len(index))[runtime.rank])
            part.rates.append(float(scheduler.get_lr()[0]))
            last = place == len(batches) - 1
            if (place + 1) % check_every == 0 or last:
                seen, looked_at = slice(looked_at, place + 1), place + 1
                add_over_ranks(part.losses[seen])
                if diverged := not part.is_finite(seen):
                    break
            if replayed is None:
                step.update()
            if logged and isinstance(optimizer, LayerwiseOptimizer):
                part.layers.append((number, optimizer.layer_statistics()))
            scheduler.step()
            # Only if the losses have just been read. The accuracy is this rank's.
            if looked_at == place + 1 and display.due():
                accuracy = 100.0 * int(correct) / own_images
                images = (place + 1 - begun_at) * plan.batch
                loss = float(part.losses[place])
                display.show(place + 1, len(batches), images, loss, accuracy)
    add_over_ranks(correct)
    part.correct = correct
    timer.add_to(part, others)
    if not diverged and (paused or any_rank(pause())):
        # A saved state must be finite, and the latest steps may not have been checked.
        diverged = not part.is_finite(slice(len(part.rates)))
        if not diverged:
            return part
    # No loss depends on the running statistics or on the last update, so check the state itself.
    diverged = diverged or not is_finite(step.model, optimizer, step.ema)
    sizes = [len(batch) for batch in batches[: len(part.rates)]]
    return TrainedEpoch.of(part, sizes, first_step, diverged, step.noise is not None)


def epoch_row(
    epoch: int,
    trained: TrainedEpoch,
    measured: Evaluations | None,
    wall_seconds: float,
) -> dict[str, Any]:
    """Return an epoch's row of metrics.jsonl; values that were not measured are None.

    If a weight average is evaluated, the results of the weights themselves are under raw_* keys.

    Args:
        epoch: number of the epoch, counted from 1.
        trained: the epoch's training metrics.
        measured: the evaluations after the epoch; None if it was not evaluated.
        wall_seconds: duration of the epoch, evaluation included.

    """
    tested = measured.test if measured else None
    held = measured.holdout if measured else None
    row = {
        "epoch": epoch,
        "step": trained.last_step,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "test_loss": tested.loss if tested else None,
        "test_accuracy": tested.accuracy if tested else None,
        "holdout_loss": held.loss if held else None,
        "holdout_accuracy": held.accuracy if held else None,
        "learning_rate": trained.rates[-1],
        "gradient_norm": trained.gradient_norms[-1],
        "images": trained.images,
        "train_seconds": trained.seconds,
        "startup_seconds": trained.startup_seconds,
        "shared_machine": trained.shared_machine,
        "wall_seconds": wall_seconds,
        "images_per_second": trained.images / trained.seconds,
    }
    if measured is not None and (raw := measured.raw) is not None:
        for name, split in (("test", raw.test), ("holdout", raw.holdout)):
            row[f"raw_{name}_loss"] = split.loss if split else None
            row[f"raw_{name}_accuracy"] = split.accuracy if split else None
    if trained.noise:
        row |= dataclasses.asdict(trained.noise[-1]) | {
            "noise_scale": trained.noise[-1].noise_scale
        }
    return row
