"""Train one epoch and collect its metrics.

Sums stay on the device. The host reads them every `CHECK_EVERY` steps on CUDA, every step on the
CPU, and at the end of the epoch, to detect divergence. Divergence is returned, not raised. A run
that stops between two steps keeps the sums of the steps done (`PartialEpoch`), from which a resumed
run makes the epoch's row and curves.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.data.augment import EpochDraws
from engine.system.distributed import add_over_ranks, any_rank
from engine.system.sharing import lacked_cpu
from engine.system.terminal import Display
from engine.training.metrics import PartialEpoch, TrainedEpoch
from engine.training.state import is_finite
from engine.training.step import Step
from lars.layerwise import LayerwiseOptimizer
from schedulers import WarmupLR

CHECK_EVERY = 50


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epochs: number of epochs of the whole run.
        history: one row per finished epoch, as in metrics.jsonl.
        part: the steps done of the next epoch; None between epochs.
        diverged: True if the run has diverged.
        ended: True if the run has reached its target or its last step.

    """

    epochs: int
    history: list[dict[str, Any]] = field(default_factory=list)
    part: PartialEpoch | None = None
    diverged: bool = False
    ended: bool = False

    @property
    def epoch(self) -> int:
        """Return the number of the next epoch, counted from 1."""
        return len(self.history) + 1

    @property
    def over(self) -> bool:
        """Return True if the run is complete or has diverged."""
        return self.diverged or self.ended or len(self.history) == self.epochs


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
        part.cpu_seconds += time.process_time() - self.cpu_started
        part.watched_seconds += seconds
        part.seconds += seconds
        part.startup_seconds += startup_seconds - self.cold_seconds
        if lacked_cpu(runtime, part.cpu_seconds, part.watched_seconds) or others():
            part.shared_machine = True


def train_epoch(
    step: Step,
    scheduler: WarmupLR,
    draws: EpochDraws,
    display: Display | None = None,
    log_layers_every: int | None = None,
    begun: PartialEpoch | None = None,
    until: int | None = None,
    pause: Callable[[], bool] = lambda: False,
    others: Callable[[], bool] = lambda: False,
) -> TrainedEpoch | PartialEpoch:
    """Train one pass over the split, the short last batch included, or up to the step `until`.

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
        until: number of the run's step after which the epoch stops and is returned as a
            PartialEpoch; None, or a step beyond the epoch, stops nowhere.
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
    stop = len(batches) if until is None else min(len(batches), until - first_step)
    diverged = False
    check_every = 1 if runtime.device.type == "cpu" else CHECK_EVERY
    display = display or Display()
    timer = StepTimer(step, draws)
    with display.steps(batches, first_step, begun_at) as remaining:
        for place, index in enumerate(remaining, begun_at):
            # Ranks must stop at the same step, and they exchange losses only at a check.
            ranks_agree = runtime.world_size == 1 or looked_at == place
            if place == stop or (ranks_agree and any_rank(pause())):
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
            last = place == stop - 1
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
    if not diverged and (not part.complete or any_rank(pause())):
        # A saved state must be finite, and the latest steps may not have been checked.
        diverged = not part.is_finite(slice(len(part.rates)))
        if not diverged:
            return part
    # No loss depends on the running statistics or on the last update, so check the state itself.
    diverged = diverged or not is_finite(step.model, optimizer, step.ema)
    sizes = [len(batch) for batch in batches[: len(part.rates)]]
    return TrainedEpoch.of(part, sizes, first_step, diverged, step.noise is not None)
