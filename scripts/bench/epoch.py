"""Whole training epochs, evaluation left out: this harness beside the reference loop.

An epoch is of as many pictures as keeps a round short; what differs between the two is how the
pictures are prepared, the precision, the memory format and the step.
"""

import math
from typing import Any

import torch

from engine.augment import Normalization, TrainingPictures
from engine.build import build_optimizer, build_scheduler
from engine.config import ConstantConfig, SGDConfig
from engine.data import Split
from engine.loop import NO_CLIP, train_epoch
from engine.plan import Plan
from engine.runtime import start_runtime
from models import resnet8, resnet18
from scripts.bench import reference, report
from scripts.bench.timing import Candidate, interleave, summarise

BATCH = 128
# Pictures an epoch, on the CPU and on CUDA.
NETWORKS = {"ResNet-8": (resnet8, 25_600, 50_000), "ResNet-18": (resnet18, 2_560, 50_000)}
SGD = SGDConfig("sgd", 0.05, "none", 128, 0.9, 0.0, False, 5e-4, "all")


def run(device: torch.device, rounds: int) -> dict[str, Any]:
    """Time epochs of both loops on both networks, interleaved."""
    tables, figures = [], {}
    for name, (make_model, on_cpu, on_cuda) in NETWORKS.items():
        images = on_cuda if device.type == "cuda" else on_cpu
        candidates = {
            "this harness": harness(make_model(), images, device, SGD),
            "reference loop": _reference(make_model(), images, device),
        }
        times = interleave(candidates, rounds, device, warmup=1)
        rows = _rows(times, images)
        figures[name] = {"images": images, "seconds": times, "rows": rows}
        tables.append((f"{name}, batch {BATCH}, epochs of {images:,} images", rows))
    workers = f"The reference's DataLoader has {reference.available_cpus()} workers."
    return {
        "environment": report.environment(device),
        "rounds": rounds,
        "notes": [f"Whole epochs, evaluation left out; medians of {rounds} rounds. {workers}"],
        "figures": figures,
        "tables": tables,
    }


def _rows(times: dict[str, list[float]], images: int) -> list[report.Row]:
    slowest = summarise(times["reference loop"])["median_ms"]
    rows = []
    for name, seconds in times.items():
        figures = summarise(seconds)
        rows.append(
            {
                "loop": name,
                "images a second": f"{1000 * images / figures['median_ms']:,.0f}",
                "median s": figures["median_ms"] / 1000,
                "quartiles s": f"{figures['q1_ms'] / 1000:.2f} to {figures['q3_ms'] / 1000:.2f}",
                "times the reference": slowest / figures["median_ms"],
            }
        )
    return rows


def random_split(images: int) -> Split:
    """Draw pictures and labels: speed does not depend on what they show."""
    return Split(
        torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8),
        torch.randint(0, 10, (images,)),
    )


def harness(
    model: torch.nn.Module,
    images: int,
    device: torch.device,
    settings: SGDConfig,
    log_layers_every: int | None = None,
) -> Candidate:
    """Make an epoch of this project's loop, on random pictures, a candidate."""
    runtime = start_runtime(device.type, "auto", None, False, 0)
    split = random_split(images)
    pictures = TrainingPictures(split, Normalization.of(split.images), runtime.device)
    model.to(runtime.device, memory_format=runtime.memory_format)
    steps = math.ceil(images / BATCH)
    plan = Plan(images, BATCH, 1024, None, 1, steps, steps, 0, 0.05, 0.05, 0.05)
    optimizer = build_optimizer(settings, NO_CLIP, model, plan.peak_lr)
    scheduler = build_scheduler(ConstantConfig("constant", 0.0, 0.0, None), plan, optimizer)

    def epoch() -> None:
        draws = pictures.draw_epoch(0, 0)
        train_epoch(
            model, optimizer, scheduler, pictures, draws, plan, NO_CLIP, runtime, "",
            log_layers_every,
        )  # fmt: skip

    return Candidate(epoch)


def _reference(model: torch.nn.Module, images: int, device: torch.device) -> Candidate:
    split = random_split(images)
    plain = reference.with_plain_batch_norm(model).to(device)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = reference.make_loader(split.images, split.labels, BATCH, device.type == "cuda")
    return Candidate(lambda: reference.train(plain, optimizer, iter(loader), device))
