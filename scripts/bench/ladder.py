"""The training step at each batch of a study, as a fraction of the speed at the fastest batch."""

from typing import Any

import torch

from engine.training.build import MODELS
from scripts.bench import report
from scripts.bench.ceilings import Ceilings, count_flops, measure_ceilings
from scripts.bench.harness import MICRO_BATCH, Harness
from scripts.bench.timing import Candidate, interleave, summarise

BATCHES = (128, 256, 512, 1024, 2048, 4096, 8192)
AIM = "Aim: on a CPU every batch at 0.90 of the best or more; on CUDA batch 128 at 0.60 or more."


def run(
    device: torch.device,
    rounds: int,
    model: str | None = None,
    batches: tuple[int, ...] = BATCHES,
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """Time the same number of images at every batch, interleaved.

    Args:
        device: where to measure.
        rounds: number of timings.
        model: name of the network; the default depends on the device.
        batches: batch sizes.
        ceilings: the machine's peak rates; None measures them.

    """
    cuda = device.type == "cuda"
    name = model or ("resnet18" if cuda else "resnet8")
    ceilings = ceilings or measure_ceilings(device)
    # Every batch trains the same number of images per round: at least a step of the largest batch.
    images = max(batches) * (4 if cuda else 1)
    rungs = {batch: Harness(MODELS[name](), images, device, batch=batch) for batch in batches}
    precision = rungs[batches[0]].setup.runtime.precision
    flops = count_flops(rungs[batches[0]].state.model)
    candidates = {str(batch): Candidate(harness.epoch) for batch, harness in rungs.items()}
    times = interleave(candidates, rounds, device, warmup=1)
    rows = ladder_rows(times, images, flops.training, ceilings, precision)
    lowest = min(rows, key=lambda row: row["of the best"])
    return {
        "environment": report.environment(device),
        "ceilings": ceilings.figures(),
        "rounds": rounds,
        "notes": [
            f"Training steps of {images:,} images per round and batch, with micro-batches of at "
            f"most {MICRO_BATCH}; medians of {rounds} rounds. {AIM}",
            f"Lowest: {lowest['of the best']:.2f} of the best, at batch {lowest['batch']}.",
            f"{flops.describe()} {ceilings.describe()} The last column uses {precision}'s.",
        ],
        "figures": {"model": name, "images": images, "precision": precision, "seconds": times},
        "tables": [(f"{name}, {precision}", rows)],
    }


def ladder_rows(
    times: dict[str, list[float]],
    images: int,
    flops_per_image: float,
    ceilings: Ceilings,
    precision: str,
) -> list[report.Row]:
    """Return the table row of each batch.

    Args:
        times: seconds of each round, by batch.
        images: images per round.
        flops_per_image: FLOPs of a training step per image.
        ceilings: the machine's peak rates.
        precision: precision of the network.

    """
    figures = {batch: summarise(seconds) for batch, seconds in times.items()}
    best = min(figure["median_ms"] for figure in figures.values())
    rows = []
    for batch, figure in figures.items():
        speed = {key: 1000 * images / figure[key] for key in ("median_ms", "q1_ms", "q3_ms")}
        rows.append(
            {
                "batch": int(batch),
                "images a second": f"{speed['median_ms']:,.0f}",
                "middle half": f"{speed['q3_ms']:,.0f} to {speed['q1_ms']:,.0f}",
                "of the best": best / figure["median_ms"],
                "of the matmul rate": ceilings.percent(
                    speed["median_ms"] * flops_per_image, precision
                ),
            }
        )
    return rows
