"""Learning-rate schedules as torch LRSchedulers, stepped once an optimizer step."""

from schedulers.decay import constant, cosine, linear, multistep, polynomial
from schedulers.scaling import SCALING_RULES, linear_scale, no_scale, sqrt_scale
from schedulers.warmup import (
    WarmupConstantLR,
    WarmupCosineLR,
    WarmupLR,
    WarmupMultiStepLR,
    WarmupOneCycleLR,
    WarmupPolynomialLR,
)

__all__ = [
    "SCALING_RULES",
    "WarmupConstantLR",
    "WarmupCosineLR",
    "WarmupLR",
    "WarmupMultiStepLR",
    "WarmupOneCycleLR",
    "WarmupPolynomialLR",
    "constant",
    "cosine",
    "linear",
    "linear_scale",
    "multistep",
    "no_scale",
    "polynomial",
    "sqrt_scale",
]
