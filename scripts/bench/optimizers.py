"""The optimizers: one optimizer step of each, its implementations and peers; and training steps.

One optimizer step is timed on the parameters of ResNet-18 (with the 3x3 stem for CIFAR) and
ResNet-50 in fp32, with the two groups of `parameter_groups` and with one flat list, where LARS and
LAMB adapt every tensor. A training step is that of ResNet-8, under each optimizer of the
configuration.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from engine.config.compose import make_jobs
from engine.config.optimizers import MEMBERS, Optimizers
from engine.config.schema import Config
from engine.training.build import MODELS
from engine.training.muon import HAS_MUON, MuonAdamW
from lars import LAMB, LARS, LARSWrapper, parameter_groups
from scripts.bench.harness import BATCH, Harness
from scripts.bench.report import Row
from scripts.bench.session import Session
from scripts.bench.step import relative_rows
from scripts.bench.timing import Candidate, copy_bandwidth, describe_rounds, summarise

# The least bytes of memory traffic per parameter, in fp32.
SGD = 20  # read w, g, v; write w, v
NORMS = 8  # read w, g
LARS_STEP = NORMS + SGD
ADAM = 28  # read w, g, m, v; write w, m, v
LAMB_STEP = 40  # read w, g, m, v; write m, v and the update; read w and the update; write w
MUON_STEP = 20  # as SGD, without the matrix products, which take most of the time

Build = Callable[[Any], torch.optim.Optimizer]
Networks = dict[str, Callable[[], nn.Module]]


class Entry(NamedTuple):
    """An optimizer to time.

    Attributes:
        traffic: least bytes of memory traffic per parameter.
        build: makes it from parameters; None if its package is not installed.

    """

    traffic: int
    build: Build | None


def cifar_resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with the CIFAR stem."""
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


NETWORKS: Networks = {"ResNet-18": cifar_resnet18, "ResNet-50": resnet50}


def run(
    session: Session,
    networks: Networks = NETWORKS,
    model: str | None = None,
    examples: int = BATCH,
) -> None:
    """Time all optimizers; compare with fused SGD, with the memory bound, and within training.

    Args:
        session: the measurement.
        networks: by name: a function that makes the network.
        model: name of the network that is trained; the default is resnet8.
        examples: batch size of the training steps.

    """
    session.say("copy bandwidth")
    bandwidth = copy_bandwidth(session.device)
    session.extra(bandwidth_bytes_per_second=bandwidth)
    session.note(
        f"Copy bandwidth {bandwidth / 1e9:.1f} GB/s. `floor` is the median divided by the time "
        f"that the least memory traffic takes at that bandwidth: per parameter {SGD} bytes for "
        f"SGD and Muon, {LARS_STEP} for LARS, {ADAM} for AdamW and {LAMB_STEP} for LAMB. Muon's "
        "matrix products take far longer than its memory traffic. Caches can bring "
        "it below 1. `the norms alone` is the pass in which LARS reads norms before torch's fused "
        "SGD kernel could update. The sum of both is a lower bound for a rule with two norms per "
        "tensor on this machine."
    )
    cases = [(name, grouping) for name in networks for grouping in ("groups", "flat list")]
    for place, (network, grouping) in enumerate(cases):
        title = f"{network}, {grouping}"
        known = entries(session.device)
        candidates = {
            name: _candidate(entry.build, networks[network], grouping, session.device)
            for name, entry in known.items()
            if entry.build is not None
        }
        # The training steps come last.
        times = session.measure(title, candidates, warmup=3, left=len(cases) + 1 - place)
        count = sum(p.numel() for p in networks[network]().parameters())
        floors = {name: known[name].traffic * count / bandwidth for name in candidates}
        rows = _rows({name: summarise(s) for name, s in times.items()}, floors)
        session.table(title, rows, times, describe_rounds(times, session.rounds))
    time_training(session, model or "resnet8", examples)


def time_training(session: Session, model: str, batch: int) -> None:
    """Time a training step of a network under each optimizer of the configuration."""
    harnesses = {
        member.title: Harness(MODELS[model](), batch, session.device, settings_of(name), batch)
        for name, member in MEMBERS.items()
    }
    precision = harnesses["SGD"].setup.runtime.precision
    title = f"training step, {model}, batch {batch}, {precision}"
    candidates = {name: Candidate(harness.epoch) for name, harness in harnesses.items()}
    times = session.measure(title, candidates, warmup=3)
    rows = relative_rows({name: summarise(seconds) for name, seconds in times.items()})
    session.table(title, rows, times, describe_rounds(times, session.rounds))


def settings_of(name: str) -> Optimizers:
    """Return an optimizer's keys in conf/, with a rate at which no network diverges."""
    (job,) = make_jobs("train", Config, [["data=synthetic", f"optimizer={name}"]])
    settings: Optimizers = job.config.optimizer
    return dataclasses.replace(settings, base_lr=1e-4, lr_scaling="none")


def entries(device: torch.device) -> dict[str, Entry]:
    """Return the optimizers by the names of their rows."""
    common: dict[str, Any] = {"lr": 1e-3, "weight_decay": 5e-4}
    heavy = {"momentum": 0.9, **common}
    optim, kozistr = "timm.optim", "pytorch_optimizer"
    found = {
        "torch SGD": Entry(SGD, _maker(torch.optim.SGD, heavy)),
        "torch SGD foreach": Entry(SGD, _maker(torch.optim.SGD, heavy, foreach=True)),
        "torch SGD fused": Entry(SGD, _maker(torch.optim.SGD, heavy, fused=True)),
        "the norms alone": Entry(NORMS, _NormsAlone),
        "LARS (default)": Entry(LARS_STEP, _maker(LARS, heavy)),
        "LARS telemetry": Entry(LARS_STEP, lambda p: _with_telemetry(LARS(p, **heavy))),
        "LARS clip_norm": Entry(LARS_STEP, _maker(LARS, heavy, clip_norm=1.0)),
        "LARS variant=timm": Entry(LARS_STEP, _maker(LARS, heavy, variant="timm")),
        "LARS nesterov": Entry(LARS_STEP, _maker(LARS, heavy, nesterov=True)),
        "LARS foreach": Entry(LARS_STEP, _maker(LARS, heavy, foreach=True)),
        "LARS one by one": Entry(LARS_STEP, _maker(LARS, heavy, foreach=False)),
        "LARSWrapper(SGD fused)": Entry(
            LARS_STEP, lambda p: LARSWrapper(torch.optim.SGD(p, fused=True, **heavy))
        ),
        "LARSWrapper(AdamW fused)": Entry(
            NORMS + ADAM, lambda p: LARSWrapper(torch.optim.AdamW(p, fused=True, **common))
        ),
        "timm": Entry(LARS_STEP, _peer(optim, "Lars", heavy, foreach=False)),
        "timm foreach": Entry(LARS_STEP, _peer(optim, "Lars", heavy, foreach=True)),
        "pytorch_optimizer": Entry(LARS_STEP, _peer(kozistr, "LARS", heavy, foreach=False)),
        "pytorch_optimizer foreach": Entry(LARS_STEP, _peer(kozistr, "LARS", heavy, foreach=True)),
        "torch AdamW": Entry(ADAM, _maker(torch.optim.AdamW, common)),
        "torch AdamW fused": Entry(ADAM, _maker(torch.optim.AdamW, common, fused=True)),
        "LAMB (default)": Entry(LAMB_STEP, _maker(LAMB, common)),
        "LAMB one by one": Entry(LAMB_STEP, _maker(LAMB, common, foreach=False)),
        "timm LAMB": Entry(LAMB_STEP, _peer(optim, "Lamb", common, foreach=False)),
        "timm LAMB foreach": Entry(LAMB_STEP, _peer(optim, "Lamb", common, foreach=True)),
        "Muon, AdamW fused": Entry(MUON_STEP, _muon if HAS_MUON else None),
        "pytorch_optimizer LAMB": Entry(LAMB_STEP, _peer(kozistr, "Lamb", common, foreach=False)),
        "pytorch_optimizer LAMB foreach": Entry(
            LAMB_STEP, _peer(kozistr, "Lamb", common, foreach=True)
        ),
    }
    if device.type == "cuda":
        found["LARS fused"] = Entry(LARS_STEP, _maker(LARS, heavy, fused=True))
    return found


def _maker(optimizer: Callable[..., Any], common: dict[str, Any], **options: Any) -> Build:
    return lambda params: optimizer(params, **common, **options)


def _muon(params: Any) -> torch.optim.Optimizer:
    """Return Muon over all weights of two dimensions or more; every group is split by these."""
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    split = [
        {**group, "params": pairs, "muon": muon}
        for group in groups
        for muon in (True, False)
        if (pairs := [p for p in group["params"] if (_tensor(p).ndim > 1) == muon])
    ]
    return MuonAdamW(split, lr=1e-3, fused=True)


def _tensor(member: Any) -> torch.Tensor:
    """Return a member of a group, which may be a (name, parameter) pair, as a tensor."""
    found: torch.Tensor = member[1] if isinstance(member, tuple) else member
    return found


def _peer(package: str, name: str, common: dict[str, Any], **options: Any) -> Build | None:
    """Return a maker of another package's optimizer; None if the package is not installed."""
    try:
        optimizer = getattr(importlib.import_module(package), name)
    except ImportError:
        return None
    return _maker(optimizer, common, **options)


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


def _rows(figures: dict[str, dict[str, float]], floors: dict[str, float]) -> list[Row]:
    """Return a row for each optimizer.

    Args:
        figures: the summary of each optimizer's times.
        floors: its least time in seconds.

    """
    fused = figures["torch SGD fused"]
    return [
        {
            "optimizer": name,
            "median, ms": figure["median_ms"],
            "fastest, ms": figure["min_ms"],
            "middle half, ms": f"{figure['q1_ms']:.2f} to {figure['q3_ms']:.2f}",
            "/ fused SGD": figure["median_ms"] / fused["median_ms"],
            "/ fused SGD, fastest": figure["min_ms"] / fused["min_ms"],
            "/ floor": figure["median_ms"] / (1000 * floors[name]),
        }
        for name, figure in figures.items()
    ]


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
