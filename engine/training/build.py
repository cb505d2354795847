"""Build the model, the optimizer and the weight average that a configuration names.

Names are looked up in dictionaries; nothing is imported by name.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import models
from engine.config import optimizers as o
from engine.config import schema as c
from engine.config.wrapped import stepper
from engine.training.ema import Average
from engine.training.muon import MuonAdamW, hidden_weights, muon_groups
from lars import LAMB, LARS, PRESETS, LARSWrapper, parameter_groups

Groups = list[dict[str, Any]]
# Each name is a function of `models`.
MODELS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(models, name) for name in get_args(c.ModelName)
}


def build_model(config: c.ModelConfig, num_classes: int, sync_bn: bool = False) -> nn.Module:
    """Return a model whose initial weights are drawn from torch's current random state.

    Args:
        config: the model's configuration.
        num_classes: number of logits.
        sync_bn: compute batch-norm statistics over all ranks.

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
    """Draw the weights of all convolutions and linear layers by kaiming_uniform_ (He et al. 2015).

    Biases and batch norm stay as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")


def build_optimizer(
    config: o.OptimizerConfig, clip: c.ClipConfig, model: nn.Module, lr: float
) -> Optimizer:
    """Return the optimizer over the model's parameter groups.

    Args:
        config: the optimizer's configuration.
        clip: bounds on the gradient, which LARS applies itself.
        model: the model, already on its device.
        lr: learning rate of the groups, from which the schedule computes that of each step.

    """
    groups = parameter_groups(
        model,
        config.weight_decay,
        decay=config.decay,
        adapt=getattr(config, "adapt", "weights"),
        bias_lr_scale=config.bias_lr_scale,
    )
    return OPTIMIZERS[config.name](groups, config, lr, clip, model)


def has_fused_kernels(model: nn.Module) -> bool:
    """Return True if torch has fused optimizer kernels on the model's device."""
    return next(model.parameters()).device.type in ("cpu", "cuda", "mps")


def build_sgd(
    groups: Groups, config: o.SGDConfig, lr: float, clip: c.ClipConfig, model: nn.Module
) -> Optimizer:
    """Return torch's SGD; `clip` is not used, because the training step clips."""
    return SGD(groups, lr, **same_options(SGD, config), fused=has_fused_kernels(model))


def build_lars(
    groups: Groups, config: o.LARSConfig, lr: float, clip: c.ClipConfig, model: nn.Module
) -> Optimizer:
    """Return LARS, which clips with gradient norms that it computes anyway, or LARSWrapper."""
    if config.base != "none":
        return wrap(groups, config, lr, clip, model)
    options = same_options(LARS, config) | {"clip_norm": clip.norm, "clip_value": clip.value}
    return LARS(groups, lr, **options)


def wrap(
    groups: Groups, config: o.LARSConfig, lr: float, clip: c.ClipConfig, model: nn.Module
) -> Optimizer:
    """Return LARSWrapper around the base; the training step clips."""
    base = stepper(config)
    if isinstance(base, o.LAMBConfig):
        # LAMB's groups have an option `adapt` too, so the wrapper's has a prefix.
        lambs = parameter_groups(model, 0.0, adapt=base.adapt)
        for group, own in zip(groups, lambs, strict=True):
            group |= {"lars_adapt": group["adapt"], "adapt": own["adapt"]}
    given = same_options(LARSWrapper, config)
    options = {name: PRESETS[config.variant][name] if v is None else v for name, v in given.items()}
    return LARSWrapper(OPTIMIZERS[base.name](groups, base, lr, clip, model), **options)


def build_adamw(
    groups: Groups, config: o.AdamWConfig, lr: float, clip: c.ClipConfig, model: nn.Module
) -> Optimizer:
    """Return torch's AdamW; `clip` is not used, because the training step clips."""
    betas, fused = (config.beta1, config.beta2), has_fused_kernels(model)
    return AdamW(groups, lr, betas, config.eps, fused=fused)


def build_lamb(
    groups: Groups, config: o.LAMBConfig, lr: float, clip: c.ClipConfig, model: nn.Module
) -> Optimizer:
    """Return LAMB; `clip` is not used, because the training step clips."""
    return LAMB(groups, lr, (config.beta1, config.beta2), config.eps)


def build_muon(
    groups: Groups, config: o.MuonConfig, lr: float, clip: c.ClipConfig, model: nn.Module
) -> Optimizer:
    """Return Muon with AdamW; `clip` is not used, because the training step clips."""
    hidden = hidden_weights(model, config.muon_first_last)
    return MuonAdamW(
        muon_groups(groups, hidden, config.inner_lr_scale), lr, **same_options(MuonAdamW, config),
        betas=(config.beta1, config.beta2), fused=has_fused_kernels(model),
    )  # fmt: skip


# Each builder takes the parameter groups, the optimizer's configuration, the peak learning rate,
# the bounds on the gradient and the model.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": build_sgd,
    "lars": build_lars,
    "adamw": build_adamw,
    "lamb": build_lamb,
    "muon": build_muon,
}


def same_options(optimizer: Callable[..., Optimizer], config: o.OptimizerConfig) -> dict[str, Any]:
    """Return the configuration fields that the optimizer's constructor takes under the same name.

    `weight_decay` and `adapt` are excluded, because the parameter groups set them.
    """
    options = inspect.signature(optimizer).parameters.keys() & vars(config).keys()
    return {name: getattr(config, name) for name in sorted(options - {"weight_decay", "adapt"})}


def state_bytes(config: o.OptimizerConfig, model: nn.Module) -> int:
    """Return the bytes that the optimizer's state takes, without its step counts.

    LARSWrapper has no state, but copies all gradients during a step.
    """
    base = stepper(config)
    copies = int(base is not config)
    kept: dict[Tensor, int] = dict.fromkeys(model.parameters(), base.state_tensors)
    if isinstance(base, o.MuonConfig):
        kept |= dict.fromkeys(hidden_weights(model, base.muon_first_last), 1)
    return sum(p.numel() * p.element_size() * (count + copies) for p, count in kept.items())


def build_ema(config: c.EMAConfig, model: nn.Module) -> Average | None:
    """Return a moving average of a model's weights and buffers; None if no decay is configured."""
    return None if config.decay is None else Average(model, config.decay)
