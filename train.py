"""Train a ResNet at a given batch, or with -m a sweep of them: `python train.py --help`."""

import os
import sys
import time

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from engine.cli import exit_status, read_command_line
from engine.config.compose import config_dir_flags, plain_config
from engine.config.schema import Config


def train(config: Config, arguments: list[str]) -> None:
    """Train one run to its summary: from its seed, from its checkpoint, or not at all if done.

    arguments: those of the command that trains this run alone.
    """
    # Imported here, so that --help and a mistyped key answer before torch is loaded.
    from engine.data.augment import Normalization, TrainingPictures
    from engine.data.dataset import load_data, plan_data
    from engine.runs.records import COMPLETED, DIVERGED
    from engine.runs.run import Follower, Run
    from engine.system import distributed as ranks
    from engine.system.resources import peak_memory_bytes
    from engine.system.runtime import check_sync_bn, facts, start_runtime
    from engine.system.signals import pausing
    from engine.training.checkpoint import save_checkpoint
    from engine.training.evaluate import chance, evaluate_splits
    from engine.training.loop import PartialEpoch, epoch_row, train_epoch
    from engine.training.memory import check_memory, describe_memory
    from engine.training.plan import check_plan, make_plan
    from engine.training.saver import Saver
    from engine.training.state import State
    from engine.training.step import Step

    # Rank 0 alone writes and prints.
    run = Run(config) if ranks.rank() == 0 else Follower(config)
    if config.resume and not config.plan and ranks.first_does(run.finished):
        print(f"finished already: {run.describe()}\nresume=false trains it again")
        return
    runtime = start_runtime(
        config.device, config.precision, config.threads, config.deterministic, config.seed
    )
    check_sync_bn(config.sync_bn, runtime)
    check_plan(config, runtime.world_size)
    data = ranks.cached_by_first(lambda: (plan_data if config.plan else load_data)(config.data))
    plan = make_plan(config, len(data.train), runtime.world_size)
    print(f"run       {run.directory}\n{plan.describe()}", flush=True)
    if config.plan:
        print(describe_memory(config, plan, data, runtime))
        return
    ranks.together(lambda: check_memory(config, plan, data, runtime))

    every = config.checkpoint_every
    with pausing(every) as pauses, run.open(arguments), Saver() as saver, ranks.ended_by_others():
        if config.resume and ranks.first_does(run.finished):
            # Another process had it until a moment ago.
            print(run.describe())
            return
        normalization = Normalization.of(data.train.images)
        ranks.check_alike("data.root", (data.classes, normalization))
        state = State.of_no_steps(config, plan, len(data.classes), runtime)
        model = state.model
        run.found |= plan.rates() | facts(runtime)
        run.found["parameters"] = sum(p.numel() for p in model.parameters())
        saved = ranks.first_does(run.latest)
        part, diverged = None, False
        if saved is not None:
            saved.check_data(data.classes, normalization)
            saved.restore(state)
            run.history, part, diverged = saved.history, saved.partial, saved.diverged
            print(f"going on {saved.describe()}")
        pictures = TrainingPictures(data.train, normalization, runtime.device)
        run.start(plan.describe(), pictures.samples(config.seed, 64), afresh=saved is None)
        network = ranks.distribute(runtime.compile(model) if config.compile else model)
        step = Step(
            network, state.optimizer, pictures, plan, runtime, config.clip,
            config.loss.label_smoothing, state.ema, state.noise,
        )  # fmt: skip

        def save(part: PartialEpoch | None = None) -> None:
            if runtime.rank == 0:
                save_checkpoint(
                    run.checkpoint, config, data.classes, normalization, run.history, diverged,
                    state, part, saver,
                )  # fmt: skip
            pauses.signal = ranks.largest(pauses.signal or 0) or None
            if not diverged and len(run.history) < config.epochs:
                pauses.saved()

        while len(run.history) < config.epochs and not diverged:
            epoch = len(run.history) + 1
            started = time.perf_counter() - (part.seconds if part else 0.0)
            draws = pictures.draw_epoch(config.seed, epoch)
            title = f"epoch {epoch}/{config.epochs}"
            trained = train_epoch(
                step, state.scheduler, draws, title, config.log_layers_every, part, pauses.due
            )
            if isinstance(trained, PartialEpoch):
                save(part := trained)
                continue
            part, measured, diverged = None, None, trained.diverged
            if not diverged and (epoch % config.eval_every == 0 or epoch == config.epochs):
                measured = evaluate_splits(model, state.ema, data, normalization, runtime)
                diverged = epoch == config.epochs and not measured.finite
            row = epoch_row(epoch, trained, measured, time.perf_counter() - started)
            run.record_epoch(row, trained)
            if epoch == config.epochs and measured is not None and measured.test is not None:
                run.record_mistakes(data, measured.test)
            due = ranks.any_rank(pauses.due_after(epoch))
            if due or diverged or epoch == config.epochs:
                save()
        saver.wait()
        run.found["peak_memory_bytes"] = peak_memory_bytes(runtime.device)
        run.finish(DIVERGED if diverged else COMPLETED, chance=chance(len(data.classes)))
    print(run.describe())


def sweep_job(composed: DictConfig) -> None:
    """Train one run of a sweep, where its launcher put it; what stops it stops no other run."""
    from engine.sweeps.sweep import report_failure

    hydra_config = HydraConfig.get()
    # Workers of some launchers start in a folder of their own.
    os.chdir(hydra_config.runtime.cwd)
    config = Config.from_hydra(plain_config(composed))
    arguments = [*config_dir_flags(hydra_config.overrides.hydra), *hydra_config.overrides.task]
    with report_failure(config, arguments):
        train(config, arguments)


def main() -> int:
    """Do what the command line asks for; return the exit status."""
    command = read_command_line(sys.argv[1:], "train", Config, ranks=True)
    if command.answer is not None:
        command.answer()
        return 0
    if command.multirun:
        from engine.sweeps.sweep import run_sweep

        return run_sweep(command, sweep_job)
    from engine.system.distributed import joined

    (job,) = command.jobs
    with joined(getattr(job.config.data, "download_seconds", 0.0)):
        train(job.config, job.arguments)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
