"""One epoch of training, one evaluation: the two functions where the time goes.

Sums stay on the device; the host reads them at an epoch's end, and on CUDA at every
`CHECK_EVERY` steps to see a divergence. Divergence is returned, not raised.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from engine.augment import EpochDraws, Normalization, TrainingPictures
from engine.config import ClipConfig
from engine.data import Dataset, Split
from engine.finite import is_finite
from engine.noise_scale import NoiseEstimate, NoiseScale, estimates, mean_first_pass
from engine.partial import LayerStatistics, PartialEpoch
from engine.plan import Plan
from engine.ranks import add_over_ranks, any_rank, gradients_averaged
from engine.runtime import Runtime
from lars import LARS
from models import commit_batch_statistics

EVALUATION_BATCH = 1000
CHECK_EVERY = 50
NO_CLIP = ClipConfig(norm=None, value=None)


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


@dataclass(frozen=True)
class Evaluated:
    """An evaluation's outcome: mean loss; accuracy in %; accuracy of each class in %.

    losses, predictions: of each example, float32 and int64 [N], on the CPU.
    """

    loss: float
    accuracy: float
    per_class_accuracy: list[float | None]
    losses: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class Evaluations:
    """What one epoch measured; `raw` is the weights' own where `test` is their average's."""

    test: Evaluated | None
    holdout: Evaluated | None
    raw: "Evaluations | None" = None

    @property
    def finite(self) -> bool:
        """Tell whether the losses are: after the last epoch, one that is not is a divergence.

        Before it, running statistics that lag behind may give one in a run that is well.
        """
        return all(math.isfinite(split.loss) for split in (self.test, self.holdout) if split)


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    pictures: TrainingPictures,
    draws: EpochDraws,
    plan: Plan,
    clip: ClipConfig,
    runtime: Runtime,
    title: str,
    log_layers_every: int | None = None,
    label_smoothing: float = 0.0,
    ema: AveragedModel | None = None,
    noise: NoiseScale | None = None,
    begun: PartialEpoch | None = None,
    pause: Callable[[], bool] = lambda: False,
) -> TrainedEpoch | PartialEpoch:
    """Train one pass over the split, the ragged last batch included.

    Where `pause` says so, before a step or after the last, what is done by then is returned; the
    epoch goes on from there as `begun`. Each rank takes its part of each batch; the outcome is that
    of all, and alike on all of them.

    Every `log_layers_every` steps of the run, LARS' figures for each layer are kept. `ema` follows
    the weights and buffers after each step, `noise` the gradients before it.

    An update is made from finite gradients only: on the CPU every step is checked before it, on
    CUDA the host looks every `CHECK_EVERY` steps, so as not to wait for the device at each.
    """
    model.train()
    loop_clips = not isinstance(optimizer, LARS)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batches = draws.order.split(plan.batch)
    part = begun or PartialEpoch.of_no_steps(len(batches), runtime.device)
    part = part.to(runtime.device)
    losses, norms, rates = part.losses, part.gradient_norms, part.rates
    begun_at = looked_at = len(rates)
    # What was done before counts on one rank alone: at the end the ranks' counts are added.
    correct = part.correct if runtime.rank == 0 else torch.zeros_like(part.correct)
    own_images = begun_at * plan.batch if runtime.rank == 0 else 0
    first_step = scheduler.last_epoch - begun_at
    paused = diverged = False
    check_every = 1 if runtime.device.type == "cpu" else CHECK_EVERY
    started = runtime.wall_clock() - part.seconds
    with progress(batches, title, begun_at, runtime.rank) as bar:
        for step, batch in enumerate(bar, begun_at):
            # Ranks pause together, where they have just exchanged their losses.
            if (runtime.world_size == 1 or looked_at == step) and (paused := any_rank(pause())):
                break
            optimizer.zero_grad()
            passes = plan.rank_passes(len(batch))
            own = batch.split([sum(sizes) for sizes in passes])[runtime.rank]
            losses[step], right, first_norm = accumulate_gradients(
                model, pictures, draws, own, passes[runtime.rank], len(batch), runtime,
                label_smoothing,
                measured=parameters if noise is not None else (),
            )  # fmt: skip
            correct += right
            own_images += len(own)
            norms[step] = clip_gradients(parameters, clip if loop_clips else NO_CLIP)
            rates.append(float(optimizer.param_groups[0]["lr"]))
            last = step == len(batches) - 1
            if (step + 1) % check_every == 0 or last:
                seen, looked_at = slice(looked_at, step + 1), step + 1
                add_over_ranks(losses[seen])
                if not bool(torch.isfinite(losses[seen] + norms[seen]).all()):
                    diverged = True
                    break
            if noise is not None:
                firsts = [sizes[0] for sizes in passes if len(sizes) > 1]
                first_norm, first = mean_first_pass(first_norm, firsts, norms[step])
                part.noise[step] = noise.update(first_norm, norms[step], first, len(batch))
            if isinstance(optimizer, LARS) and log_layers_every is not None:
                optimizer.telemetry = (first_step + step + 1) % log_layers_every == 0
            optimizer.step()
            if isinstance(optimizer, LARS) and optimizer.telemetry:
                part.layers.append((first_step + step + 1, optimizer.layer_statistics()))
            commit_batch_statistics(model)
            if ema is not None:
                ema.update_parameters(model)
            scheduler.step()
            # Where the losses have been read anyway; the accuracy is that of this rank's examples.
            if not bar.disable and ((step + 1) % max(10, check_every) == 0 or last):
                accuracy = 100.0 * int(correct) / own_images
                show(bar, float(losses[step]), accuracy, (step + 1) * plan.batch)
    add_over_ranks(correct)
    part.correct = correct
    part.seconds = runtime.wall_clock() - started
    done = len(rates)
    if not diverged and (paused or any_rank(pause())):
        # What is saved must be finite, also where the host has not looked yet.
        diverged = not bool(torch.isfinite(losses[:done] + norms[:done]).all())
        if not diverged:
            return part
    # What no loss shows: running statistics, the last update of all.
    diverged = diverged or not is_finite(model, optimizer, ema)
    sizes_done = [len(batch) for batch in batches[:done]]
    step_losses = losses.tolist()[:done]
    total = sum(loss * size for loss, size in zip(step_losses, sizes_done, strict=True))
    return TrainedEpoch(
        loss=None if diverged else total / sum(sizes_done),
        accuracy=None if diverged else 100.0 * int(part.correct) / sum(sizes_done),
        seconds=part.seconds,
        images=sum(sizes_done),
        last_step=first_step + done,
        losses=step_losses,
        rates=rates,
        gradient_norms=norms.tolist()[:done],
        diverged=diverged,
        layers=part.layers,
        noise=[] if noise is None else estimates(part.noise[: done - diverged]),
    )


def accumulate_gradients(
    model: nn.Module,
    pictures: TrainingPictures,
    draws: EpochDraws,
    batch: Tensor,
    sizes: Sequence[int],
    batch_size: int,
    runtime: Runtime,
    label_smoothing: float = 0.0,
    measured: Sequence[nn.Parameter] = (),
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the gradient of a batch's mean loss to p.grad, in passes of the given sizes.

    batch: int64 [N], this rank's part of the `batch_size` examples; the gradient is all ranks'.
    Returns this part of the mean loss, the count of its examples classified right, and where
    parameters to measure are given and there are several passes, the norm of the first pass' own
    mean gradient.
    """
    total = torch.zeros((), device=runtime.device)
    correct = torch.zeros((), dtype=torch.int64, device=runtime.device)
    first_norm = None
    for place, index in enumerate(batch.split(list(sizes))):
        images, labels = pictures.batch(index, draws)
        with gradients_averaged(model, last=place == len(sizes) - 1):
            with runtime.autocast():
                logits = model(images)
            # A sum over the batch's own size weighs micro-batches and ranks by their examples.
            loss = F.cross_entropy(
                logits.float(), labels, reduction="sum", label_smoothing=label_smoothing
            )
            loss = loss / batch_size
            # What is averaged over the ranks becomes their sum.
            (loss * runtime.world_size).backward()
        total += loss.detach()
        correct += (logits.detach().argmax(dim=1) == labels).sum()
        if measured and place == 0 and len(sizes) > 1:
            first_norm = gradient_norm(measured) * (batch_size / len(index) / runtime.world_size)
    return total, correct, first_norm


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, 0-d on their device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(parameters: Sequence[nn.Parameter], clip: ClipConfig) -> Tensor:
    """Clip by value, then by global norm; return the global norm before any clipping."""
    norm = gradient_norm(parameters)
    if clip.value is not None:
        torch.nn.utils.clip_grad_value_(parameters, clip.value)
    if clip.norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip.norm)
    return norm


def evaluate_splits(
    model: nn.Module,
    ema: AveragedModel | None,
    data: Dataset,
    normalization: Normalization,
    runtime: Runtime,
) -> Evaluations:
    """Evaluate on the test split and the hold-out, where there are any.

    With an average of the weights, that is what counts, and the weights are measured beside it.
    """
    if ema is not None:
        averaged = evaluate_splits(ema.module, None, data, normalization, runtime)
        raw = evaluate_splits(model, None, data, normalization, runtime)
        return Evaluations(averaged.test, averaged.holdout, raw)
    classes = len(data.classes)
    test = held = None
    if len(data.test):
        test = evaluate(model, data.test, normalization, classes, runtime)
    if data.holdout is not None:
        held = evaluate(model, data.holdout, normalization, classes, runtime)
    return Evaluations(test, held)


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, normalization: Normalization, classes: int, runtime: Runtime
) -> Evaluated:
    """Measure loss and accuracy on a whole split, in batches of `EVALUATION_BATCH`.

    The ranks take turns at the batches of one process, so that each picture's outcome is the same.
    """
    model.eval()
    loss = torch.zeros((), device=runtime.device)
    # One row a class: examples, and those of them classified right.
    counts = torch.zeros(2, classes, dtype=torch.int64, device=runtime.device)
    losses = torch.zeros(len(split), device=runtime.device)
    predictions = torch.zeros(len(split), dtype=torch.int64, device=runtime.device)
    starts = range(0, len(split), EVALUATION_BATCH)
    for start in starts[runtime.rank :: runtime.world_size]:
        here = slice(start, start + EVALUATION_BATCH)
        labels = split.labels[here].to(runtime.device)
        with runtime.autocast():
            logits = model(normalization.apply(split.images[here].to(runtime.device))).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        predictions[here] = logits.argmax(dim=1)
        losses[here] = F.cross_entropy(logits, labels, reduction="none")
        counts[0] += torch.bincount(labels, minlength=classes)
        counts[1] += torch.bincount(labels[predictions[here] == labels], minlength=classes)
    add_over_ranks(loss, counts, losses, predictions)
    total, right = counts.tolist()
    return Evaluated(
        loss=float(loss) / len(split),
        accuracy=100.0 * sum(right) / len(split),
        per_class_accuracy=[
            100.0 * r / t if t else None for r, t in zip(right, total, strict=True)
        ],
        losses=losses.cpu(),
        predictions=predictions.cpu(),
    )


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
