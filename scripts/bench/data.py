"""The input pipeline: augmented, normalized batches, compared with torchvision transforms."""

from typing import Any

from engine.data.augment import Normalization, TrainingImages
from engine.system.runtime import start_runtime
from scripts.bench import reference, report
from scripts.bench.harness import random_split
from scripts.bench.session import Session
from scripts.bench.timing import Candidate, describe_rounds, summarise

IMAGES = 50_000
# The reference is much slower, so it gets fewer images.
REFERENCE_IMAGES = 12_800


def run(
    session: Session,
    images: int = IMAGES,
    reference_images: int = REFERENCE_IMAGES,
    batches: tuple[int, ...] = (128, 1024),
) -> None:
    """Time epochs of loading at a small and a large batch.

    Args:
        session: the measurement.
        images: images per epoch.
        reference_images: images per epoch of the reference.
        batches: batch sizes.

    """
    runtime = start_runtime(session.device.type, "auto", None, False, 0)
    split = random_split(images)
    training_images = TrainingImages(split, Normalization.of(split.images), runtime.device)
    session.note(
        f"Crop, flip and normalize {images:,} images, {reference_images:,} in the DataLoader. It "
        f"has {reference.available_cpus()} workers."
    )
    for place, batch in enumerate(batches):
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

        title = f"Input path, batch {batch}"
        candidates = {"this harness": Candidate(draw), "DataLoader": Candidate(load)}
        times = session.measure(title, candidates, left=len(batches) - place)
        counts = {"this harness": images, "DataLoader": reference_images}
        figures = {name: [s / counts[name] for s in seconds] for name, seconds in times.items()}
        session.table(
            title,
            data_rows(figures),
            figures,
            describe_rounds(times, session.rounds),
            unit="s an image",
        )


def data_rows(figures: dict[str, list[float]]) -> list[report.Row]:
    """Return the table row of each loader.

    Args:
        figures: seconds per image of each round, by loader.

    """
    medians = {name: summarise(seconds) for name, seconds in figures.items()}
    slowest = medians["DataLoader"]["median_ms"]
    return [
        {
            "loader": name,
            "images a second": f"{1000 / figure['median_ms']:,.0f}",
            "middle half": f"{1000 / figure['q3_ms']:,.0f} to {1000 / figure['q1_ms']:,.0f}",
            "times the DataLoader": slowest / figure["median_ms"],
        }
        for name, figure in medians.items()
    ]
