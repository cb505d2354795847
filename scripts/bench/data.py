"""The input pipeline: augmented, normalized batches, compared with torchvision transforms."""

from typing import Any

import torch

from engine.data.augment import Normalization, TrainingImages
from engine.system.runtime import start_runtime
from scripts.bench import reference, report
from scripts.bench.harness import random_split
from scripts.bench.timing import Candidate, interleave, summarise

IMAGES = 50_000
# The reference is much slower, so it gets fewer images.
REFERENCE_IMAGES = 12_800


def run(
    device: torch.device,
    rounds: int,
    images: int = IMAGES,
    reference_images: int = REFERENCE_IMAGES,
    batches: tuple[int, ...] = (128, 1024),
) -> dict[str, Any]:
    """Time epochs of loading at a small and a large batch.

    Args:
        device: where to measure.
        rounds: number of timings.
        images: images per epoch.
        reference_images: images per epoch of the reference.
        batches: batch sizes.

    """
    runtime = start_runtime(device.type, "auto", None, False, 0)
    split = random_split(images)
    training_images = TrainingImages(split, Normalization.of(split.images), runtime.device)
    rows, figures = [], {}
    for batch in batches:
        loader = reference.make_loader(
            split.images[:reference_images], split.labels[:reference_images], batch, False
        )

        def draw(batch: int = batch) -> None:
            draws = training_images.draw_epoch(0, 0)
            for index in draws.order.split(batch):
                training_images.load(index, draws)

        def load(loader: Any = loader) -> None:
            for _ in loader:
                pass

        candidates = {"this harness": Candidate(draw), "DataLoader": Candidate(load)}
        times = interleave(candidates, rounds, device, warmup=1)
        figures[str(batch)] = times
        speeds = {
            "this harness": 1000 * images / summarise(times["this harness"])["median_ms"],
            "DataLoader": 1000 * reference_images / summarise(times["DataLoader"])["median_ms"],
        }
        rows.append(
            {
                "batch": batch,
                "this harness, images a second": f"{speeds['this harness']:,.0f}",
                "DataLoader, images a second": f"{speeds['DataLoader']:,.0f}",
                "ratio": speeds["this harness"] / speeds["DataLoader"],
            }
        )
    return {
        "environment": report.environment(device),
        "rounds": rounds,
        "notes": [
            f"Crop, flip and normalize; medians of {rounds} rounds. The DataLoader has "
            f"{reference.available_cpus()} workers."
        ],
        "figures": figures,
        "tables": [("Input path", rows)],
    }
