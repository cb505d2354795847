"""The optimizer that takes the step: the configured one, or the base inside LARSWrapper."""

from engine.config.compose import values_of
from engine.config.optimizers import MEMBERS, SHARED, LARSConfig, OptimizerConfig
from engine.config.parse import parse


def stepper(config: OptimizerConfig) -> OptimizerConfig:
    """Return the keys of the base that LARS wraps, or `config` itself if there is no base.

    The base has the values that `config` has for keys of every optimizer, and those in conf/ for
    its other keys.
    """
    if not isinstance(config, LARSConfig) or config.base == "none":
        return config
    shared = {name: getattr(config, name) for name in SHARED}
    found: OptimizerConfig = parse(
        MEMBERS[config.base], values_of("optimizer", config.base) | shared, "optimizer."
    )
    return found
