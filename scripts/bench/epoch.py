"""Whole training epochs without evaluation: this harness compared with the reference loop.

An epoch has few images on a CPU, to keep a round short. The two loops differ in how images are
prepared, in precision, memory format and training step. Each runs in a separate process.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import torch
from torch import nn

from models import resnet8, resnet18, resnet20
from scripts.bench import reference, report
from scripts.bench.ceilings import Ceilings, ceilings_of, count_flops
from scripts.bench.harness import BATCH, Harness, random_split
from scripts.bench.session import Session
from scripts.bench.timing import LEAST_ROUNDS, Candidate, describe_rounds, fastest, summarise

Networks = dict[str, tuple[Callable[[], nn.Module], int, int]]
# Each network, the most images per epoch on the CPU, and its images per epoch on CUDA.
NETWORKS: Networks = {
    "ResNet-8": (resnet8, 2_560, 50_000),
    "ResNet-20": (resnet20, 1_280, 50_000),
    "ResNet-18": (resnet18, 256, 50_000),
}
# The time of a round of all loops, as a multiple of this harness's: the reference is slower.
ROUND_COST = 6


def run(session: Session, networks: Networks = NETWORKS, ceilings: Ceilings | None = None) -> None:
    """Time epochs of both loops on each network, interleaved.

    Args:
        session: the measurement.
        networks: by name: a function that makes the network, and its images per epoch on the CPU
            (at most) and on CUDA.
        ceilings: the machine's peak rates; None measures them.

    """
    device = session.device
    ceilings = ceilings_of(session, ceilings)
    session.note(
        "Whole epochs without evaluation. The reference's DataLoader has "
        f"{reference.available_cpus()} workers.",
        f"{ceilings.describe()} The last column uses the rate at the loop's own precision.",
    )
    for place, (name, (make_model, on_cpu, on_cuda)) in enumerate(networks.items()):
        title, left = f"{name}, batch {BATCH}", len(networks) - place
        session.say(f"{title}: size of an epoch")
        images = on_cuda if device.type == "cuda" else fitting(session, make_model, on_cpu, left)
        harness = Harness(make_model(), images, device)
        candidates = {"this harness": Candidate(harness.epoch)}
        if can_compile(device):
            compiled = Harness(make_model(), images, device, compiled=True)
            candidates["this harness, compile=true"] = Candidate(compiled.epoch)
        precisions = dict.fromkeys(candidates, harness.setup.runtime.precision)
        precisions["reference loop"] = "fp32"
        with reference_epochs(make_model, images, device) as plain:
            candidates["reference loop"] = plain
            times = session.measure(title, candidates, left=left)
        flops = count_flops(harness.state.model)
        session.table(
            title,
            epoch_rows(times, images, flops.training, ceilings, precisions),
            {loop: [s / images for s in seconds] for loop, seconds in times.items()},
            f"Epochs of {images:,} images. {describe_rounds(times, session.rounds)}",
            flops.describe(),
            unit="s an image",
        )


def fitting(session: Session, make_model: Callable[[], nn.Module], most: int, left: int) -> int:
    """Return the images of an epoch, in full batches, whose rounds fit into the time.

    Args:
        session: the measurement.
        make_model: makes the network.
        most: the most images, which are enough for a steady figure.
        left: number of networks still to come, this one included.

    """
    one_step = Harness(make_model(), BATCH, session.device)
    # The first step also allocates memory.
    one_step.epoch()
    step = fastest(one_step.epoch, session.device, LEAST_ROUNDS)
    rounds = (1 + session.rounds) * ROUND_COST
    steps = int(session.share(left) / (step * rounds))
    return max(BATCH, min(most, steps * BATCH))


def epoch_rows(
    times: dict[str, list[float]],
    images: int,
    flops_per_image: float,
    ceilings: Ceilings,
    precisions: dict[str, str],
) -> list[report.Row]:
    """Return the table row of each loop.

    Args:
        times: seconds of each round, by loop.
        images: images per round.
        flops_per_image: FLOPs of a training step per image.
        ceilings: the machine's peak rates.
        precisions: precision of each loop.

    """
    slowest = summarise(times["reference loop"])["median_ms"]
    rows = []
    for name, seconds in times.items():
        figures = summarise(seconds)
        speed = 1000 * images / figures["median_ms"]
        rows.append(
            {
                "loop": name,
                "images a second": f"{speed:,.0f}",
                "median s": figures["median_ms"] / 1000,
                "quartiles s": f"{figures['q1_ms'] / 1000:.2f} to {figures['q3_ms'] / 1000:.2f}",
                "times the reference": slowest / figures["median_ms"],
                "of the matmul rate": ceilings.percent(speed * flops_per_image, precisions[name]),
            }
        )
    return rows


def can_compile(device: torch.device) -> bool:
    """Return True if torch.compile can work: it needs Triton on CUDA, a C++ compiler on the CPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return shutil.which(os.environ.get("CXX", "g++")) is not None


@contextlib.contextmanager
def reference_epochs(
    make_model: Callable[[], nn.Module], images: int, device: torch.device
) -> Iterator[Candidate]:
    """Yield a candidate that trains an epoch of the reference loop in a separate process.

    In this process it would profit from the project's settings: huge pages and kept freed memory.
    """
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_epochs, args=(make_model, images, device, theirs))
    huge_pages = os.environ["THP_MEM_ALLOC_ENABLE"]
    os.environ["THP_MEM_ALLOC_ENABLE"] = "0"
    # The terminal sends Ctrl-C to this process too, which then ends it below.
    interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, interrupts)
    os.environ["THP_MEM_ALLOC_ENABLE"] = huge_pages
    theirs.close()

    def train_one() -> None:
        ours.send(None)
        ours.recv()

    try:
        yield Candidate(train_one)
    except BaseException:
        # It may be in the middle of an epoch.
        process.terminate()
        raise
    finally:
        ours.close()
        process.join()


def serve_epochs(
    make_model: Callable[[], nn.Module], images: int, device: torch.device, requests: Connection
) -> None:
    """Train an epoch of the reference for each request, until the connection is closed."""
    split = random_split(images)
    plain = reference.with_plain_batch_norm(make_model()).to(device)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = reference.make_loader(split.images, split.labels, BATCH, device.type == "cuda")
    with contextlib.suppress(EOFError):
        while True:
            requests.recv()
            # The epoch ends when the CPU reads the last loss, so the device has finished.
            requests.send(reference.train(plain, optimizer, iter(loader), device))
