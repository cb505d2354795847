"""One epoch of training: where the time goes, and all that comes of it.

Sums stay on the device; the host reads them at an epoch's end, and on CUDA at every
`CHECK_EVERY` steps to see a divergence. Divergence is returned, not raised. A run that stops
between two steps keeps the sums of the part that is done, which become the epoch's row and curves;
weights, optimizer and schedule are the checkpoint's; order and augmentation follow from seed and
epoch.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.data.augment import EpochDraws
from engine.system.distributed import add_over_ranks, any_rank
from engine.system.sharing import lacked_cpu
from engine.training.evaluate import Evaluations
from engine.training.noise_scale import NoiseEstimate, estimates
from engine.training.state import is_finite
from engine.training.step import Step
from lars import LARS
from schedulers import WarmupLR

CHECK_EVERY = 50
# LARS' telemetry after one step: that step, and by parameter name its figures as 0-d tensors.
LayerStatistics = tuple[int, dict[str | int, dict[str, Tensor]]]


@dataclass
class PartialEpoch:
    """An epoch's sums after `len(rates)` of its steps.

    losses, gradient_norms: float32 [steps of the epoch]; noise: float32 [steps, 3], the sums of
    `NoiseScale`; all are 0 beyond the steps done. correct: int64 [], examples classified right.
    seconds: of training steps; startup_seconds: of compiling, warm-up and capture, which are not
    among them. shared_machine: True if anything else took CPU from the steps; None: not recorded.
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
        """Begin an epoch of so many steps."""
        return cls(
            losses=torch.zeros(steps, device=device),
            gradient_norms=torch.zeros(steps, device=device),
            noise=torch.zeros(steps, 3, device=device),
            correct=torch.zeros((), dtype=torch.int64, device=device),
            shared_machine=False,
        )

    def to(self, device: torch.device) -> "PartialEpoch":
        """Return it with its sums on a device."""
        names = ("losses", "gradient_norms", "noise", "correct")
        moved = {name: getattr(self, name).to(device) for name in names}
        return dataclasses.replace(self, **moved)

    def is_finite(self, steps: slice) -> bool:
        """Tell whether the losses and gradients of some steps are; one read of the device."""
        return bool(torch.isfinite(self.losses[steps] + self.gradient_norms[steps]).all())

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as a checkpoint holds them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass
class Progress:
    """How far a run of `epochs` has come.

    history: a row for each finished epoch, as in metrics.jsonl; part: what is done of the next.
    """

    epochs: int
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    part: PartialEpoch | None = None
    diverged: bool = False

    @property
    def epoch(self) -> int:
        """Return the epoch to train next, counted from 1."""
        return len(self.history) + 1

    @property
    def over(self) -> bool:
        """Return True if nothing is left to train."""
        return self.diverged or len(self.history) == self.epochs


@dataclass(frozen=True)
class TrainedEpoch:
    """An epoch's outcome; loss and accuracy are None where it diverged.

    loss: mean over the examples seen; accuracy: % of them; seconds, startup_seconds,
    shared_machine: those of `PartialEpoch`;
    last_step: optimizer steps since the start of the run; losses, rates, gradient_norms, and noise
    where it is estimated: one value a step.
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
        """Sum up an epoch's steps of these batch sizes; noise: whether it was estimated."""
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
    """The time of a process's steps in an epoch, and apart from it that of its start-up."""

    def __init__(self, step: Step, draws: EpochDraws) -> None:
        """Warm the step up, then begin to time."""
        self.step, self.cold_seconds = step, step.startup_seconds
        step.warm_up(draws)
        self.warm_seconds = step.startup_seconds
        self.started, self.cpu_started = step.runtime.wall_clock(), time.process_time()

    def add_to(self, part: PartialEpoch, others: Callable[[], bool]) -> None:
        """Add what was timed to the epoch's part, with the verdict on who else took CPU."""
        runtime, startup_seconds = self.step.runtime, self.step.startup_seconds
        # The steps' time has the capture of a graph in it.
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
    title: str,
    log_layers_every: int | None = None,
    begun: PartialEpoch | None = None,
    pause: Callable[[], bool] = lambda: False,
    others: Callable[[], bool] = lambda: False,
) -> TrainedEpoch | PartialEpoch:
    """Train one pass over the split, the ragged last batch included.

    Where `pause` says so, before a step or after the last, what is done by then is returned; the
    epoch goes on from there as `begun`. Each rank takes its part of each batch; the outcome is that
    of all, and alike on all of them. Every `log_layers_every` steps of the run, LARS' figures for
    each layer are kept. `others` returns True if other processes train runs on this machine; it is
    asked after the last step taken.

    An update is made from finite gradients only: on the CPU every step is checked before it, on
    CUDA the host looks every `CHECK_EVERY` steps, so as not to wait for the device at each.
    """
    step.model.train()
    plan, runtime, optimizer = step.plan, step.runtime, step.optimizer
    batches = draws.order.split(plan.batch)
    part = begun or PartialEpoch.of_no_steps(len(batches), runtime.device)
    part = part.to(runtime.device)
    begun_at = looked_at = len(part.rates)
    # What was done before counts on one rank alone: at the end the ranks' counts are added.
    correct = part.correct if runtime.rank == 0 else torch.zeros_like(part.correct)
    own_images = begun_at * plan.batch if runtime.rank == 0 else 0
    first_step = scheduler.last_epoch - begun_at
    paused = diverged = False
    check_every = 1 if runtime.device.type == "cpu" else CHECK_EVERY
    timer = StepTimer(step, draws)
    with progress_bar(batches, title, begun_at, runtime.rank) as bar:
        for place, index in enumerate(bar, begun_at):
            # Ranks pause together, where they have just exchanged their losses.
            if (runtime.world_size == 1 or looked_at == place) and (paused := any_rank(pause())):
                break
            number = first_step + place + 1
            logged = log_layers_every is not None and number % log_layers_every == 0
            if isinstance(optimizer, LARS):
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
            if logged and isinstance(optimizer, LARS):
                part.layers.append((number, optimizer.layer_statistics()))
            scheduler.step()
            # Where the losses have been read anyway; the accuracy is that of this rank's examples.
            if not bar.disable and ((place + 1) % max(10, check_every) == 0 or last):
                accuracy = 100.0 * int(correct) / own_images
                images = (place + 1 - begun_at) * plan.batch
                show_on_bar(bar, float(part.losses[place]), accuracy, images)
    add_over_ranks(correct)
    part.correct = correct
    timer.add_to(part, others)
    if not diverged and (paused or any_rank(pause())):
        # What is saved must be finite, also where the host has not looked yet.
        diverged = not part.is_finite(slice(len(part.rates)))
        if not diverged:
            return part
    # What no loss shows: running statistics, the last update of all.
    diverged = diverged or not is_finite(step.model, optimizer, step.ema)
    sizes = [len(batch) for batch in batches[: len(part.rates)]]
    return TrainedEpoch.of(part, sizes, first_step, diverged, step.noise is not None)


def epoch_row(
    epoch: int,
    trained: TrainedEpoch,
    measured: Evaluations | None,
    wall_seconds: float,
) -> dict[str, Any]:
    """Make an epoch's line of metrics.jsonl; what was not measured is null.

    Where an average of the weights is evaluated, the weights' own figures are beside it as raw_*.
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


def progress_bar(
    batches: Sequence[Tensor], title: str, begun_at: int = 0, rank: int = 0
) -> "tqdm[Tensor]":
    """Make a bar over the rest of an epoch's batches; silent without a terminal."""
    return tqdm(
        batches[begun_at:], desc=title, initial=begun_at, total=len(batches), leave=False,
        disable=rank > 0 or not sys.stderr.isatty(), unit="step", dynamic_ncols=True,
    )  # fmt: skip


def show_on_bar(bar: "tqdm[Tensor]", loss: float, accuracy: float, images: int) -> None:
    """Put loss, accuracy in % and images a second on the bar."""
    elapsed = bar.format_dict["elapsed"] or math.inf
    speed = f"{images / elapsed:,.0f}"
    bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1f}%", images_per_s=speed)
