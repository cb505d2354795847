"""One whole training step with each optimizer, which shows the cost of LARS in training."""

from typing import Any

import torch

from engine.config.optimizers import LARSConfig
from engine.training.build import MODELS
from scripts.bench import report
from scripts.bench.ceilings import Ceilings, count_flops, measure_ceilings
from scripts.bench.harness import BATCH, SGD, Harness
from scripts.bench.timing import Candidate, interleave, summarise

LARS = LARSConfig(**vars(SGD) | {"name": "lars", "decay": "weights", "adapt": "weights"})


def run(
    device: torch.device,
    rounds: int,
    model: str | None = None,
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """Time steps with SGD, LARS, and LARS that measures its layers, interleaved.

    Args:
        device: where to measure.
        rounds: number of timings.
        model: name of the network; the default is resnet18.
        ceilings: the machine's peak rates; None measures them.

    """
    name = model or "resnet18"
    ceilings = ceilings or measure_ceilings(device)
    harnesses = {
        "SGD": Harness(MODELS[name](), BATCH, device, SGD),
        "LARS": Harness(MODELS[name](), BATCH, device, LARS),
        "LARS, log_layers_every=1": Harness(
            MODELS[name](), BATCH, device, LARS, log_layers_every=1
        ),
    }
    candidates = {label: Candidate(harness.epoch) for label, harness in harnesses.items()}
    times = interleave(candidates, rounds, device)
    precision = harnesses["SGD"].setup.runtime.precision
    flops = count_flops(harnesses["SGD"].state.model)
    medians = {label: summarise(seconds) for label, seconds in times.items()}
    rows = [
        {
            "optimizer": label,
            "median, ms": figure["median_ms"],
            "fastest, ms": figure["min_ms"],
            "middle half, ms": f"{figure['q1_ms']:.1f} to {figure['q3_ms']:.1f}",
            "/ SGD": f"{figure['median_ms'] / medians['SGD']['median_ms']:.3f}",
            "/ SGD, fastest": f"{figure['min_ms'] / medians['SGD']['min_ms']:.3f}",
            "of the matmul rate": ceilings.percent(
                1000 * BATCH * flops.training / figure["median_ms"], precision
            ),
        }
        for label, figure in medians.items()
    ]
    return {
        "environment": report.environment(device),
        "ceilings": ceilings.figures(),
        "rounds": rounds,
        "notes": [
            f"A whole training step, with the input pipeline; medians of {rounds} rounds.",
            f"{flops.describe()} {ceilings.describe()} The last column uses {precision}'s.",
        ],
        "figures": times,
        "tables": [(f"{name}, batch {BATCH}, {precision}", rows)],
    }
