"""One whole training step with each optimizer, which shows the cost of LARS in training."""

from engine.config.optimizers import LARSConfig
from engine.training.build import MODELS
from scripts.bench.ceilings import Ceilings, ceilings_of, count_flops
from scripts.bench.harness import BATCH, SGD, Harness
from scripts.bench.report import Row
from scripts.bench.session import Session
from scripts.bench.timing import Candidate, describe_rounds, summarise

LARS = LARSConfig(**vars(SGD) | {"name": "lars", "decay": "weights", "adapt": "weights"})


def run(session: Session, model: str | None = None, ceilings: Ceilings | None = None) -> None:
    """Time steps with SGD, LARS, and LARS that measures its layers, interleaved.

    Args:
        session: the measurement.
        model: name of the network; the default is resnet18.
        ceilings: the machine's peak rates; None measures them.

    """
    device, name = session.device, model or "resnet18"
    ceilings = ceilings_of(session, ceilings)
    harnesses = {
        "SGD": Harness(MODELS[name](), BATCH, device, SGD),
        "LARS": Harness(MODELS[name](), BATCH, device, LARS),
        "LARS, log_layers_every=1": Harness(
            MODELS[name](), BATCH, device, LARS, log_layers_every=1
        ),
    }
    precision = harnesses["SGD"].setup.runtime.precision
    flops = count_flops(harnesses["SGD"].state.model)
    session.note(
        "A whole training step, with the input pipeline.",
        f"{flops.describe()} {ceilings.describe()} The last column uses {precision}'s.",
    )
    title = f"{name}, batch {BATCH}, {precision}"
    candidates = {label: Candidate(harness.epoch) for label, harness in harnesses.items()}
    times = session.measure(title, candidates, warmup=3)
    medians = {label: summarise(seconds) for label, seconds in times.items()}
    rows = relative_rows(medians)
    for row in rows:
        rate = 1000 * BATCH * flops.training / row["median, ms"]
        row["of the matmul rate"] = ceilings.percent(rate, precision)
    session.table(title, rows, times, describe_rounds(times, session.rounds))


def relative_rows(medians: dict[str, dict[str, float]]) -> list[Row]:
    """Return a row for each optimizer's training steps, relative to those with SGD."""
    return [
        {
            "optimizer": label,
            "median, ms": figure["median_ms"],
            "fastest, ms": figure["min_ms"],
            "middle half, ms": f"{figure['q1_ms']:.1f} to {figure['q3_ms']:.1f}",
            "/ SGD": f"{figure['median_ms'] / medians['SGD']['median_ms']:.3f}",
            "/ SGD, fastest": f"{figure['min_ms'] / medians['SGD']['min_ms']:.3f}",
        }
        for label, figure in medians.items()
    ]
