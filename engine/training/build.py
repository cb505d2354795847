"""Name to model, optimizer, average: plain dictionaries, nothing imported by name."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

from torch import nn
from torch.optim import SGD, Optimizer

import models
from engine.config import schema as c
from engine.training.ema import Average
from lars import LARS, parameter_groups

# The names are those of functions in `models`.
MODELS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(models, name) for name in get_args(c.ModelName)
}
OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "lars": LARS}
# LARS takes under their own names the keys that it adds; `adapt` is its groups'.
LARS_OPTIONS = {f.name for f in fields(c.LARSConfig)} - {f.name for f in fields(c.SGDConfig)}
LARS_OPTIONS -= {"adapt"}


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
    config: c.SGDConfig, clip: c.ClipConfig, model: nn.Module, peak_lr: float
) -> Optimizer:
    """Make the optimizer over the model's groups; its rate is the schedule's peak.

    LARS clips by itself, from the norms that it needs anyway; the loop clips for SGD.
    """
    adapt = config.adapt if isinstance(config, c.LARSConfig) else "weights"
    groups = parameter_groups(
        model,
        config.weight_decay,
        decay=config.decay,
        adapt=adapt,
        bias_lr_scale=config.bias_lr_scale,
    )
    options: dict[str, Any] = {
        "lr": peak_lr,
        "momentum": config.momentum,
        "dampening": config.dampening,
        "nesterov": config.nesterov,
    }
    if isinstance(config, c.LARSConfig):
        options |= {key: getattr(config, key) for key in LARS_OPTIONS}
        options |= {"clip_norm": clip.norm, "clip_value": clip.value}
    else:
        options |= {"fused": next(model.parameters()).device.type in ("cpu", "cuda", "mps")}
    return OPTIMIZERS[config.name](groups, **options)


def build_ema(config: c.EMAConfig, model: nn.Module) -> Average | None:
    """Make the moving average of a model's weights and buffers, or None where it is off."""
    return None if config.decay is None else Average(model, config.decay)
