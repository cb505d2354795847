"""The time of an epoch outside of training steps: drawing, evaluation, records, checkpoint.

It is separate from `epoch`, which compares two loops' training steps, since the reference does none
of this. Work that is proportional to the number of images is timed on fewer images and scaled to a
whole epoch. This is exact, because every batch takes the same time. The rest is timed at full size.
"""

import contextlib
import dataclasses
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.config.compose import make_jobs
from engine.config.schema import Config
from engine.runs.run import Run
from engine.system.runtime import facts
from engine.training.build import MODELS
from engine.training.checkpoint import save_checkpoint
from engine.training.evaluate import Evaluated, Evaluations, evaluate
from engine.training.loop import Progress
from engine.training.metrics import TrainedEpoch, epoch_row
from scripts.bench import report
from scripts.bench.ceilings import Flops, count_flops
from scripts.bench.harness import BATCH, CLASSES, Harness, random_split
from scripts.bench.session import Session
from scripts.bench.timing import Candidate, describe_rounds

TRAINING_IMAGES, TEST_IMAGES = 50_000, 10_000
# Full batches: 3 training steps and 1 evaluation batch are enough on a CPU.
ON_CPU, ON_CUDA = (384, 1_000), (TRAINING_IMAGES, TEST_IMAGES)
EVALUATION_AIM, RECORDS_AIM = 1.2, 0.02


def run(session: Session, model: str | None = None, images: tuple[int, int] | None = None) -> None:
    """Time the parts of an epoch, interleaved.

    Args:
        session: the measurement.
        model: name of the network; the default is resnet18.
        images: numbers of training and of test images that are timed; the default depends on the
            device.

    """
    device, name = session.device, model or "resnet18"
    trained_images, tested_images = images or (ON_CUDA if device.type == "cuda" else ON_CPU)
    harness = Harness(MODELS[name](), trained_images, device)
    test = random_split(tested_images)
    title = f"{name}, batch {BATCH}, {harness.setup.runtime.precision}"
    session.say("the first epoch and evaluation")

    def measure() -> Evaluated:
        setup = harness.setup
        return evaluate(harness.state.model, test, setup.normalization, len(CLASSES), setup.runtime)

    with recording(harness, name, measure) as (record, save):
        candidates = {
            "training": Candidate(harness.epoch),
            "drawing": Candidate(lambda: harness.images.draw_epoch(0, 0)),
            "evaluation": Candidate(measure),
            "records and TensorBoard": Candidate(record),
            "checkpoint, written beside training": Candidate(save),
            "of it, the copy that training waits for": Candidate(harness.state.copy),
        }
        times = session.measure(title, candidates)
    scales = {
        "training": TRAINING_IMAGES / trained_images,
        "drawing": TRAINING_IMAGES / trained_images,
        "evaluation": TEST_IMAGES / tested_images,
    }
    figures = {part: [s * scales.get(part, 1.0) for s in times[part]] for part in times}
    rows, ratios = rest_rows(figures, count_flops(harness.state.model))
    session.extra(ratios=ratios)
    session.note(
        f"An epoch of {TRAINING_IMAGES:,} images at batch {BATCH} and one evaluation of "
        f"{TEST_IMAGES:,}, timed on {trained_images:,} and {tested_images:,} images.",
        f"Evaluation has {ratios['flops']:.2%} of the training's FLOPs and takes "
        f"{ratios['evaluation over its flops']:.2f} times that share of its time; aim: "
        f"{EVALUATION_AIM}. Records and checkpoint take "
        f"{ratios['records and checkpoint']:.2%} of the training time; aim: {RECORDS_AIM:.0%}.",
    )
    session.table(title, rows, figures, describe_rounds(times, session.rounds), unit="s an epoch")


@contextlib.contextmanager
def recording(
    harness: Harness, model: str, measure: Callable[[], Evaluated]
) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """Yield the functions that record an epoch and save a checkpoint, of a run in a scratch folder.

    Args:
        harness: the network that is saved.
        model: the network's name.
        measure: returns an evaluation for the records.

    """
    trained = full_length(harness.epoch())
    measured = Evaluations(measure(), None)
    (job,) = make_jobs("train", Config, [[f"model={model}", "data=synthetic"]])
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, contextlib.chdir(folder):
        run = Run(job.config)
        with run.open(job.overrides):
            run.found |= facts(harness.setup.runtime)
            run.start("", harness.images.samples(0, 64), resumed=False)

            def record() -> None:
                row = epoch_row(len(run.history) + 1, trained, measured, 1.0)
                run.record_epoch(row, trained)

            def save() -> None:
                progress = Progress(len(run.history), run.history)
                save_checkpoint(run.checkpoint, harness.setup, harness.state, progress)

            yield record, save


def full_length(trained: TrainedEpoch) -> TrainedEpoch:
    """Return an epoch's outcome with the number of steps of a whole epoch, as a run records it."""
    steps = math.ceil(TRAINING_IMAGES / BATCH)

    def stretch(values: list[float]) -> list[float]:
        return (values * steps)[:steps]

    return dataclasses.replace(
        trained,
        last_step=steps,
        losses=stretch(trained.losses),
        rates=stretch(trained.rates),
        gradient_norms=stretch(trained.gradient_norms),
    )


def rest_rows(
    figures: dict[str, list[float]], flops: Flops
) -> tuple[list[report.Row], dict[str, float]]:
    """Return the table's rows, and the ratios that have aims.

    Args:
        figures: seconds of a whole epoch in each round, by part.
        flops: FLOPs per image of the network.

    """
    seconds = {name: statistics.median(values) for name, values in figures.items()}
    training = seconds["training"]
    rows = [
        {"of an epoch": name, "s": f"{value:.3f}", "of the training": f"{value / training:.2%}"}
        for name, value in seconds.items()
    ]
    share = flops.forward * TEST_IMAGES / (flops.training * TRAINING_IMAGES)
    kept = seconds["records and TensorBoard"] + seconds["checkpoint, written beside training"]
    return rows, {
        "flops": share,
        "evaluation": seconds["evaluation"] / training,
        "evaluation over its flops": seconds["evaluation"] / training / share,
        "records and checkpoint": kept / training,
    }
