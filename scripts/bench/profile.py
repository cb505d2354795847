"""The time of a training step by kind of operation, from torch.profiler.

On a CPU this is the operations' own time, on CUDA that of their kernels. The rest of the step is
Python, dispatch and, on CUDA, idle time of the device.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from engine.data.augment import EpochDraws, TrainingImages
from engine.training.build import MODELS
from scripts.bench import report
from scripts.bench.ceilings import Ceilings, count_flops, measure_ceilings
from scripts.bench.harness import BATCH, Harness

AUGMENTATION = "augmentation"
BETWEEN = "between operations"
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
    device: torch.device,
    rounds: int,
    model: str | None = None,
    batch: int | None = None,
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """Profile `rounds` steps of a network, after the same number of warm-up steps.

    Args:
        device: where to measure.
        rounds: number of steps.
        model: name of the network; the default is resnet18.
        batch: batch size; the default is 128.
        ceilings: the machine's peak rates; None measures them.

    """
    name, batch = model or "resnet18", batch or BATCH
    ceilings = ceilings or measure_ceilings(device)
    harness = Harness(
        MODELS[name](), batch * rounds, device, batch=batch, images_type=RecordedImages
    )
    harness.epoch()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        # The epoch's own time excludes work before its first step, which the profiler includes.
        started = harness.setup.runtime.wall_clock()
        harness.epoch()
        seconds = harness.setup.runtime.wall_clock() - started
    kinds = seconds_by_kind(profiled.events(), device.type == "cuda")
    flops = count_flops(harness.state.model)
    precision = harness.setup.runtime.precision
    rates = {
        kind: ceilings.share(amount * batch * rounds / kinds[kind], precision)
        for kind, amount in ((FORWARD, flops.forward), (BACKWARD, flops.backward))
        if kinds[kind]
    }
    return {
        "environment": report.environment(device),
        "ceilings": ceilings.figures(),
        "rounds": rounds,
        "notes": [
            f"Mean over {rounds} steps, under the profiler.",
            f"{flops.describe()} {ceilings.describe()} The last column uses {precision}'s.",
        ],
        "figures": {
            "model": name, "batch": batch, "precision": precision, "seconds": seconds,
            "seconds_by_kind": kinds, "share_of_matmul_rate": rates,
        },
        "tables": [
            (f"{name}, batch {batch}, {precision}", profile_rows(kinds, seconds, rounds, rates))
        ],
    }  # fmt: skip


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
    kinds: dict[str, float], seconds: float, steps: int, rates: dict[str, float]
) -> list[report.Row]:
    """Return a table row for each kind, longest first, and one for the time between operations.

    Args:
        kinds: seconds by kind.
        seconds: the total time.
        steps: number of steps.
        rates: share of the matmul rate, by kind.

    """
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    between = max(0.0, seconds - sum(kinds.values()))
    return [
        {
            "kind": kind,
            "ms a step": 1000 * spent / steps,
            "of the step": f"{spent / seconds:.1%}",
            "of the matmul rate": f"{rates[kind]:.1%}" if kind in rates else "",
        }
        for kind, spent in [*ordered, (BETWEEN, between)]
    ]
