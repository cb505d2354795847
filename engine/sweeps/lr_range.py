"""The learning-rate range test: a short training run with a growing learning rate.

Leslie Smith 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186, section
3.3. Here the rate grows by the same factor at every step. The suggested peak is the rate at which
the loss is lowest. A constant rate would have to be lower, but a schedule is at its peak for a few
steps only, after a warm-up and before the decay. The rate at which the loss falls fastest, over the
logarithm of the rate, is printed as a more careful choice. Only the training split is used.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.config.optimizers import title_of
from engine.data.augment import EpochDraws, TrainingImages
from engine.report.style import GREY, WIDTH, color_of, save
from engine.system.files import plain, write_text_atomically
from engine.training.step import Step

# Decay of the running mean of the loss that decides when to stop.
SMOOTHING = 0.9


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: the learning rate of each step.
        losses: the training loss of each step, before its update.
        stopped: why the test ended.

    """

    rates: list[float]
    losses: list[float]
    stopped: str

    @property
    def reach(self) -> int:
        """Return the number of steps on each side over which a point is smoothed."""
        return max(2, len(self.rates) // 20)

    def smoothed(self) -> list[float]:
        """Return the centered mean of the loss at each step; a running mean would lag behind."""
        return [statistics.fmean(self.losses[near]) for near in self._windows()]

    def lowest(self) -> int:
        """Return the step of the lowest smoothed loss."""
        smoothed = self.smoothed()
        return smoothed.index(min(smoothed))

    def steepest(self) -> int | None:
        """Return the step at which the loss falls fastest over log(rate); None if it never falls.

        Only steps up to the lowest smoothed loss are considered.
        """
        logs = [math.log(rate) for rate in self.rates]
        slopes = {
            step: statistics.linear_regression(logs[near], self.losses[near]).slope
            for step, near in enumerate(self._windows())
            if self.reach <= step <= self.lowest()
        }
        step = min(slopes, key=lambda step: slopes[step], default=None)
        return step if step is not None and slopes[step] < 0 else None

    def falls_to_the_end(self) -> bool:
        """Return True if the loss was still falling when the test ended."""
        return self.lowest() >= len(self.rates) - 1 - self.reach

    def suggested(self) -> float | None:
        """Return the rate with the lowest loss; None if the loss never falls."""
        return None if self.steepest() is None else self.rates[self.lowest()]

    def _windows(self) -> list[slice]:
        steps = range(len(self.rates))
        return [slice(max(0, step - self.reach), step + self.reach + 1) for step in steps]


def growing_rates(low: float, high: float, steps: int) -> list[float]:
    """Return `steps` rates from `low` to `high` in geometric progression."""
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def run_range_test(
    step: Step,
    seed: int,
    rates: Sequence[float],
    most: float,
) -> RangeTest:
    """Take one training step at each rate.

    Stop if the loss or the gradient norm is not finite, or if the running mean of the loss exceeds
    `most` times its minimum.

    Args:
        step: the training step, whose model and optimizer are changed.
        seed: seed of order and augmentation.
        rates: learning rates, one per step.
        most: largest allowed ratio of the running mean to its minimum.

    """
    step.model.train()
    losses: list[float] = []
    running = weight = 0.0
    best = math.inf
    batches = endless_batches(step.images, step.plan.batch, seed)
    for rate in rates:
        index, draws = next(batches)
        for group in step.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        figures = step.gradients(index, draws)
        value = float(figures.loss)
        if not math.isfinite(value + float(figures.gradient_norm)):
            return RangeTest(list(rates[: len(losses)]), losses, "the loss was no longer finite")
        losses.append(value)
        running = SMOOTHING * running + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + 1 - SMOOTHING
        best = min(best, running / weight)
        if running / weight > most * best:
            return RangeTest(
                list(rates[: len(losses)]), losses, f"the loss was {most:g} times its best"
            )
        step.update()
    return RangeTest(list(rates), losses, "range.high was reached")


def endless_batches(
    images: TrainingImages, batch: int, seed: int
) -> Iterator[tuple[Tensor, EpochDraws]]:
    """Yield the full batches of epoch after epoch, without end.

    A short last batch is skipped, since its loss is noisier.
    """
    for epoch in itertools.count(1):
        draws = images.draw_epoch(seed, epoch)
        for index in draws.order.split(batch):
            if len(index) == batch:
                yield index, draws


def write_range(stem: Path, made: RangeTest, found: dict[str, Any]) -> list[Path]:
    """Write the plot `stem`.png and the numbers `stem`.json; return both paths."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(made.rates, made.losses, color=GREY, alpha=0.4, linewidth=1, label="loss")
        color = color_of(title_of(found["optimizer"]))
        axes.plot(made.rates, made.smoothed(), color=color, label="smoothed")
        label = f"suggested: {found['suggested_peak_lr']:.3g}"
        axes.axvline(found["suggested_peak_lr"], color="black", linestyle="--", label=label)
        axes.set_xscale("log")
        low, high = min(made.smoothed()), max(made.losses[: made.lowest() + 1])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
        title = f"{found['model']}, {found['optimizer']}, batch {found['batch']}\n{made.stopped}"
        axes.set(xlabel="Learning rate", ylabel="Training loss", title=title)
        axes.legend()

    numbers = found | {
        "stopped": made.stopped,
        "steepest_loss_lr": made.rates[made.steepest() or 0],
        "learning_rate": made.rates,
        "train_loss": made.losses,
        "smoothed_loss": made.smoothed(),
    }
    path = stem.with_name(f"{stem.name}.json")
    write_text_atomically(path, json.dumps(plain(numbers), indent=2, allow_nan=False) + "\n")
    return [save(stem.with_name(f"{stem.name}.png"), draw, (WIDTH, 4.4)), path]
