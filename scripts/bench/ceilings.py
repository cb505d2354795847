"""What the machine could do at most, measured in the same run, and what a network asks of it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.data import SIDE
from engine.system.runtime import choose_precision
from scripts.bench.timing import copy_bandwidth, fastest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Ceilings:
    """matmul: FLOP/s of a large square product, by precision; copy: bytes/s, reads and writes."""

    matmul: dict[str, float]
    copy: float

    def share(self, flops_per_second: float, precision: str) -> float:
        """Return which part of the matmul rate at a precision is reached."""
        return flops_per_second / self.matmul[precision]

    def percent(self, flops_per_second: float, precision: str) -> str:
        """Write that share for a table."""
        return f"{self.share(flops_per_second, precision):.1%}"

    def describe(self) -> str:
        """Write the ceilings in one line."""
        rates = ", ".join(f"{rate / 1e12:.3g} in {name}" for name, rate in self.matmul.items())
        return f"Ceilings: matmul TFLOP/s {rates}; copy {self.copy / 1e9:.1f} GB/s."

    def figures(self) -> dict[str, Any]:
        """Return the ceilings for the JSON, with their units."""
        return {"matmul_flops_per_second": self.matmul, "copy_bytes_per_second": self.copy}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations an image, a multiplication and an addition counted as two."""

    forward: float
    backward: float

    @property
    def training(self) -> float:
        """Return those of a training step."""
        return self.forward + self.backward

    def describe(self) -> str:
        """Write what a training step takes."""
        return (
            f"A training step takes {self.training / 1e9:.3g} GFLOP an image, "
            f"{self.forward / 1e9:.3g} of them forward."
        )


def measure_ceilings(device: torch.device, size: int | None = None, rounds: int = 40) -> Ceilings:
    """Measure the ceilings at fp32 and at the precision that a run would choose; fastest rounds.

    size: of the square matrices; by default such that a product takes long enough to time.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    rates = {}
    # A precision that the hardware does not compute in would take minutes here.
    for precision in dict.fromkeys(("fp32", choose_precision("auto", device))):
        left = torch.randn(size, size, device=device).to(DTYPES[precision])
        right, product = left.t().contiguous(), torch.empty_like(left)

        def multiply(left: Any = left, right: Any = right, product: Any = product) -> None:
            torch.mm(left, right, out=product)

        rates[precision] = 2 * size**3 / fastest(multiply, device, rounds)
    return Ceilings(rates, copy_bandwidth(device))


def count_flops(model: nn.Module, side: int = SIDE) -> Flops:
    """Count what one image of [3, side, side] takes; the model is left as it is."""
    # Batch norm needs two values a channel, also where pictures have shrunk to one pixel.
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
