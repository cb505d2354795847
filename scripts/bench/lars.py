"""One optimizer step: every LARS implementation here, torch's SGD, and other LARS packages.

The parameters are those of ResNet-18 (with the 3x3 stem for CIFAR) and ResNet-50 in fp32. Each is
timed with the two groups of `parameter_groups` and with one flat list, where LARS adapts every
tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from lars import LARS, LARSWrapper, parameter_groups
from scripts.bench.report import Row
from scripts.bench.session import Session
from scripts.bench.timing import Candidate, copy_bandwidth, describe_rounds, summarise

BYTES_SGD = 20  # read w, g, v; write w, v
BYTES_LARS = 28  # the norms first read w and g once more

Build = Callable[[Any], torch.optim.Optimizer]
Networks = dict[str, Callable[[], nn.Module]]


def cifar_resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with the CIFAR stem."""
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


NETWORKS: Networks = {"ResNet-18": cifar_resnet18, "ResNet-50": resnet50}


def run(session: Session, networks: Networks = NETWORKS) -> None:
    """Time all candidates on each network; compare with fused SGD and with the memory bound.

    Args:
        session: the measurement.
        networks: by name: a function that makes the network.

    """
    session.say("copy bandwidth")
    bandwidth = copy_bandwidth(session.device)
    session.extra(bandwidth_bytes_per_second=bandwidth)
    session.note(
        f"Copy bandwidth {bandwidth / 1e9:.1f} GB/s. `floor` is the median divided by the time "
        f"that {BYTES_LARS} bytes per parameter ({BYTES_SGD} for SGD) take at that bandwidth; "
        "caches can bring it below 1. `the norms alone` is the pass in which LARS reads norms "
        "before torch's fused SGD kernel could update. The sum of both is a lower bound for a rule "
        "with two norms per tensor on this machine."
    )
    cases = [(name, grouping) for name in networks for grouping in ("groups", "flat list")]
    for place, (network, grouping) in enumerate(cases):
        title = f"{network}, {grouping}"
        candidates = {
            name: _candidate(build, networks[network], grouping, session.device)
            for name, build in _builders(session.device).items()
        }
        times = session.measure(title, candidates, warmup=3, left=len(cases) - place)
        count = sum(p.numel() for p in networks[network]().parameters())
        rows = _rows({name: summarise(s) for name, s in times.items()}, count, bandwidth)
        session.table(title, rows, times, describe_rounds(times, session.rounds))


def _builders(device: torch.device) -> dict[str, Build]:
    common: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
    builders: dict[str, Build] = {
        "torch SGD": lambda p: torch.optim.SGD(p, **common),
        "torch SGD foreach": lambda p: torch.optim.SGD(p, foreach=True, **common),
        "torch SGD fused": lambda p: torch.optim.SGD(p, fused=True, **common),
        "the norms alone": _NormsAlone,
        "LARS (default)": lambda p: LARS(p, **common),
        "LARS telemetry": lambda p: _with_telemetry(LARS(p, **common)),
        "LARS clip_norm": lambda p: LARS(p, clip_norm=1.0, **common),
        "LARS variant=timm": lambda p: LARS(p, variant="timm", **common),
        "LARS nesterov": lambda p: LARS(p, nesterov=True, **common),
        "LARS foreach": lambda p: LARS(p, foreach=True, **common),
        "LARS one by one": lambda p: LARS(p, foreach=False, **common),
        "LARSWrapper(SGD fused)": lambda p: LARSWrapper(torch.optim.SGD(p, fused=True, **common)),
    }
    if device.type == "cuda":
        builders["LARS fused"] = lambda p: LARS(p, fused=True, **common)
    try:
        from timm.optim import Lars
    except ImportError:
        pass
    else:
        builders["timm"] = lambda p: Lars(p, foreach=False, **common)
        builders["timm foreach"] = lambda p: Lars(p, foreach=True, **common)
    try:
        from pytorch_optimizer import LARS as KozistrLARS
    except ImportError:
        pass
    else:
        builders["pytorch_optimizer"] = lambda p: KozistrLARS(p, foreach=False, **common)
        builders["pytorch_optimizer foreach"] = lambda p: KozistrLARS(p, foreach=True, **common)
    return builders


def _candidate(
    build: Build, build_model: Callable[[], nn.Module], grouping: str, device: torch.device
) -> Candidate:
    torch.manual_seed(0)
    model = build_model().to(device)
    params = list(model.parameters())
    grads = [torch.randn_like(p) for p in params]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    grouped = grouping == "groups"
    optimizer = build(parameter_groups(model, weight_decay=5e-4) if grouped else params)

    def write_gradients() -> None:
        # Backward writes gradients too, and some of the other packages change p.grad.
        torch._foreach_copy_([p.grad for p in params if p.grad is not None], grads)

    return Candidate(optimizer.step, write_gradients)


def _rows(figures: dict[str, dict[str, float]], parameters: int, bandwidth: float) -> list[Row]:
    fused = figures["torch SGD fused"]
    rows = []
    for name, figure in figures.items():
        moved = BYTES_SGD if name.startswith("torch SGD") else BYTES_LARS
        moved = BYTES_LARS - BYTES_SGD if name == "the norms alone" else moved
        floor = 1000 * moved * parameters / bandwidth
        rows.append(
            {
                "optimizer": name,
                "median, ms": figure["median_ms"],
                "fastest, ms": figure["min_ms"],
                "middle half, ms": f"{figure['q1_ms']:.2f} to {figure['q3_ms']:.2f}",
                "/ fused SGD": figure["median_ms"] / fused["median_ms"],
                "/ fused SGD, fastest": figure["min_ms"] / fused["min_ms"],
                "/ floor": figure["median_ms"] / floor,
            }
        )
    return rows


class _NormsAlone(torch.optim.Optimizer):
    """Computes the two norms per tensor that LARS needs before an update; updates nothing."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"adapt": True})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["adapt"]:
                for param in group["params"]:
                    for tensor in (param.detach(), param.grad):
                        flat = tensor.view(-1)
                        torch.dot(flat, flat)


def _with_telemetry(optimizer: LARS) -> LARS:
    optimizer.telemetry = True
    return optimizer
