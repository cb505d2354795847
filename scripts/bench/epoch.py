"""Whole training epochs without evaluation: this harness compared with the reference loop.

An epoch has few enough images to keep a round short. The two loops differ in how images are
prepared, in precision, memory format and training step. Each runs in a separate process.
"""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from models import resnet8, resnet18, resnet20
from scripts.bench import reference, report
from scripts.bench.ceilings import Ceilings, count_flops, measure_ceilings
from scripts.bench.harness import BATCH, Harness, random_split
from scripts.bench.timing import Candidate, interleave, summarise

Networks = dict[str, tuple[Callable[[], nn.Module], int, int]]
# Each network, and its images per epoch on the CPU and on CUDA.
NETWORKS: Networks = {
    "ResNet-8": (resnet8, 12_800, 50_000),
    "ResNet-20": (resnet20, 5_120, 50_000),
    "ResNet-18": (resnet18, 1_280, 50_000),
}


def run(
    device: torch.device,
    rounds: int,
    networks: Networks = NETWORKS,
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """Time epochs of both loops on each network, interleaved.

    Args:
        device: where to measure.
        rounds: number of timings.
        networks: by name: a function that makes the network, and its images per epoch on the CPU
            and on CUDA.
        ceilings: the machine's peak rates; None measures them.

    """
    tables, figures = [], {}
    ceilings = ceilings or measure_ceilings(device)
    notes = []
    for name, (make_model, on_cpu, on_cuda) in networks.items():
        images = on_cuda if device.type == "cuda" else on_cpu
        harness = Harness(make_model(), images, device)
        candidates = {"this harness": Candidate(harness.epoch)}
        if can_compile(device):
            compiled = Harness(make_model(), images, device, compiled=True)
            candidates["this harness, compile=true"] = Candidate(compiled.epoch)
        precisions = dict.fromkeys(candidates, harness.setup.runtime.precision)
        precisions["reference loop"] = "fp32"
        with reference_epochs(make_model, images, device) as plain:
            times = interleave(candidates | {"reference loop": plain}, rounds, device, warmup=1)
        flops = count_flops(harness.state.model)
        rows = epoch_rows(times, images, flops.training, ceilings, precisions)
        figures[name] = {"images": images, "seconds": times, "rows": rows}
        tables.append((f"{name}, batch {BATCH}, epochs of {images:,} images", rows))
        notes.append(f"{name}: {flops.describe()}")
    workers = f"The reference's DataLoader has {reference.available_cpus()} workers."
    return {
        "environment": report.environment(device),
        "ceilings": ceilings.figures(),
        "rounds": rounds,
        "notes": [
            f"Whole epochs without evaluation; medians of {rounds} rounds. {workers}",
            f"{ceilings.describe()} The last column uses the rate at the loop's own precision.",
            *notes,
        ],
        "figures": figures,
        "tables": tables,
    }


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
    process.start()
    os.environ["THP_MEM_ALLOC_ENABLE"] = huge_pages
    theirs.close()

    def train_one() -> None:
        ours.send(None)
        ours.recv()

    try:
        yield Candidate(train_one)
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
