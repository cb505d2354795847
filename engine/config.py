"""What each configuration key may be, and the checks across keys.

Owns the typed configuration and its one-line errors. Leaves to others: composing YAML and command
line (cli.py), checks that need the data (plan.py), and every derived number (plan.py).
Imports no torch, so that `--help` and a typing mistake answer at once.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


class UserError(Exception):
    """A user's mistake; its text is the one line to print before exit status 2."""


@dataclass(frozen=True)
class Range:
    """The numbers a key allows; an open end is one the key cannot take."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        """Tell whether the value lies inside."""
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        """Word the range for an error message."""
        parts = []
        if self.low != -math.inf:
            parts.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high != math.inf:
            parts.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(parts)


Count = Annotated[int, Range(low=1)]
# Seeds enter a 64-bit hash; the bound keeps them printable and exact in JSON readers.
Seed = Annotated[int, Range(low=0, high=2**53)]
NotNegative = Annotated[float, Range(low=0)]
Positive = Annotated[float, Range(low=0, low_open=True)]
Fraction = Annotated[float, Range(low=0, high=1)]
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


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from and how many are used."""

    name: Literal["image_folder", "synthetic"]
    root: str | None
    cache: str | None
    holdout: Annotated[int, Range(low=0)]
    train_size: Count | None
    test_size: Count | None


@dataclass(frozen=True)
class DownloadedDataConfig(DataConfig):
    """A data set that torchvision downloads on first use."""

    name: Literal["cifar10", "cifar100"]  # type: ignore[assignment]
    download_seconds: Positive


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


@dataclass(frozen=True)
class CosineConfig(ConstantConfig):
    """Warm-up, then half a cosine down to `min_lr`."""

    name: Literal["cosine"]  # type: ignore[assignment]
    min_lr: NotNegative


@dataclass(frozen=True)
class PolynomialConfig(CosineConfig):
    """Warm-up, then polynomial decay down to `min_lr`."""

    name: Literal["polynomial"]  # type: ignore[assignment]
    power: Positive


@dataclass(frozen=True)
class MultistepConfig(ConstantConfig):
    """Warm-up, then the rate times `gamma` after every `step_size` epochs."""

    name: Literal["multistep"]  # type: ignore[assignment]
    step_size: Positive | None
    step_fraction: Annotated[float, Range(low=0, high=1, low_open=True)]
    gamma: Annotated[float, Range(low=0, high=1, low_open=True)]


@dataclass(frozen=True)
class ClipConfig:
    """Bounds on the gradient, applied to the whole batch's mean before the update."""

    norm: Positive | None
    value: Positive | None


@dataclass(frozen=True)
class Config:
    """One run of the main job; `python train.py --help` says what each key means."""

    batch: Count
    micro_batch: Count
    epochs: Count
    eval_every: Count
    seed: Seed
    group: str
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count | None
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool
    deterministic: bool
    resume: bool
    target_accuracy: Percent | None
    log_layers_every: Count | None
    plan: bool
    clip: ClipConfig
    model: ModelConfig
    data: DataConfig | DownloadedDataConfig
    optimizer: SGDConfig | LARSConfig
    scheduler: PolynomialConfig | MultistepConfig | CosineConfig | ConstantConfig

    @classmethod
    def from_hydra(cls, raw: Mapping[str, Any]) -> "Config":
        """Build the typed configuration from a plain dictionary; raise UserError on a mistake."""
        config: Config = parse(cls, raw)
        check_across_keys(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, which `from_hydra` reads back."""
        return dataclasses.asdict(self)


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
    threads: Count | None
    json: bool
    data: EvaluationDataConfig

    @classmethod
    def from_hydra(cls, raw: Mapping[str, Any]) -> "EvaluationConfig":
        """Build the typed configuration from a plain dictionary; raise UserError on a mistake."""
        config: EvaluationConfig = parse(cls, raw)
        if config.checkpoint is None:
            raise key_error("checkpoint", None, "must be a checkpoint file or a run's directory")
        return config


def key_error(key: str, value: Any, allowed: str) -> UserError:
    """Word a user's mistake: the key, the value, what is allowed."""
    shown = "null" if value is None else json.dumps(value) if type(value) is bool else str(value)
    shown = shown.removesuffix(".0") if type(value) is float else " ".join(shown.split())
    return UserError(f"{key}={shown}: {allowed}")


def closest(key: str, known: Iterable[str]) -> str:
    """Name the known keys nearest to a mistyped one, or all of them."""
    known = sorted(known)
    matches = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    leaf = key.rpartition(".")[2]
    matches = matches or [name for name in known if name.rpartition(".")[2] == leaf]
    return f"did you mean {' or '.join(matches)}?" if matches else f"one of {', '.join(known)}"


def known_keys(cls: Any, prefix: str = "") -> set[str]:
    """List every dotted key of a configuration class, over all members of each group."""
    keys = set()
    for name, hint in get_type_hints(cls, include_extras=True).items():
        members = [m for m in (get_args(hint) or (hint,)) if _is_group(m)]
        keys |= {prefix + name} if not members else set()
        keys = keys.union(*(known_keys(member, f"{prefix}{name}.") for member in members))
    return keys


def parse(cls: Any, raw: Any, prefix: str = "") -> Any:
    """Build dataclass `cls` from a mapping, every value checked; raise UserError on a mistake."""
    hints = get_type_hints(cls, include_extras=True)
    for key in raw:
        if key not in hints:
            names = closest(f"{prefix}{key}", (prefix + name for name in hints))
            raise key_error(f"{prefix}{key}", raw[key], f"unknown key; {names}")
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in raw:
            values[field.name] = _convert(hints[field.name], raw[field.name], prefix + field.name)
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{prefix}{field.name}: this key is missing and has no default")
    return cls(**values)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Check one value against its type; ints pass as floats, nothing else is coerced."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    groups = [member for member in members if _is_group(member)]
    if groups:
        return _convert_group(groups, value, key)
    nullable = type(None) in members
    if value is None and nullable:
        return None
    words = [member for member in members if get_origin(member) is Literal]
    others = [member for member in members if member not in (*words, type(None))]
    or_null = " or null" if nullable else ""
    if words and (isinstance(value, str) or not others):
        if value in get_args(words[0]) and isinstance(value, str):
            return value
        or_number = " or a number" if others else ""
        allowed = f"must be one of {', '.join(get_args(words[0]))}{or_number}{or_null}"
        raise key_error(key, value, allowed)
    (hint,) = others
    base, bounds = get_args(hint) if get_origin(hint) is Annotated else (hint, Range())
    if base is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) is base and finite and (base in (bool, str) or value in bounds):
        return value
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[base]
    raise key_error(key, value, f"must be {kind} {bounds}".rstrip() + or_null)


def _convert_group(groups: list[Any], value: Any, key: str) -> Any:
    """Parse a group by the member that its `name` chooses."""
    if not isinstance(value, Mapping):
        raise key_error(key, value, "must be a group of keys")
    named = {name: g for g in groups for name in get_args(get_type_hints(g).get("name"))}
    if not named:
        return parse(groups[0], value, f"{key}.")
    name = value.get("name")
    if not isinstance(name, str) or name not in named:
        raise key_error(f"{key}.name", name, f"must be one of {', '.join(named)}")
    return parse(named[name], value, f"{key}.")


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
    if config.data.name == "image_folder" and config.data.root is None:
        allowed = "image_folder needs a directory that holds train/<class>/* and test/<class>/*"
        raise key_error("data.root", None, allowed)


def check_group_name(group: str) -> None:
    """Refuse a group that is no plain folder name, or that the project keeps for itself."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", group) or group in (".", ".."):
        allowed = "must be letters, digits, '.', '_' and '-', and not '.' or '..'"
        raise key_error("group", group, allowed)
    if group in ("runs", "bench") or len(group) > 100:
        raise key_error("group", group, "must not be 'runs' or 'bench', nor beyond 100 characters")


def choices(config: Config) -> dict[str, Any]:
    """Flatten what a run's result depends on to dotted keys, in order.

    A key at its dataclass default is left out, so a key added later (with a default that changes
    nothing) leaves the names of earlier runs as they were.
    """
    about_the_place = {
        "group",
        "device",
        "threads",
        "resume",
        "target_accuracy",
        "plan",
        "log_layers_every",
    }
    about_the_place |= {"data.cache", "data.download_seconds"}
    if config.data.name != "image_folder":
        about_the_place.add("data.root")
    return {k: v for k, v in _flatten(config) if k not in about_the_place}


def _flatten(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flatten(value, f"{prefix}{field.name}.")
        elif field.default is dataclasses.MISSING or value != field.default:
            yield prefix + field.name, value


def run_name(config: Config) -> str:
    """Name the run's directory: what a reader looks for first, then a digest of every choice."""
    text = json.dumps(choices(config), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return (
        f"{config.model.name}-{config.data.name}-{config.optimizer.name}"
        f"-b{config.batch}-e{config.epochs}-s{config.seed}-{digest}"
    )
