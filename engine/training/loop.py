"""One epoch of training: where the time goes.

Sums stay on the device; the host reads them at an epoch's end, and on CUDA at every
`CHECK_EVERY` steps to see a divergence. Divergence is returned, not raised.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from engine.data.augment import EpochDraws
from engine.system.distributed import add_over_ranks, any_rank
from engine.training.finite import is_finite
from engine.training.noise_scale import NoiseEstimate, estimates
from engine.training.partial import LayerStatistics, PartialEpoch
from engine.training.step import Step
from lars import LARS
from schedulers import WarmupLR

CHECK_EVERY = 50


@dataclass(frozen=True)
class TrainedEpoch:
    """An epoch's outcome; loss and accuracy are None where it diverged.

    loss: mean over the examples seen; accuracy: % of them; seconds: training steps alone;
    last_step: optimizer steps since the start of the run; losses, rates, gradient_norms, and noise
    where it is estimated: one value a step.
    """

    loss: float | None
    accuracy: float | None
    seconds: float
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
            images=images,
            last_step=first_step + done,
            losses=losses,
            rates=part.rates,
            gradient_norms=part.gradient_norms.tolist()[:done],
            diverged=diverged,
            layers=part.layers,
            noise=estimates(part.noise[: done - diverged]) if noise else [],
        )


def train_epoch(
    step: Step,
    scheduler: WarmupLR,
    draws: EpochDraws,
    title: str,
    log_layers_every: int | None = None,
    begun: PartialEpoch | None = None,
    pause: Callable[[], bool] = lambda: False,
) -> TrainedEpoch | PartialEpoch:
    """Train one pass over the split, the ragged last batch included.

    Where `pause` says so, before a step or after the last, what is done by then is returned; the
    epoch goes on from there as `begun`. Each rank takes its part of each batch; the outcome is that
    of all, and alike on all of them. Every `log_layers_every` steps of the run, LARS' figures for
    each layer are kept.

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
    started = runtime.wall_clock() - part.seconds
    with progress(batches, title, begun_at, runtime.rank) as bar:
        for place, batch in enumerate(bar, begun_at):
            # Ranks pause together, where they have just exchanged their losses.
            if (runtime.world_size == 1 or looked_at == place) and (paused := any_rank(pause())):
                break
            number = first_step + place + 1
            logged = log_layers_every is not None and number % log_layers_every == 0
            if isinstance(optimizer, LARS):
                optimizer.telemetry = logged
            replayed = None if logged else step.replay(batch, draws)
            figures = replayed or step.gradients(batch, draws)
            part.losses[place], part.gradient_norms[place] = figures.loss, figures.gradient_norm
            if figures.noise is not None:
                part.noise[place] = figures.noise
            correct += figures.correct
            own_images += sum(plan.rank_passes(len(batch))[runtime.rank])
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
                show(bar, float(part.losses[place]), accuracy, images)
    add_over_ranks(correct)
    part.correct = correct
    part.seconds = runtime.wall_clock() - started
    if not diverged and (paused or any_rank(pause())):
        # What is saved must be finite, also where the host has not looked yet.
        diverged = not part.is_finite(slice(len(part.rates)))
        if not diverged:
            return part
    # What no loss shows: running statistics, the last update of all.
    diverged = diverged or not is_finite(step.model, optimizer, step.ema)
    sizes = [len(batch) for batch in batches[: len(part.rates)]]
    return TrainedEpoch.of(part, sizes, first_step, diverged, step.noise is not None)


def progress(
    batches: Sequence[Tensor], title: str, begun_at: int = 0, rank: int = 0
) -> "tqdm[Tensor]":
    """Make a bar over the rest of an epoch's batches; silent without a terminal."""
    return tqdm(
        batches[begun_at:], desc=title, initial=begun_at, total=len(batches), leave=False,
        disable=rank > 0 or not sys.stderr.isatty(), unit="step", dynamic_ncols=True,
    )  # fmt: skip


def show(bar: "tqdm[Tensor]", loss: float, accuracy: float, images: int) -> None:
    """Put loss, accuracy in % and images a second on the bar."""
    elapsed = bar.format_dict["elapsed"] or math.inf
    speed = f"{images / elapsed:,.0f}"
    bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1f}%", images_per_s=speed)
