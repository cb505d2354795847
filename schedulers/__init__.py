"""Learning-rate schedules as torch LRSchedulers, stepped once per optimizer step."""

from schedulers.decay import cosine, multistep, polynomial, tvlars
from schedulers.scaling import SCALING_RULES, linear_scale, sqrt_scale
from schedulers.warmup import (
    TVLARSLR,
    WarmupConstantLR,
    WarmupCosineLR,
    WarmupLR,
    WarmupMultiStepLR,
    WarmupOneCycleLR,
    WarmupPolynomialLR,
)

__all__ = [
    "SCALING_RULES",
    "TVLARSLR",
    "WarmupConstantLR",
    "WarmupCosineLR",
    "WarmupLR",
    "WarmupMultiStepLR",
    "WarmupOneCycleLR",
    "WarmupPolynomialLR",
    "cosine",
    "linear_scale",
    "multistep",
    "polynomial",
    "sqrt_scale",
    "tvlars",
]
