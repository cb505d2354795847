"""The keys of each optimizer. training/build.py builds the optimizers from them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from engine.config.keys import (
    Count,
    Fraction,
    Momentum,
    NotNegative,
    Positive,
    Which,
    configuration,
    key,
)
from engine.config.parse import LARGEST
from engine.errors import key_error

Variant = Literal[
    "paper", "blog", "quadra", "torchlars", "braintools", "pytorch-lars", "pytorch-lars-v1",
    "timm", "larc",
]  # fmt: skip


@configuration
class OptimizerConfig:
    """The keys of every optimizer.

    Attributes:
        title: the optimizer's name in tables and plots.
        cuda_graph: True if a CUDA graph may capture its step: it never reads a value on the host,
            and reads the learning rate as a tensor.
        largest_lr: the largest rate that its step can take.

    """

    title: ClassVar[str]
    cuda_graph: ClassVar[bool] = False
    largest_lr: ClassVar[float] = LARGEST

    name: str
    base_lr: Positive = key("learning rate at base_batch; warm-up starts from it")
    lr_scaling: Literal["linear", "sqrt", "none"] = key(
        "how the peak rate grows with the batch: linear, sqrt or none"
    )
    base_batch: Count = key("the batch size that base_lr is for")
    weight_decay: NotNegative = key(
        "weight decay: an L2 penalty, or decoupled from the gradient, as the optimizer defines it"
    )
    decay: Which = key("parameters that decay: all, or weights (no biases or normalization)")
    bias_lr_scale: NotNegative = key(
        "rate of biases and normalization parameters, as a multiple of the weights'",
        default=1.0,
        kw_only=True,
    )

    @property
    def label(self) -> str:
        """Return the optimizer's name in run names, tables and files."""
        return self.name

    @property
    def state_tensors(self) -> int:
        """Return the number of state tensors, each of the parameter's size, per parameter."""
        raise NotImplementedError

    @property
    def inner_lr_scale(self) -> float:
        """Return the rate of the parameters that a second optimizer trains, per rate; 1 if none."""
        return 1.0

    def check(self) -> None:
        """Raise UserError for values that are valid separately but not together."""


@configuration
class SGDConfig(OptimizerConfig):
    """The keys of torch.optim.SGD."""

    title, cuda_graph = "SGD", True

    name: Literal["sgd"]
    momentum: Momentum = key("momentum; 0 for none")
    dampening: Fraction = key("fraction of each gradient that is not added to the momentum")
    nesterov: bool = key("use Nesterov momentum")

    @property
    def state_tensors(self) -> int:
        """Return 1 with momentum, else 0."""
        return int(self.momentum > 0)

    def check(self) -> None:
        """Raise UserError if Nesterov momentum is used without momentum or with dampening."""
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            allowed = "needs optimizer.momentum above 0 and optimizer.dampening=0"
            raise key_error("optimizer.nesterov", True, allowed)


@configuration
class LARSConfig(SGDConfig):
    """The keys of lars.LARS, or of lars.LARSWrapper around the optimizer `base`.

    null takes the variant's value.
    """

    title, cuda_graph = "LARS", True

    name: Literal["lars"]  # type: ignore[assignment]
    # mypy: a subclass may not allow more values. With a base these keys have none.
    momentum: Momentum | None = key(  # type: ignore[assignment]
        "momentum; 0 for none; null with optimizer.base"
    )
    dampening: Fraction | None = key(  # type: ignore[assignment]
        "fraction of each gradient that is not added to the momentum; null with optimizer.base"
    )
    nesterov: bool | None = key(  # type: ignore[assignment]
        "use Nesterov momentum; null with optimizer.base"
    )
    adapt: Which = key("parameters that get a trust ratio: all or weights")
    variant: Variant = key(
        "update rule to use; it gives the value of each key below that is null", default="paper"
    )
    base: Literal["none", "sgd", "adamw", "lamb", "muon"] = key(
        "optimizer that takes the step with gradients scaled by trust ratios, and with its own "
        "values of keys that LARS lacks; none: LARS",
        default="none",
    )
    trust_coefficient: NotNegative | None = key("eta in the paper", default=None)
    eps: NotNegative | None = key("added to the trust ratio's denominator", default=None)
    trust_norm: Literal["separate", "decayed"] | None = key(
        "denominator of the trust ratio: |g| + decay |w| (separate) or |g + decay w| (decayed)",
        default=None,
    )
    trust_weight_decay: NotNegative | Literal["weight_decay", "momentum"] | None = key(
        "decay in the trust ratio: the value of weight_decay, of momentum, or a number",
        default=None,
    )
    momentum_scaling: Literal["trust", "classic", "none"] | None = key(
        "what the momentum buffer holds: gradients times rate and trust ratio (classic), times "
        "trust ratio (trust), or as they are (none)",
        default=None,
    )
    zero_norm: Literal["one", "skip", "raw"] | None = key(
        "if a norm is 0: ratio 1 (one), also no weight decay (skip), or the formula as it is (raw)",
        default=None,
    )
    trust_clip: bool | None = key(
        "bound the trust ratio: min(ratio / rate, 1), as LARC does", default=None
    )

    @property
    def label(self) -> str:
        """Return `lars`, or with a base for example `lars-adamw`."""
        return label_of(self.name, self.base)

    def check(self) -> None:
        """Raise UserError if keys that the base replaces are set, or missing without a base."""
        for name in REPLACED:
            value = getattr(self, name)
            if self.base == "none" and value is None and name != "momentum_scaling":
                raise key_error(
                    f"optimizer.{name}", None, "must not be null without optimizer.base"
                )
            if self.base != "none" and value is not None:
                allowed = f"must be null with optimizer.base={self.base}, which replaces it"
                raise key_error(f"optimizer.{name}", value, allowed)
        if self.base == "none":
            super().check()


@configuration
class AdamWConfig(OptimizerConfig):
    """torch.optim.AdamW, whose weight decay is decoupled from the gradient."""

    title, cuda_graph = "AdamW", True

    name: Literal["adamw"]
    beta1: Momentum = key("decay of the average of gradients")
    beta2: Momentum = key("decay of the average of squared gradients")
    eps: Positive = key("added to the denominator of the update")

    @property
    def state_tensors(self) -> int:
        """Return 2: both averages."""
        return 2


@configuration
class LAMBConfig(AdamWConfig):
    """The keys of lars.LAMB: AdamW's, and which parameters get a trust ratio."""

    title, cuda_graph = "LAMB", True

    name: Literal["lamb"]  # type: ignore[assignment]
    adapt: Which = key("parameters that get a trust ratio: all or weights")


@configuration
class MuonConfig(AdamWConfig):
    """The keys of Muon for hidden weights, and of AdamW for the other parameters.

    A step reads its rate as a number, so no CUDA graph captures it.
    """

    title, cuda_graph = "Muon", False
    # The factor of `adjust_lr` must not take the rate beyond float32. It is at most 20 here.
    largest_lr = LARGEST / 1000

    name: Literal["muon"]  # type: ignore[assignment]
    inner_lr: Positive = key(
        "rate at which AdamW trains the other parameters while Muon's is base_lr; the schedule "
        "scales both"
    )
    momentum: Momentum = key("momentum; 0 for none")
    nesterov: bool = key("use Nesterov momentum")
    adjust_lr: Literal["original", "match_rms_adamw"] = key(
        "factor on the rate of a matrix of A rows and B columns: sqrt(max(1, A / B)) (original) or "
        "0.2 sqrt(max(A, B)) (match_rms_adamw)"
    )
    muon_first_last: bool = key(
        "Muon also trains the weights of the first convolution and the last linear layer"
    )
    bias_lr_scale: NotNegative = key(
        "rate of biases and normalization parameters, as a multiple of AdamW's",
        default=1.0,
        kw_only=True,
    )

    @property
    def state_tensors(self) -> int:
        """Return 2, AdamW's averages; Muon keeps 1 tensor for each of its weights."""
        return 2

    @property
    def inner_lr_scale(self) -> float:
        """Return AdamW's rate as a multiple of Muon's."""
        return self.inner_lr / self.base_lr

    def check(self) -> None:
        """Raise UserError if the two rates are too far apart."""
        if self.inner_lr_scale > LARGEST:
            allowed = f"must be at most {LARGEST:g} times optimizer.base_lr={self.base_lr:g}"
            raise key_error("optimizer.inner_lr", self.inner_lr, allowed)


# Each optimizer's class. Its builder is a row of OPTIMIZERS in training/build.py.
Optimizers = SGDConfig | LARSConfig | AdamWConfig | LAMBConfig | MuonConfig
MEMBERS: dict[str, type[OptimizerConfig]] = {
    name: member
    for member in get_args(Optimizers)
    for name in get_args(get_type_hints(member)["name"])
}
# Keys of LARS that have no meaning with a base.
REPLACED = ("momentum", "dampening", "nesterov", "momentum_scaling")
# Keys of every optimizer. Under LARS with a base, their defaults are the base's.
SHARED = frozenset(f.name for f in dataclasses.fields(OptimizerConfig)) - {"name"}
TITLES = {name: member.title for name, member in MEMBERS.items()}


def label_of(name: str, base: str = "none") -> str:
    """Return an optimizer's name in run names, tables and files.

    >>> label_of("sgd"), label_of("lars", "adamw")
    ('sgd', 'lars-adamw')
    """
    return name if base == "none" else f"{name}-{base}"


def label_in(choices: Mapping[str, Any]) -> str:
    """Return the label of the optimizer in a run's choices."""
    return label_of(choices["optimizer.name"], choices.get("optimizer.base", "none"))


def title_of(label: str) -> str:
    """Return an optimizer's name in tables and plots; an unknown one in capitals.

    >>> title_of("sgd"), title_of("lars-adamw"), title_of("unknown")
    ('SGD', 'LARS(AdamW)', 'UNKNOWN')
    """
    name, _, base = label.partition("-")
    if name in TITLES and base in TITLES:
        return f"{TITLES[name]}({TITLES[base]})"
    return TITLES.get(label, label.upper())
