"""What each configuration key may be, and the checks across keys.

Owns the typed configuration and the name that its choices give a run. Leaves to others: composing
YAML and command line (compose.py), reading values (parse.py), checks that need the data and every
derived number (training/plan.py). Imports no torch, so that `--help` and mistakes answer at once.
"""

import dataclasses
import functools
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from engine.config.choices import PATH, SAME_RESULT, check_utf8, flatten
from engine.config.parse import Pattern, Range, parse
from engine.errors import key_error

Count = Annotated[int, Range(low=1)]
NotNegativeCount = Annotated[int, Range(low=0)]
# No machine gains by more, and torch dies where the system grants no more threads.
Threads = Annotated[int, Range(low=1, high=1024)]
# Seeds enter a 64-bit hash; the bound keeps them printable and exact in JSON readers.
Seed = Annotated[int, Range(low=0, high=2**53)]
NotNegative = Annotated[float, Range(low=0)]
Positive = Annotated[float, Range(low=0, low_open=True)]
Fraction = Annotated[float, Range(low=0, high=1)]
Minutes = Annotated[str, Pattern("[1-9][0-9]{0,5}min", "minutes such as 10min")]
Percent = Annotated[float, Range(low=0, high=100, low_open=True)]

ModelName = Literal[
    "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet18", "resnet34", "resnet50", "resnet50_imagenet_stem",
]  # fmt: skip
Which = Literal["all", "weights"]
Variant = Literal[
    "paper", "blog", "quadra", "torchlars", "braintools", "pytorch-lars", "pytorch-lars-v1",
    "timm", "larc",
]  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The network and how its weights start."""

    name: ModelName
    init: Literal["default", "he"]
    ghost_batch: Count | None
    zero_init_residual: bool = False
    bn_momentum: Annotated[float, Range(low=0, high=1, low_open=True)] = 0.1


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from and how many are used."""

    name: Literal["synthetic"]
    root: str | None = field(metadata=SAME_RESULT)
    cache: str | None = field(metadata=SAME_RESULT)
    holdout: NotNegativeCount
    train_size: Count | None
    test_size: NotNegativeCount | None


@dataclass(frozen=True)
class ImageFolderConfig(DataConfig):
    """A tree of the user's own; which one it is decides the result."""

    name: Literal["image_folder"]  # type: ignore[assignment]
    root: str | None = field(metadata=PATH)


@dataclass(frozen=True)
class DownloadedDataConfig(DataConfig):
    """A data set that torchvision downloads on first use."""

    name: Literal["cifar10", "cifar100"]  # type: ignore[assignment]
    download_seconds: Positive = field(metadata=SAME_RESULT)


@dataclass(frozen=True)
class SGDConfig:
    """torch.optim.SGD and the rule that scales its rate with the batch."""

    name: Literal["sgd"]
    base_lr: Positive
    lr_scaling: Literal["linear", "sqrt", "none"]
    base_batch: Count
    momentum: Annotated[float, Range(low=0, high=1, high_open=True)]
    dampening: Fraction
    nesterov: bool
    weight_decay: NotNegative
    decay: Which
    bias_lr_scale: NotNegative = field(default=1.0, kw_only=True)


@dataclass(frozen=True)
class LARSConfig(SGDConfig):
    """lars.LARS and the rule that scales its rate with the batch."""

    name: Literal["lars"]  # type: ignore[assignment]
    adapt: Which
    variant: Variant = "paper"
    # Null is the variant's own value.
    trust_coefficient: NotNegative | None = None
    eps: NotNegative | None = None
    trust_norm: Literal["separate", "decayed"] | None = None
    trust_weight_decay: NotNegative | Literal["weight_decay", "momentum"] | None = None
    momentum_scaling: Literal["trust", "classic", "none"] | None = None
    zero_norm: Literal["one", "skip", "raw"] | None = None
    trust_clip: bool | None = None


@dataclass(frozen=True)
class ConstantConfig:
    """Warm-up, then the peak rate to the end."""

    name: Literal["constant"]
    warmup_epochs: NotNegative | None
    warmup_fraction: Fraction
    warmup_multiplier: Positive | None
    warmup_steps: NotNegativeCount | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class CosineConfig(ConstantConfig):
    """Warm-up, then half a cosine down to `min_lr`, or to `final_fraction` of the peak."""

    name: Literal["cosine"]  # type: ignore[assignment]
    min_lr: NotNegative
    final_fraction: Fraction | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class PolynomialConfig(CosineConfig):
    """Warm-up, then polynomial decay down to `min_lr`."""

    name: Literal["polynomial"]  # type: ignore[assignment]
    power: Positive


@dataclass(frozen=True)
class OneCycleConfig(CosineConfig):
    """Up in a line from `start_fraction` of the peak, then down in a line."""

    name: Literal["onecycle"]  # type: ignore[assignment]
    start_fraction: Fraction | None


@dataclass(frozen=True)
class MultistepConfig(ConstantConfig):
    """Warm-up, then the rate times `gamma` after every `step_size` epochs."""

    name: Literal["multistep"]  # type: ignore[assignment]
    step_size: Annotated[float, Range(low=1e-6)] | None
    step_fraction: Annotated[float, Range(low=1e-6, high=1)]
    gamma: Annotated[float, Range(low=0, high=1, low_open=True)]


@dataclass(frozen=True)
class ClipConfig:
    """Bounds on the gradient, applied to the whole batch's mean before the update."""

    norm: Positive | None
    value: Positive | None


@dataclass(frozen=True)
class LossConfig:
    """What training minimises; evaluation's loss is the plain cross-entropy."""

    label_smoothing: Annotated[float, Range(low=0, high=1, high_open=True)] = 0.0


@dataclass(frozen=True)
class EMAConfig:
    """The moving average of the weights that is evaluated; null: none."""

    decay: Annotated[float, Range(low=0, high=1, low_open=True, high_open=True)] | None = None


@dataclass(frozen=True)
class Config:
    """One run of the main job; `python train.py --help` says what each key means."""

    batch: Count
    micro_batch: Count
    epochs: Annotated[int, Range(low=1, high=10**9)]
    eval_every: Count
    seed: Seed
    group: str = field(metadata=SAME_RESULT)
    device: Literal["auto", "cpu", "cuda", "mps"] = field(metadata=SAME_RESULT)
    threads: Threads | None = field(metadata=SAME_RESULT)
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool
    deterministic: bool
    resume: bool = field(metadata=SAME_RESULT)
    target_accuracy: Percent | None = field(metadata=SAME_RESULT)
    log_layers_every: Count | None = field(metadata=SAME_RESULT)
    plan: bool = field(metadata=SAME_RESULT)
    clip: ClipConfig
    model: ModelConfig
    data: DataConfig | ImageFolderConfig | DownloadedDataConfig
    optimizer: SGDConfig | LARSConfig
    scheduler: PolynomialConfig | MultistepConfig | OneCycleConfig | CosineConfig | ConstantConfig
    loss: LossConfig = LossConfig()
    ema: EMAConfig = EMAConfig()
    noise_scale: bool = False
    checkpoint_every: Count | Minutes = field(default=1, metadata=SAME_RESULT)
    sync_bn: bool = False

    @classmethod
    def from_hydra(cls, raw: Mapping[str, Any]) -> "Config":
        """Build the typed configuration from a plain dictionary; raise UserError on a mistake."""
        config: Config = parse(cls, raw)
        check_across_keys(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, which `from_hydra` reads back."""
        return dataclasses.asdict(self)

    def choices(self, as_typed: bool = False) -> dict[str, Any]:
        """Flatten what a run's result depends on to dotted keys, in order.

        A key at its dataclass default is left out, so a key added later (with a default that
        changes nothing) leaves the names of earlier runs as they were.
        as_typed: keep the spelling of a path, and the sign of a zero, which make no difference.
        """
        return dict(flatten(self, as_typed))

    def run_name(self, as_typed: bool = False) -> str:
        """Name the run's directory: what a reader looks for first, then a digest of all choices."""
        text = json.dumps(self.choices(as_typed), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return (
            f"{self.model.name}-{self.data.name}-{self.optimizer.name}"
            f"-b{self.batch}-e{self.epochs}-s{self.seed}-{digest}"
        )


@functools.cache
def default_choices(kind: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Return the values that `Config.choices` leaves out, by dotted key."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for key in dataclasses.fields(kind):
        parts = [hints[key.name], *typing.get_args(hints[key.name])]
        groups = [p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)]
        if not groups and key.default is not dataclasses.MISSING:
            found[prefix + key.name] = key.default
        for group in groups:
            found |= default_choices(group, f"{prefix}{key.name}.")
    return found


@dataclass(frozen=True)
class EvaluationDataConfig:
    """Where val.py finds the pictures; null: where the run found them."""

    root: str | None
    cache: str | None


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation by val.py."""

    checkpoint: str | None
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Threads | None
    json: bool
    data: EvaluationDataConfig

    @classmethod
    def from_hydra(cls, raw: Mapping[str, Any]) -> "EvaluationConfig":
        """Build the typed configuration from a plain dictionary; raise UserError on a mistake."""
        config: EvaluationConfig = parse(cls, raw)
        if config.checkpoint is None:
            raise key_error("checkpoint", None, "must be a checkpoint file or a run's directory")
        check_utf8("data.root", config.data.root)
        return config


def check_across_keys(config: Config) -> None:
    """Refuse values that are fine alone and wrong together."""
    check_group_name(config.group)
    optimizer, scheduler = config.optimizer, config.scheduler
    if optimizer.nesterov and (optimizer.momentum == 0 or optimizer.dampening != 0):
        allowed = "needs optimizer.momentum above 0 and optimizer.dampening=0"
        raise key_error("optimizer.nesterov", True, allowed)
    if scheduler.warmup_epochs is not None and scheduler.warmup_epochs > config.epochs:
        allowed = f"must be at most epochs={config.epochs}"
        raise key_error("scheduler.warmup_epochs", scheduler.warmup_epochs, allowed)
    if scheduler.warmup_epochs is not None and scheduler.warmup_steps is not None:
        allowed = f"must be null where scheduler.warmup_epochs={scheduler.warmup_epochs:g} is given"
        raise key_error("scheduler.warmup_steps", scheduler.warmup_steps, allowed)
    if isinstance(scheduler, CosineConfig) and scheduler.min_lr:
        if scheduler.final_fraction is not None:
            allowed = f"must be null where scheduler.min_lr={scheduler.min_lr:g} sets the last rate"
            raise key_error("scheduler.final_fraction", scheduler.final_fraction, allowed)
    if scheduler.warmup_multiplier is not None and optimizer.lr_scaling != "none":
        allowed = (
            f"needs optimizer.lr_scaling=none (optimizer.lr_scaling={optimizer.lr_scaling} "
            "already sets the peak), or null"
        )
        raise key_error("scheduler.warmup_multiplier", scheduler.warmup_multiplier, allowed)
    ghost = config.model.ghost_batch
    if ghost is not None and ghost > min(config.micro_batch, config.batch):
        allowed = f"must be at most micro_batch={config.micro_batch} and batch={config.batch}"
        raise key_error("model.ghost_batch", ghost, allowed)
    if config.noise_scale and config.batch < 2 * (ghost or 1):
        ghosts = "" if ghost is None else f" of model.ghost_batch={ghost} examples"
        allowed = f"needs a batch of two groups{ghosts} or more, not batch={config.batch}"
        raise key_error("noise_scale", True, allowed)
    if config.sync_bn and ghost is not None:
        allowed = f"must be false where model.ghost_batch={ghost} sets the groups"
        raise key_error("sync_bn", True, allowed)
    if config.data.test_size == 0 and config.data.holdout == 0:
        allowed = "must be above 0 where data.test_size=0 leaves nothing else to evaluate on"
        raise key_error("data.holdout", 0, allowed)
    if not config.data.root:
        allowed = f"{config.data.name} needs a directory"
        if config.data.name == "image_folder":
            allowed += " that holds train/<class>/* and test/<class>/*"
        raise key_error("data.root", config.data.root, allowed)
    check_utf8("data.root", config.data.root)
    check_utf8("data.cache", config.data.cache)


def check_group_name(group: str) -> None:
    """Refuse a group that is no plain folder name, or that the project keeps for itself."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", group) or group in (".", ".."):
        allowed = "must be letters, digits, '.', '_' and '-', and not '.' or '..'"
        raise key_error("group", group, allowed)
    if group in ("runs", "bench") or len(group) > 100:
        raise key_error("group", group, "must not be 'runs' or 'bench', nor beyond 100 characters")
