"""One whole training step under each optimizer: what LARS costs where it matters."""

from typing import Any

import torch

from engine.config import LARSConfig
from models import resnet18
from scripts.bench import report
from scripts.bench.epoch import BATCH, SGD, harness
from scripts.bench.timing import interleave, summarise

LARS = LARSConfig(**vars(SGD) | {"name": "lars", "decay": "weights", "adapt": "weights"})


def run(device: torch.device, rounds: int) -> dict[str, Any]:
    """Time steps of ResNet-18 with the harness' SGD, LARS, and LARS with telemetry, interleaved."""
    candidates = {
        "SGD": harness(resnet18(), BATCH, device, SGD),
        "LARS": harness(resnet18(), BATCH, device, LARS),
        "LARS, log_layers_every=1": harness(resnet18(), BATCH, device, LARS, 1),
    }
    times = interleave(candidates, rounds, device)
    medians = {name: summarise(seconds) for name, seconds in times.items()}
    rows = [
        {
            "optimizer": name,
            "median, ms": figure["median_ms"],
            "fastest, ms": figure["min_ms"],
            "middle half, ms": f"{figure['q1_ms']:.1f} to {figure['q3_ms']:.1f}",
            "/ SGD": f"{figure['median_ms'] / medians['SGD']['median_ms']:.3f}",
            "/ SGD, fastest": f"{figure['min_ms'] / medians['SGD']['min_ms']:.3f}",
        }
        for name, figure in medians.items()
    ]
    return {
        "environment": report.environment(device),
        "rounds": rounds,
        "notes": [f"A whole training step, input path included; medians of {rounds} rounds."],
        "figures": times,
        "tables": [(f"ResNet-18, batch {BATCH}", rows)],
    }
