"""The machine's peak rates, measured in the same run, and the FLOPs of a network."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.data import SIDE
from engine.system.runtime import choose_precision
from scripts.bench.session import Session
from scripts.bench.timing import copy_bandwidth, fastest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Ceilings:
    """The machine's peak rates.

    Attributes:
        matmul: FLOP/s of a large square matrix product, by precision.
        copy: bytes/s of a large copy, with reads and writes counted.

    """

    matmul: dict[str, float]
    copy: float

    def share(self, flops_per_second: float, precision: str) -> float:
        """Return a rate as a fraction of the matmul rate at a precision."""
        return flops_per_second / self.matmul[precision]

    def percent(self, flops_per_second: float, precision: str) -> str:
        """Return that fraction in percent, as text."""
        return f"{self.share(flops_per_second, precision):.1%}"

    def describe(self) -> str:
        """Return the peak rates in one line."""
        rates = ", ".join(f"{rate / 1e12:.3g} in {name}" for name, rate in self.matmul.items())
        return f"Ceilings: matmul TFLOP/s {rates}; copy {self.copy / 1e9:.1f} GB/s."

    def figures(self) -> dict[str, Any]:
        """Return the peak rates for the JSON file."""
        return {"matmul_flops_per_second": self.matmul, "copy_bytes_per_second": self.copy}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per image. A multiplication and an addition count as two."""

    forward: float
    backward: float

    @property
    def training(self) -> float:
        """Return the FLOPs per image of a training step."""
        return self.forward + self.backward

    def describe(self) -> str:
        """Return the FLOPs of a training step in one sentence."""
        return (
            f"A training step takes {self.training / 1e9:.3g} GFLOP per image, "
            f"{self.forward / 1e9:.3g} of them in the forward pass."
        )


def measure_ceilings(device: torch.device, size: int | None = None, rounds: int = 40) -> Ceilings:
    """Measure the copy bandwidth and the matmul rate in fp32 and in the precision of a run.

    Args:
        device: the device to measure.
        size: rows and columns of each matrix; None is 8192 on CUDA and 2048 elsewhere.
        rounds: largest number of timings; the fastest is used.

    """
    size = size or (8192 if device.type == "cuda" else 2048)
    rates = {}
    # The run's precision has hardware support. One without it would take minutes.
    for precision in dict.fromkeys(("fp32", choose_precision("auto", device))):
        left = torch.randn(size, size, device=device).to(DTYPES[precision])
        right, product = left.t().contiguous(), torch.empty_like(left)

        def multiply(left: Any = left, right: Any = right, product: Any = product) -> None:
            torch.mm(left, right, out=product)

        rates[precision] = 2 * size**3 / fastest(multiply, device, rounds)
    return Ceilings(rates, copy_bandwidth(device))


def ceilings_of(session: Session, known: Ceilings | None) -> Ceilings:
    """Return the peak rates, measured if they are not known yet, and add them to the result."""
    session.say("peak rates of the machine")
    ceilings = known or measure_ceilings(session.device)
    session.extra(ceilings=ceilings.figures())
    return ceilings


def count_flops(model: nn.Module, side: int = SIDE) -> Flops:
    """Return the FLOPs of one image of shape [3, side, side]; the model is not changed."""
    # Batch norm needs two values per channel even if the feature map is a single pixel.
    examples = 2
    model = copy.deepcopy(model).train()
    images = torch.zeros(examples, 3, side, side, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as forward:
        logits = model(images)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return Flops(
        forward.get_total_flops() / examples,
        backward.get_total_flops() / examples,
    )
