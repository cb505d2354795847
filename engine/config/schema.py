"""The typed configuration, checks across its keys, and the name that it gives a run.

Other modules contain the keys of each optimizer and schedule (optimizers.py, schedules.py), the
composition of YAML and command line (compose.py), the parsing of values (parse.py), and the checks
that need the data, with every derived number (training/plan.py). Does not import torch, so that
`--help` and error messages appear at once.
"""

import dataclasses
import functools
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from engine.config.choices import check_utf8, flatten
from engine.config.keys import (
    Count,
    Device,
    Minutes,
    Momentum,
    NotNegativeCount,
    Percent,
    Positive,
    PositiveFraction,
    Seed,
    Steps,
    Threads,
    configuration,
    key,
)
from engine.config.optimizers import Optimizers
from engine.config.parse import Range, parse
from engine.config.schedules import Schedules
from engine.errors import key_error

ModelName = Literal[
    "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet18", "resnet34", "resnet50", "resnet50_imagenet_stem",
]  # fmt: skip


ROOT = "directory of the images; image_folder: DIR/train/<class>/*, DIR/test/<class>/*"


@configuration
class ModelConfig:
    """The keys of the network."""

    name: ModelName
    init: Literal["default", "he"] = key(
        "initial weights: default (torch's and torchvision's own) or he (kaiming_uniform_ on every "
        "convolution and linear weight)"
    )
    ghost_batch: Count | None = key("examples per batch-norm group; null: the whole micro-batch")
    zero_init_residual: bool = key(
        "start each residual block as its shortcut: its last batch norm's weight is 0",
        default=False,
    )
    bn_momentum: PositiveFraction = key(
        "weight of each step's statistics in batch norm's running statistics", default=0.1
    )


@configuration
class DataConfig:
    """The keys of every data set, and all those of the synthetic one."""

    name: Literal["synthetic"]
    root: str | None = key(ROOT, same_result=True)
    cache: str | None = key(
        "where decoded images are kept if root cannot be written", same_result=True
    )
    holdout: NotNegativeCount = key("training images in the hold-out split, to choose settings on")
    train_size: Count | None = key(
        "images of a class-balanced subset of the training split; null: all"
    )
    test_size: NotNegativeCount | None = key(
        "images of a class-balanced subset of the test split; 0: never evaluate it; null: all"
    )


@configuration
class ImageFolderConfig(DataConfig):
    """A tree of the user's images. Its path is part of a run's name: it determines the result."""

    name: Literal["image_folder"]  # type: ignore[assignment]
    root: str | None = key(ROOT, path=True)


@configuration
class DownloadedDataConfig(DataConfig):
    """A data set that torchvision downloads on first use."""

    name: Literal["cifar10", "cifar100"]  # type: ignore[assignment]
    download_seconds: Positive = key("time limit of a download, in seconds", same_result=True)


@configuration
class ClipConfig:
    """Gradient clipping, applied to the mean gradient of the whole batch before the update."""

    norm: Positive | None = key("bound on the norm of all gradients together; null: none")
    value: Positive | None = key("bound on each element of the gradients; null: none")


@configuration
class LossConfig:
    """The training loss. Evaluation always uses plain cross-entropy."""

    label_smoothing: Momentum = key(
        "share of each label that is spread over all classes, in training only", default=0.0
    )


@configuration
class EMAConfig:
    """The exponential moving average of the weights, which is evaluated in their place."""

    decay: Annotated[float, Range(low=0, high=1, low_open=True, high_open=True)] | None = key(
        "evaluate an average of the weights over about 1 / (1 - decay) steps; null: the weights "
        "themselves",
        default=None,
    )


@configuration
class Config:
    """The configuration of one training run."""

    batch: Count = key("examples per optimizer step, over all ranks")
    micro_batch: Count = key(
        "most examples in one forward pass of a rank; a larger batch uses gradient accumulation"
    )
    epochs: Annotated[int, Range(low=1, high=10**9)] = key("passes over the training split")
    eval_every: Count | Steps = key(
        "epochs, or optimizer steps such as 50steps, between evaluations; the end of the run is "
        "always evaluated"
    )
    seed: Seed = key("seed of weights, order and augmentation")
    group: str = key(
        "the table that the run belongs to: letters, digits, '.', '_', '-'", same_result=True
    )
    device: Device = key("where to compute: auto, cpu, cuda or mps", same_result=True)
    threads: Threads | None = key(
        "CPU threads of a rank; null: the available CPUs divided among a machine's ranks and a "
        "sweep's runs at once; a resume keeps the number",
        same_result=True,
    )
    precision: Literal["auto", "fp32", "bf16"] = key(
        "number format of the network: fp32, bf16 (autocast), or auto: bf16 if the hardware has it"
    )
    compile: bool = key("torch.compile the model")
    deterministic: bool = key(
        "make a rerun bit-equal on the same machine, torch version and threads"
    )
    resume: bool = key(
        "resume from the run's own checkpoint; false: start from scratch", same_result=True
    )
    target_accuracy: Percent | None = key(
        "accuracy in %; tables report the time to reach it; null: the baseline's minus 0.5",
        same_result=True,
    )
    log_layers_every: Count | None = key(
        "with LARS (without optimizer.base) or LAMB, steps between logs of each layer's trust "
        "ratio, norms and effective rate to TensorBoard; null: no logs",
        same_result=True,
    )
    plan: bool = key("print the plan (steps, rates, memory) and stop", same_result=True)
    clip: ClipConfig
    model: ModelConfig
    data: DownloadedDataConfig | ImageFolderConfig | DataConfig
    optimizer: Optimizers
    scheduler: Schedules
    loss: LossConfig = LossConfig()
    ema: EMAConfig = EMAConfig()
    noise_scale: bool = key(
        "estimate the gradient noise scale; a batch then has at least two micro-batches",
        default=False,
    )
    checkpoint_every: Count | Minutes = key(
        "epochs, or minutes such as 10min, between checkpoints; the last epoch always has one",
        default=1,
        same_result=True,
    )
    sync_bn: bool = key(
        "compute batch-norm statistics over the micro-batches of all ranks; needs several ranks on "
        "CUDA",
        default=False,
    )
    parallel: Literal["auto"] | Count = key(
        "with -m: how many runs train at once on this machine; auto: as many as finish the sweep "
        "soonest",
        default="auto",
        same_result=True,
    )
    report: bool = key(
        "with -m: write results/<group>/report.html too, one page to open in a browser; needs "
        "plotly",
        default=False,
        same_result=True,
    )
    stop_at_target: bool = key(
        "end the run at the first evaluation at or above target_accuracy on the hold-out split; "
        "needs data.holdout",
        default=False,
    )
    max_steps: Count | None = key(
        "optimizer steps after which the run ends; the schedule stays that of all epochs; null: "
        "after the last epoch",
        default=None,
    )
    progress: Literal["auto", "bar", "lines", "off"] = key(
        "what is printed during training: lines (one an epoch), bar (lines and a progress bar), "
        "off, or auto: a bar on a terminal, else lines",
        default="auto",
        same_result=True,
    )

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
        """Return what a run's result depends on, by dotted key, in the order of declaration.

        A key at its dataclass default is left out, so that a key added later does not change the
        names of earlier runs. `target_accuracy` is a choice only if the run stops there.

        Args:
            as_typed: True to keep the spelling of a path and the sign of a zero.

        """
        stop = {"target_accuracy": self.target_accuracy} if self.stop_at_target else {}
        return dict(flatten(self, as_typed)) | stop

    def run_name(self, as_typed: bool = False) -> str:
        """Return the name of the run's directory: its main choices, then a hash of all choices."""
        text = json.dumps(self.choices(as_typed), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return (
            f"{self.model.name}-{self.data.name}-{self.optimizer.label}"
            f"-b{self.batch}-e{self.epochs}-s{self.seed}-{digest}"
        )


def default_choices(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dataclass defaults that `Config.choices` may leave out, by dotted key.

    A group's members have separate defaults. Only those of the members in `choices` are returned.
    """
    return {
        dotted: default
        for (group, member), defaults in _defaults().items()
        if member is None or choices.get(f"{group}name") == member
        for dotted, default in defaults.items()
    }


@functools.cache
def _defaults(config: Any = Config, prefix: str = "") -> dict[tuple[str, str | None], Any]:
    """Return the defaults of a class's keys, by (prefix, member's name or None)."""
    hints = typing.get_type_hints(config)
    names = typing.get_args(hints.get("name")) or (None,)
    found: dict[tuple[str, str | None], Any] = {(prefix, name): {} for name in names}
    for entry in dataclasses.fields(config):
        members = [
            part
            for part in (hints[entry.name], *typing.get_args(hints[entry.name]))
            if isinstance(part, type) and dataclasses.is_dataclass(part)
        ]
        for member in members:
            found |= _defaults(member, f"{prefix}{entry.name}.")
        if not members and entry.default is not dataclasses.MISSING:
            for name in names:
                found[prefix, name][prefix + entry.name] = entry.default
    return found


@configuration
class EvaluationDataConfig:
    """The data keys of val.py."""

    root: str | None = key("directory of the images; null: the one that the run used")
    cache: str | None = key(
        "where decoded images are kept if data.root cannot be written; null: as in the run"
    )


@configuration
class EvaluationConfig:
    """The configuration of val.py."""

    checkpoint: str | None = key("a checkpoint file, or a run's directory")
    device: Device = key("where to compute: auto, cpu, cuda or mps")
    threads: Threads | None = key("CPU threads; null: as in the run")
    json: bool = key(
        "print one line of JSON: test_accuracy, test_loss, per_class_accuracy, history"
    )
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
    """Raise UserError for values that are valid separately but not together."""
    check_group_name(config.group)
    optimizer, scheduler = config.optimizer, config.scheduler
    optimizer.check()
    scheduler.check(config.epochs)
    if scheduler.multiplier is not None and optimizer.lr_scaling != "none":
        allowed = (
            f"needs optimizer.lr_scaling=none (optimizer.lr_scaling={optimizer.lr_scaling} "
            "already sets the peak), or null"
        )
        raise key_error("scheduler.warmup_multiplier", scheduler.multiplier, allowed)
    ghost = config.model.ghost_batch
    if ghost is not None and ghost > min(config.micro_batch, config.batch):
        allowed = f"must be at most micro_batch={config.micro_batch} and batch={config.batch}"
        raise key_error("model.ghost_batch", ghost, allowed)
    if config.noise_scale and config.batch < 2 * (ghost or 1):
        ghosts = "" if ghost is None else f" of model.ghost_batch={ghost} examples"
        allowed = f"needs a batch of two groups{ghosts} or more, not batch={config.batch}"
        raise key_error("noise_scale", True, allowed)
    if config.sync_bn and ghost is not None:
        allowed = f"must be false if model.ghost_batch={ghost} sets the groups"
        raise key_error("sync_bn", True, allowed)
    if config.data.test_size == 0 and config.data.holdout == 0:
        allowed = "must be above 0, since data.test_size=0 leaves nothing else to evaluate on"
        raise key_error("data.holdout", 0, allowed)
    if config.stop_at_target and config.target_accuracy is None:
        allowed = "needs target_accuracy, the accuracy in % to stop at, such as target_accuracy=70"
        raise key_error("stop_at_target", True, allowed)
    if config.stop_at_target and config.data.holdout == 0:
        allowed = (
            "needs data.holdout above 0, such as data.holdout=5000; to stop on the test split "
            "would be to choose on it"
        )
        raise key_error("stop_at_target", True, allowed)
    if not config.data.root:
        allowed = f"{config.data.name} needs a directory"
        if config.data.name == "image_folder":
            allowed += " that holds train/<class>/* and test/<class>/*"
        raise key_error("data.root", config.data.root, allowed)
    check_utf8("data.root", config.data.root)
    check_utf8("data.cache", config.data.cache)


def check_group_name(group: str) -> None:
    """Raise UserError if a group is not a plain folder name, or is reserved by the project."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", group) or group in (".", ".."):
        allowed = "must be letters, digits, '.', '_' and '-', and not '.' or '..'"
        raise key_error("group", group, allowed)
    if group in ("runs", "bench") or len(group) > 100:
        allowed = "must not be 'runs' or 'bench', nor longer than 100 characters"
        raise key_error("group", group, allowed)
