"""Derive a run's steps, gradient accumulation and learning rates from its configuration.

The schedule is built here too, because its formula gives the last learning rate.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.optim import Optimizer

import schedulers
from engine.config import schema as c
from engine.config.optimizers import MuonConfig
from engine.config.parse import LARGEST
from engine.config.schedules import OneCycleConfig, TVLARSConfig, WarmupConfig
from engine.config.wrapped import stepper
from engine.data.dataset import known_training_size
from engine.errors import key_error
from engine.training.muon import check_torch
from engine.training.schedule import SCHEDULES, Length, count_warmup_steps, warmup_error
from models.batch_norm import group_sizes


@dataclass(frozen=True)
class Plan:
    """The numbers that a run's configuration and data determine.

    Attributes:
        train_examples: images in the training split.
        batch: examples per optimizer step, over all ranks.
        micro_batch: largest number of examples in one forward pass of a rank.
        ghost_batch: examples per batch-norm group; None is one group per pass.
        epochs: number of epochs.
        steps_per_epoch: optimizer steps per epoch, the short last batch included.
        total_steps: optimizer steps of all epochs, which the schedule is a function of.
        warmup_steps: optimizer steps of warm-up.
        base_lr: learning rate of the first step.
        peak_lr: largest learning rate of the run, at the end of warm-up.
        final_lr: learning rate of the step `last_step`.
        optimizer_lr: learning rate of a new optimizer, from which the schedule computes all others.
            It is the peak, except under tvlars.
        schedule: further arguments of the schedule's class.
        decay: the learning rate after warm-up as a formula.
        scaling: how the peak rate follows from optimizer.base_lr, as text.
        bias_lr_scale: factor on the learning rate of biases and normalization parameters.
        inner_lr_scale: factor on the learning rate of the parameters that AdamW trains under Muon.
        min_passes: least number of forward passes of a rank per step, if it has enough examples.
        world_size: number of ranks that share each batch.
        max_steps: bound on the run's optimizer steps; None is `total_steps`.
        eval_every: epochs, or steps such as `50steps`, between evaluations.
        stop_accuracy: hold-out accuracy in % that ends the run; None if none does.

    """

    train_examples: int
    batch: int
    micro_batch: int
    ghost_batch: int | None
    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    base_lr: float
    peak_lr: float
    final_lr: float
    optimizer_lr: float
    schedule: Mapping[str, float] = field(default_factory=dict)
    decay: str = ""
    scaling: str = ""
    bias_lr_scale: float = 1.0
    inner_lr_scale: float = 1.0
    min_passes: int = 1
    world_size: int = 1
    max_steps: int | None = None
    eval_every: int | str = 1
    stop_accuracy: float | None = None

    @property
    def last_step(self) -> int:
        """Return the number of the run's last optimizer step, unless it stops at its target."""
        return min(self.total_steps, self.max_steps or self.total_steps)

    @property
    def eval_steps(self) -> int:
        """Return the optimizer steps between evaluations."""
        if isinstance(self.eval_every, str):
            return int(self.eval_every.removesuffix("steps"))
        return self.eval_every * self.steps_per_epoch

    def next_evaluation(self, step: int) -> int:
        """Return the number of the next step after which the run is evaluated.

        Args:
            step: number of optimizer steps done.

        """
        return min(self.last_step, (step // self.eval_steps + 1) * self.eval_steps)

    def evaluates(self, step: int) -> bool:
        """Return True if the run is evaluated after this number of steps."""
        return step == self.last_step or step % self.eval_steps == 0

    @property
    def last_batch(self) -> int:
        """Return the size of an epoch's last batch."""
        return self.train_examples - (self.steps_per_epoch - 1) * self.batch

    def rank_passes(self, examples: int) -> list[list[int]]:
        """Return the sizes of each rank's forward passes over a batch of `examples`.

        Without ghost batch norm, parts and passes are as equal as possible, and a pass has at most
        `micro_batch` examples. All ranks make the same number of passes, because synchronized batch
        norm communicates in each. A rank without examples makes empty passes.

        With ghost batch norm, ranks and passes take whole groups, so the groups depend on neither.
        The last group, which includes the remainder, may exceed `micro_batch`.
        """
        if self.ghost_batch is None:
            parts = even_sizes(examples, self.world_size)
            least = min(self.min_passes, parts[0])
            passes = max(1, math.ceil(parts[0] / self.micro_batch), least)
            return [even_sizes(part, passes) for part in parts]
        groups = iter(group_sizes(examples, self.ghost_batch))
        counts = even_sizes(len(group_sizes(examples, self.ghost_batch)), self.world_size)
        return [self._join_groups(list(itertools.islice(groups, count))) for count in counts]

    def distinct_passes(self, rank: int) -> list[int]:
        """Return the sizes of the forward passes that a rank makes in an epoch, each only once.

        A size is repeated if another rank has a different size in the same pass. Without ghost
        batch norm all ranks thus make the same number of passes, as synchronized batch norm
        requires.
        """
        passes: dict[tuple[int | None, ...], None] = {}
        for examples in (self.batch, self.last_batch):
            passes |= dict.fromkeys(itertools.zip_longest(*self.rank_passes(examples)))
        return [size for sizes in passes if (size := sizes[rank]) is not None]

    def _join_groups(self, groups: list[int]) -> list[int]:
        """Return the sizes of passes that hold whole ghost groups of the given sizes."""
        assert self.ghost_batch is not None
        sizes: list[int] = []
        most = self.micro_batch
        if self.min_passes > 1:
            most = min(most, math.ceil(len(groups) / self.min_passes) * self.ghost_batch)
        for group in groups:
            if sizes and sizes[-1] + group <= most:
                sizes[-1] += group
            else:
                sizes.append(group)
        return sizes or [0]

    def rates(self) -> dict[str, float]:
        """Return the rates that a run's summary reports."""
        return {"base_lr": self.base_lr, "peak_lr": self.peak_lr, "final_lr": self.final_lr}

    def describe(self) -> str:
        """Return the plan as five to eight lines, from which every rate can be computed."""
        parts = Counter(map(describe_sizes, self.rank_passes(self.batch)))
        shown = ", ".join(
            passes if self.world_size == 1 else f"{ranks} rank{'s' * (ranks > 1)} of {passes}"
            for passes, ranks in parts.items()
        )
        reached = "" if self.warmup_steps < self.last_step else ", which the run does not reach"
        others = ""
        if self.inner_lr_scale != 1.0:
            times = f"{self.inner_lr_scale:g} times these rates"
            others = f"\nAdamW     for what Muon does not train: {times}"
        if self.bias_lr_scale != 1.0:
            times = f"{self.bias_lr_scale * self.inner_lr_scale:g} times these rates"
            others += f"\nbiases    and normalization parameters: {times}"
        return (
            f"steps     {self.total_steps} = {self.epochs} epochs x {self.steps_per_epoch} "
            f"(batch {self.batch}, last batch of an epoch {self.last_batch}, "
            f"{self.train_examples} training images)\n"
            f"passes    {shown} images a step\n"
            f"rates     first {self.base_lr:.6g}, peak {self.peak_lr:.6g} at step "
            f"{self.warmup_steps}{reached}, final {self.final_lr:.6g} at step "
            f"{self.last_step - 1}\n"
            f"scaling   {self.scaling}\n"
            f"decay     {self.decay}{others}{self._describe_end()}"
        )

    def _describe_end(self) -> str:
        """Return a line on what may end the run before its last epoch; empty if nothing does."""
        cut = self.last_step < self.total_steps
        ends = [f"after step {self.last_step} (max_steps)"] * cut
        if self.stop_accuracy is not None:
            ends.insert(0, f"at the first hold-out accuracy of {self.stop_accuracy:g} % or more")
        return f"\nends      {', or '.join(ends)}" if ends else ""


def even_sizes(examples: int, parts: int) -> list[int]:
    """Split `examples` into `parts` sizes that differ by at most 1, the larger ones first."""
    small, larger = divmod(examples, parts)
    return [small + 1] * larger + [small] * (parts - larger)


def describe_sizes(sizes: list[int]) -> str:
    """Return the sizes of passes as text: `4 x 1024` if they are equal, else `700 + 600`."""
    return f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else " + ".join(map(str, sizes))


def check_plan(config: c.Config, world_size: int = 1) -> None:
    """Raise what `make_plan` raises, if the data set's size is known before it is loaded."""
    size = known_training_size(config.data)
    if size is not None:
        make_plan(config, size, world_size)


def make_plan(config: c.Config, train_examples: int, world_size: int = 1) -> Plan:
    """Return the plan of a run; raise UserError if the configuration does not fit the data.

    Args:
        config: the run's configuration.
        train_examples: images in the training split.
        world_size: number of ranks.

    """
    if config.sync_bn and world_size == 1:
        allowed = "needs several ranks; start them with torchrun --nproc-per-node=2"
        raise key_error("sync_bn", True, allowed)
    optimizer = stepper(config.optimizer)
    if isinstance(optimizer, MuonConfig):
        check_torch("optimizer" if optimizer is config.optimizer else "optimizer.base")
        optimizer.check()
    if config.batch > train_examples:
        allowed = f"must be at most the training split's {train_examples} images"
        raise key_error("batch", config.batch, allowed)
    scheduler = config.scheduler
    steps_per_epoch = math.ceil(train_examples / config.batch)
    total_steps = steps_per_epoch * config.epochs
    warmup_steps = count_warmup_steps(scheduler, config.epochs, steps_per_epoch)
    if isinstance(scheduler, WarmupConfig) and warmup_steps > total_steps:
        raise warmup_error(scheduler, warmup_steps, f"at most the run's {total_steps} steps")
    base_lr, peak_lr = first_and_peak_rate(config)
    optimizer_lr = scaled_rate(config)
    if (largest := max(peak_lr, optimizer_lr)) > optimizer.largest_lr:
        allowed = f"gives a peak rate of {largest:.6g}, which float32 cannot hold"
        if largest <= LARGEST:
            allowed = f"gives a peak rate of {largest:.6g}, above {optimizer.largest_lr:.6g}"
        raise key_error("optimizer.base_lr", config.optimizer.base_lr, allowed)
    length = Length(config.epochs, steps_per_epoch, warmup_steps, peak_lr)
    plan = Plan(
        train_examples=train_examples,
        batch=config.batch,
        micro_batch=config.micro_batch,
        ghost_batch=config.model.ghost_batch,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        base_lr=base_lr if warmup_steps else peak_lr,
        peak_lr=peak_lr,
        final_lr=peak_lr,
        optimizer_lr=optimizer_lr,
        schedule=SCHEDULES[scheduler.name].options(scheduler, length),
        scaling=describe_scaling(config, optimizer_lr),
        bias_lr_scale=config.optimizer.bias_lr_scale,
        inner_lr_scale=optimizer.inner_lr_scale,
        # The noise scale compares the gradients of the first pass and of the whole batch.
        min_passes=2 if config.noise_scale else 1,
        world_size=world_size,
        max_steps=config.max_steps,
        eval_every=config.eval_every,
        stop_accuracy=config.target_accuracy if config.stop_at_target else None,
    )
    if config.model.name == "resnet50_imagenet_stem" and not config.sync_bn:
        check_passes(plan)
    if config.noise_scale and max(map(len, plan.rank_passes(plan.batch))) < 2:
        groups = "examples" if plan.ghost_batch is None else "groups of model.ghost_batch"
        allowed = (
            f"needs two {groups} on at least one rank; batch={plan.batch} over {world_size} "
            "ranks has fewer"
        )
        raise key_error("noise_scale", True, allowed)
    schedule = build_scheduler(scheduler, plan, None)
    final_lr = schedule.lr_at(plan.last_step - 1, optimizer_lr)
    return dataclasses.replace(plan, final_lr=final_lr, decay=schedule.formula())


def build_scheduler(
    config: c.Schedules, plan: Plan, optimizer: Optimizer | None
) -> schedulers.WarmupLR:
    """Return the schedule of the whole run.

    Args:
        config: the schedule's configuration.
        plan: the run's plan.
        optimizer: an optimizer at the plan's `optimizer_lr`; None gives the curve only.

    """
    options = {"total_steps": plan.total_steps, **plan.schedule}
    if isinstance(config, WarmupConfig):
        options |= {"warmup_steps": plan.warmup_steps, "start_lr": plan.base_lr}
    return SCHEDULES[config.name].make(optimizer, **options)


def check_passes(plan: Plan) -> None:
    """Raise UserError if a pass or group has one image, for a model whose last maps are 1x1.

    Batch norm would have a single value per channel there.
    """
    allowed = "must not give batch norm a single image: this model's last feature maps are 1x1"
    if plan.ghost_batch == 1:
        raise key_error("model.ghost_batch", 1, allowed)
    for examples in (plan.batch, plan.last_batch):
        if 1 in itertools.chain(*plan.rank_passes(examples)):
            raise key_error("batch", plan.batch, allowed)


def scaled_rate(config: c.Config) -> float:
    """Return base_lr times the factor of the scaling rule (Goyal et al. 2017, arXiv 1706.02677).

    With `lr_scaling=none` the factor is `warmup_multiplier`, or 1 if it is null or not a key.
    """
    optimizer, scheduler = config.optimizer, config.scheduler
    if optimizer.lr_scaling != "none":
        rule = schedulers.SCALING_RULES[optimizer.lr_scaling]
        return optimizer.base_lr * rule(config.batch, optimizer.base_batch)
    return optimizer.base_lr * (scheduler.multiplier or 1.0)


def first_and_peak_rate(config: c.Config) -> tuple[float, float]:
    """Return the learning rate of the first step and the largest one.

    The peak is `scaled_rate`. Warm-up starts at base_lr, or, with a scaling rule, at the peak if
    that is lower, as it is for batches below `base_batch`. A onecycle schedule with a
    `start_fraction` starts at this fraction of the peak. A tvlars schedule starts with its largest
    rate.
    """
    optimizer, scheduler, peak = config.optimizer, config.scheduler, scaled_rate(config)
    if isinstance(scheduler, TVLARSConfig):
        delay = scheduler.delay(config.epochs)
        curve = (scheduler.alpha, scheduler.steepness, delay, scheduler.gamma_min)
        peak *= schedulers.tvlars(0.0, *curve)
        return peak, peak
    first = optimizer.base_lr if optimizer.lr_scaling == "none" else min(optimizer.base_lr, peak)
    if isinstance(scheduler, OneCycleConfig) and scheduler.start_fraction is not None:
        first = scheduler.start_fraction * peak
    return first, peak


def describe_scaling(config: c.Config, scaled: float) -> str:
    """Return how `scaled_rate` follows from optimizer.base_lr and the batch, as a formula."""
    optimizer, scheduler = config.optimizer, config.scheduler
    base, ratio = f"{optimizer.base_lr:.6g}", f"{config.batch} / {optimizer.base_batch}"
    factor = {
        "none": f"{scheduler.multiplier or 1.0:.6g}",
        "linear": ratio,
        "sqrt": f"sqrt({ratio})",
    }[optimizer.lr_scaling]
    # The schedule's formula defines f.
    name = "peak / f(0) =" if isinstance(scheduler, TVLARSConfig) else "peak"
    rule = f"optimizer.lr_scaling={optimizer.lr_scaling}"
    return f"{name} {scaled:.6g} = optimizer.base_lr {base} x {factor}, {rule}"


def base_lr_for(config: c.Config, peak_lr: float) -> float:
    """Return the `optimizer.base_lr` that gives this peak; the peak is proportional to base_lr."""
    return peak_lr * config.optimizer.base_lr / first_and_peak_rate(config)[1]
