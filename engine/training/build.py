"""Name to model, optimizer, average: plain dictionaries, nothing imported by name."""

import inspect
from collections.abc import Callable
from typing import Any, get_args

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import models
from engine.config import optimizers as o
from engine.config import schema as c
from engine.training.ema import Average
from lars import LARS, parameter_groups

# The names are those of functions in `models`.
MODELS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(models, name) for name in get_args(c.ModelName)
}


def build_model(config: c.ModelConfig, num_classes: int, sync_bn: bool = False) -> nn.Module:
    """Make a network with the initial weights that the present random state gives.

    sync_bn: its batch norms take their statistics over all ranks.
    """
    model = MODELS[config.name](
        num_classes=num_classes, zero_init_residual=config.zero_init_residual
    )
    if config.init == "he":
        initialize_he(model)
    for layer in models.batch_norms(model):
        layer.ghost_batch = config.ghost_batch
        layer.momentum = config.bn_momentum
    if sync_bn:
        models.synchronize_batch_norms(model)
    return model


def initialize_he(model: nn.Module) -> None:
    """Draw every convolution and linear weight by kaiming_uniform_ (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")


def build_optimizer(
    config: o.OptimizerConfig, clip: c.ClipConfig, model: nn.Module, peak_lr: float
) -> Optimizer:
    """Make the optimizer over the model's parameter groups; its rate is the schedule's peak."""
    groups = parameter_groups(
        model,
        config.weight_decay,
        decay=config.decay,
        adapt=getattr(config, "adapt", "weights"),
        bias_lr_scale=config.bias_lr_scale,
    )
    # torch's own fused kernels; other devices have none.
    fused = next(model.parameters()).device.type in ("cpu", "cuda", "mps")
    return OPTIMIZERS[config.name](groups, config, peak_lr, clip, fused)


def build_sgd(
    groups: list[dict[str, Any]], config: o.SGDConfig, lr: float, clip: c.ClipConfig, fused: bool
) -> Optimizer:
    """Make torch's SGD."""
    return SGD(groups, lr, **same_options(SGD, config), fused=fused)


def build_lars(
    groups: list[dict[str, Any]], config: o.LARSConfig, lr: float, clip: c.ClipConfig, fused: bool
) -> Optimizer:
    """Make LARS, which clips by itself, from norms that it computes anyway."""
    options = same_options(LARS, config) | {"clip_norm": clip.norm, "clip_value": clip.value}
    return LARS(groups, lr, **options)


def build_adamw(
    groups: list[dict[str, Any]], config: o.AdamWConfig, lr: float, clip: c.ClipConfig, fused: bool
) -> Optimizer:
    """Make torch's AdamW."""
    return AdamW(groups, lr, (config.beta1, config.beta2), config.eps, fused=fused)


# Each is called with the groups, the keys, the peak rate, the bounds on the gradient and whether
# torch's fused kernels can be had.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": build_sgd,
    "lars": build_lars,
    "adamw": build_adamw,
}


def same_options(optimizer: Callable[..., Optimizer], config: o.OptimizerConfig) -> dict[str, Any]:
    """Return the keys that an optimizer takes under their own names; the groups have the rest."""
    options = inspect.signature(optimizer).parameters.keys() & vars(config).keys()
    return {name: getattr(config, name) for name in sorted(options - {"weight_decay", "adapt"})}


def build_ema(config: c.EMAConfig, model: nn.Module) -> Average | None:
    """Make the moving average of a model's weights and buffers; None if it is off."""
    return None if config.decay is None else Average(model, config.decay)
