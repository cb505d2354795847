"""The time of a training step by kind of operation, from torch.profiler.

On a CPU this is the operations' own time, on CUDA that of their kernels. The rest of the step is
Python, dispatch and, on CUDA, idle time of the device.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from engine.data.augment import EpochDraws, TrainingImages
from engine.training.build import MODELS
from scripts.bench import report
from scripts.bench.ceilings import Ceilings, ceilings_of, count_flops
from scripts.bench.harness import BATCH, Harness
from scripts.bench.session import Session
from scripts.bench.timing import Candidate, describe_rounds

AUGMENTATION = "augmentation"
BETWEEN = "between operations"
STEP = "the step"
FORWARD, BACKWARD = "convolution, forward", "convolution, backward"
# A region contains every operation called inside it. torch's optimizers mark their own region.
REGIONS = {AUGMENTATION: rf"^{AUGMENTATION}$", "optimizer": r"^Optimizer\."}
KINDS = {
    BACKWARD: r"conv\w*_backward|ConvolutionBackward",
    FORWARD: r"conv",
    "batch norm": r"batch_norm|BatchNorm",
    "ReLU and addition": r"relu|Relu|threshold|clamp_min|aten::add_?$|AddBackward",
    "linear layer and loss": r"mm$|linear|Linear|MmBackward|softmax|Softmax|nll_|NllLoss|entropy",
    "gradient norm": r"vector_norm|foreach_norm",
    "casts and copies": r"copy|Copy|aten::to$|clone|contiguous",
}
OTHER = "other"


class RecordedImages(TrainingImages):
    """The training images, with augmentation marked for the profiler."""

    def load(self, index: Tensor, draws: EpochDraws) -> tuple[Tensor, Tensor]:
        """Load a batch as `TrainingImages` does, inside a profiler region."""
        with record_function(AUGMENTATION):
            return super().load(index, draws)


def run(
    session: Session,
    model: str | None = None,
    batch: int | None = None,
    ceilings: Ceilings | None = None,
) -> None:
    """Profile steps of a network, each by itself.

    Args:
        session: the measurement.
        model: name of the network; the default is resnet18.
        batch: batch size; the default is 128.
        ceilings: the machine's peak rates; None measures them.

    """
    device = session.device
    name, batch = model or "resnet18", batch or BATCH
    ceilings = ceilings_of(session, ceilings)
    harness = Harness(MODELS[name](), batch, device, batch=batch, images_type=RecordedImages)
    flops = count_flops(harness.state.model)
    precision = harness.setup.runtime.precision
    profiles: list[dict[str, float]] = []
    title = f"{name}, batch {batch}, {precision}"
    candidates = {"profiled step": Candidate(lambda: profiles.append(profile_step(harness)))}
    times = session.measure(title, candidates)
    # Those of the warm-up come first.
    profiles = profiles[-len(times["profiled step"]) :]
    figures = {kind: [found[kind] for found in profiles] for kind in profiles[0]}
    means = {kind: statistics.mean(values) for kind, values in figures.items()}
    seconds = means.pop(STEP)
    rates = {
        kind: ceilings.share(amount * batch / means[kind], precision)
        for kind, amount in ((FORWARD, flops.forward), (BACKWARD, flops.backward))
        if means[kind]
    }
    session.extra(share_of_matmul_rate=rates)
    session.note(f"{flops.describe()} {ceilings.describe()} The last column uses {precision}'s.")
    session.table(
        title,
        profile_rows(means, seconds, rates),
        figures,
        f"{describe_rounds(times, session.rounds, 'Means')} A round is a step under the profiler.",
    )


def profile_step(harness: Harness) -> dict[str, float]:
    """Train one epoch under the profiler; return its seconds, and those of each kind.

    Args:
        harness: a harness whose epoch is one step.

    """
    device, clock = harness.setup.runtime.device, harness.setup.runtime.wall_clock
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        # The epoch's own time excludes work before its first step, which the profiler includes.
        started = clock()
        harness.epoch()
        seconds = clock() - started
    return {STEP: seconds} | seconds_by_kind(profiled.events(), device.type == "cuda")


def kind_of(names: Iterable[str]) -> str:
    """Return the kind of an operation from its name and those of its callers, innermost first."""
    names = list(names)
    for kind, pattern in REGIONS.items():
        if any(re.search(pattern, name) for name in names):
            return kind
    for name in names:
        for kind, pattern in KINDS.items():
            if re.search(pattern, name):
                return kind
    return OTHER


def seconds_by_kind(events: Iterable[Any], on_device: bool) -> dict[str, float]:
    """Return the operations' own time, or their kernels' time, in seconds by kind.

    Args:
        events: the profiler's events.
        on_device: True to add up the kernels' time.

    """
    totals: Counter[str] = Counter({kind: 0.0 for kind in (*KINDS, *REGIONS, OTHER)})
    for event in events:
        # On CUDA each kernel is also listed as an event of the device.
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        names, caller = [], event
        while caller is not None:
            names.append(caller.name)
            caller = caller.cpu_parent
        microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
        totals[kind_of(names)] += microseconds / 1e6
    return dict(totals)


def profile_rows(
    kinds: dict[str, float], seconds: float, rates: dict[str, float]
) -> list[report.Row]:
    """Return a table row for each kind, longest first, and one for the time between operations.

    Args:
        kinds: seconds of a step by kind.
        seconds: seconds of a step.
        rates: share of the matmul rate, by kind.

    """
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    between = max(0.0, seconds - sum(kinds.values()))
    return [
        {
            "kind": kind,
            "ms a step": 1000 * spent,
            "of the step": f"{spent / seconds:.1%}",
            "of the matmul rate": f"{rates[kind]:.1%}" if kind in rates else "",
        }
        for kind, spent in [*ordered, (BETWEEN, between)]
    ]
