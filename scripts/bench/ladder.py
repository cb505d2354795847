"""The training step at each batch of a study, as a fraction of the speed at the fastest batch."""

from engine.training.build import MODELS
from scripts.bench import report
from scripts.bench.ceilings import Ceilings, ceilings_of, count_flops
from scripts.bench.harness import MICRO_BATCH, Harness
from scripts.bench.session import Session
from scripts.bench.timing import Candidate, describe_rounds, summarise

BATCHES = (128, 256, 512, 1024, 2048, 4096, 8192)
ON_CPU = 2048
AIM = "Aim: on a CPU every batch at 0.90 of the best or more; on CUDA batch 128 at 0.60 or more."


def run(
    session: Session,
    model: str | None = None,
    batches: tuple[int, ...] = BATCHES,
    ceilings: Ceilings | None = None,
    least: int | None = None,
) -> None:
    """Time training steps at every batch, interleaved.

    Args:
        session: the measurement.
        model: name of the network; the default depends on the device.
        batches: batch sizes.
        ceilings: the machine's peak rates; None measures them.
        least: the least images per round; the default depends on the device. A larger batch has
            one step per round.

    """
    device = session.device
    cuda = device.type == "cuda"
    name = model or ("resnet18" if cuda else "resnet8")
    ceilings = ceilings_of(session, ceilings)
    least = least or (4 * max(batches) if cuda else ON_CPU)
    images = {batch: max(batch, least) for batch in batches}
    rungs = {
        batch: Harness(MODELS[name](), images[batch], device, batch=batch) for batch in batches
    }
    precision = rungs[batches[0]].setup.runtime.precision
    flops = count_flops(rungs[batches[0]].state.model)
    session.note(
        f"Training steps of at least {least:,} images per round and batch. Micro-batches have at "
        f"most {MICRO_BATCH}. {AIM}",
        f"{flops.describe()} {ceilings.describe()} The last column uses {precision}'s.",
    )
    title = f"{name}, {precision}"
    candidates = {str(batch): Candidate(harness.epoch) for batch, harness in rungs.items()}
    times = session.measure(title, candidates)
    figures = {batch: [s / images[int(batch)] for s in times[batch]] for batch in times}
    rows = ladder_rows(figures, flops.training, ceilings, precision)
    lowest = min(rows, key=lambda row: row["of the best"])
    session.table(
        title,
        rows,
        figures,
        describe_rounds(times, session.rounds),
        f"Lowest: {lowest['of the best']:.2f} of the best, at batch {lowest['batch']}.",
        unit="s an image",
    )


def ladder_rows(
    per_image: dict[str, list[float]],
    flops_per_image: float,
    ceilings: Ceilings,
    precision: str,
) -> list[report.Row]:
    """Return the table row of each batch.

    Args:
        per_image: seconds per image of each round, by batch.
        flops_per_image: FLOPs of a training step per image.
        ceilings: the machine's peak rates.
        precision: precision of the network.

    """
    figures = {batch: summarise(seconds) for batch, seconds in per_image.items()}
    best = min(figure["median_ms"] for figure in figures.values())
    rows = []
    for batch, figure in figures.items():
        speed = {key: 1000 / figure[key] for key in ("median_ms", "q1_ms", "q3_ms")}
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
