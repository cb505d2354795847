"""The metrics of an epoch or a part of it, and its row of metrics.jsonl."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.training.evaluate import Evaluations
from engine.training.noise_scale import NoiseEstimate, estimates

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
        cpu_seconds: CPU time of this process during the steps of `watched_seconds`.
        watched_seconds: duration of the steps whose CPU time was measured.
        evaluations: one row per evaluation inside the epoch, as `evaluation_row` returns it.
        evaluation_seconds: duration of these evaluations, not part of `seconds`.

    """

    losses: Tensor
    gradient_norms: Tensor
    noise: Tensor
    correct: Tensor
    rates: list[float] = dataclasses.field(default_factory=list)
    layers: list[LayerStatistics] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    # Checkpoints of earlier versions have none of these.
    startup_seconds: float = 0.0
    shared_machine: bool | None = None
    cpu_seconds: float = 0.0
    watched_seconds: float = 0.0
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    evaluation_seconds: float = 0.0

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

    @property
    def complete(self) -> bool:
        """Return True if every step of the epoch is done."""
        return len(self.rates) == len(self.losses)

    @property
    def wall_seconds(self) -> float:
        """Return the duration of start-up, steps and evaluations."""
        return self.startup_seconds + self.seconds + self.evaluation_seconds

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
        evaluations: as in `PartialEpoch`.

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
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)

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
            evaluations=part.evaluations,
        )


def epoch_row(
    epoch: int,
    trained: TrainedEpoch,
    measured: Evaluations | None,
    wall_seconds: float,
) -> dict[str, Any]:
    """Return an epoch's row of metrics.jsonl; values that were not measured are None.

    Args:
        epoch: number of the epoch, counted from 1.
        trained: the epoch's training metrics.
        measured: the evaluations after the epoch's last step; None if it was not evaluated.
        wall_seconds: duration of the epoch, evaluation included.

    """
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": trained.last_step,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        **measured_row(measured),
        "learning_rate": trained.rates[-1],
        "gradient_norm": trained.gradient_norms[-1],
        "images": trained.images,
        "train_seconds": trained.seconds,
        "startup_seconds": trained.startup_seconds,
        "shared_machine": trained.shared_machine,
        "wall_seconds": wall_seconds,
        "images_per_second": trained.images / trained.seconds,
    }
    if trained.noise:
        row |= dataclasses.asdict(trained.noise[-1]) | {
            "noise_scale": trained.noise[-1].noise_scale
        }
    if trained.evaluations:
        row["evaluations"] = trained.evaluations
    return row


def evaluation_row(step: int, train_seconds: float, measured: Evaluations) -> dict[str, Any]:
    """Return the entry of `evaluations` in an epoch's row for an evaluation inside the epoch.

    Args:
        step: number of the run's last step before the evaluation.
        train_seconds: duration of the epoch's steps up to there.
        measured: the evaluations.

    """
    return {"step": step, "train_seconds": train_seconds, **measured_row(measured)}


def measured_row(measured: Evaluations | None) -> dict[str, float | None]:
    """Return losses and accuracies in % by column of metrics.jsonl; None if not measured.

    If a weight average is evaluated, the results of the weights themselves are under raw_* keys.
    """
    row: dict[str, float | None] = {}
    for name in ("test", "holdout"):
        split = getattr(measured, name, None)
        row[f"{name}_loss"] = split.loss if split else None
        row[f"{name}_accuracy"] = split.accuracy if split else None
    if measured is not None and measured.raw is not None:
        row |= {f"raw_{key}": value for key, value in measured_row(measured.raw).items()}
    return row
