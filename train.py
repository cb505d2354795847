"""Train a ResNet with a given batch size; with -m, sweep over values.

  python train.py batch=4096 optimizer=lars
  python train.py -m batch=128,1024,8192 optimizer=sgd,lars seed=0,1,2 group=ladder
  python train.py data=image_folder data.root=DIR model=resnet8 epochs=15
  python train.py data=synthetic model=resnet8 epochs=10          no download needed
  python train.py plan=true batch=8192                            steps, rates, memory; no training
  torchrun --standalone --nproc-per-node=2 train.py batch=4096    one run in two processes

A run's directory is results/runs/<group>/<run>. The same keys and values name the same run: a
finished run is not trained again, an unfinished one resumes, a failed one is trained again. A sweep
writes its report to results/<group>/README.md; `python -m scripts.status group=NAME` shows its
progress. A sweep trains several runs at once if that is faster; parallel=N sets the number.
hydra/launcher=NAME (slurm, submitit_local, ray or joblib) trains its runs with that launcher, for
example as Slurm jobs. --cfg job prints the composed configuration; --hydra-help shows Hydra's own
flags.
"""

import os
import sys
import time

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from engine.cli import exit_status, read_command_line
from engine.config.compose import config_dir_flags, plain_config
from engine.config.schema import Config


def train(config: Config, arguments: list[str]) -> None:
    """Train one run and write its summary; do nothing if the run is finished.

    Resumes from the run's checkpoint if there is one. Raises UserError if it cannot be trained.

    Args:
        config: the run's configuration.
        arguments: the arguments of train.py that train this run by itself.

    """
    # Imported here, so that --help and errors in the command appear before torch is loaded.
    from engine.runs.claims import with_claimed_threads
    from engine.runs.epochs import finish_steps, must_save
    from engine.runs.records import COMPLETED, DIVERGED
    from engine.runs.run import Follower, Run
    from engine.system import distributed as ranks
    from engine.system.resources import peak_memory_bytes
    from engine.system.runtime import facts
    from engine.system.signals import pausing
    from engine.system.terminal import Display
    from engine.training.checkpoint import background_writes, save_checkpoint
    from engine.training.evaluate import chance
    from engine.training.loop import Progress, train_epoch
    from engine.training.memory import check_memory, describe_memory
    from engine.training.setup import prepare

    # Only rank 0 writes and prints.
    run = Run(config) if ranks.rank() == 0 else Follower(config)
    if config.resume and not config.plan and ranks.first_does(run.finished):
        print(f"finished already: {run.describe()}\nresume=false trains it again")
        return
    setup = prepare(with_claimed_threads(config, run.directory))
    plan, runtime, classes = setup.plan, setup.runtime, setup.data.classes
    print(f"run       {run.directory}\n{plan.describe()}", flush=True)
    if config.plan:
        print(describe_memory(setup))
        return
    ranks.together(lambda: check_memory(setup))

    with pausing(config.checkpoint_every) as pauses, run.open(arguments), ranks.ended_by_others():
        if config.resume and ranks.first_does(run.finished):
            # Another process finished the run while this one was starting.
            print(run.describe())
            return
        ranks.check_equal("data.root", (classes, setup.normalization))
        state, progress = setup.make_state(), Progress(config.epochs)
        run.found |= plan.rates() | facts(runtime)
        run.found["chance_accuracy"] = chance(len(classes))
        run.found["parameters"] = sum(p.numel() for p in state.model.parameters())
        saved = ranks.first_does(run.latest)
        if saved is not None:
            progress = saved.resume(setup, state)
            print(f"resuming  {saved.describe()}")
        run.history = progress.history
        images = setup.make_images()
        run.start(plan.describe(), images.samples(config.seed, 64), resumed=saved is not None)
        step = setup.make_step(state, images)
        display = Display(
            config.progress, config.epochs, plan.last_step, run.history, run.name, runtime.rank
        )

        with background_writes() as write:
            while not progress.over:
                epoch, part = progress.epoch, progress.part
                started = time.perf_counter() - (part.wall_seconds if part else 0.0)
                until = plan.next_evaluation(state.scheduler.last_epoch)
                trained = train_epoch(
                    step,
                    state.scheduler,
                    images.draw_epoch(config.seed, epoch),
                    display,
                    config.log_layers_every,
                    part,
                    until,
                    pauses.due,
                    run.neighbors.seen,
                )
                finish_steps(run, setup, state, progress, trained, started, display)
                due = must_save(progress, pauses, state.scheduler.last_epoch < until)
                if ranks.any_rank(due) or progress.over:
                    if runtime.rank == 0:
                        save_checkpoint(run.checkpoint, setup, state, progress, write)
                    pauses.signal = ranks.largest(pauses.signal or 0) or None
                    if not progress.over:
                        pauses.saved()
        run.found["peak_memory_bytes"] = peak_memory_bytes(runtime.device)
        run.finish(DIVERGED if progress.diverged else COMPLETED)
    print(run.describe())


def sweep_job(composed: DictConfig) -> None:
    """Train one run of a sweep in its launcher's process.

    An exception is written to the run's log, so that other runs continue.
    """
    from engine.sweeps.sweep import report_failure

    hydra_config = HydraConfig.get()
    # Some launchers start their workers in another directory.
    os.chdir(hydra_config.runtime.cwd)
    config = Config.from_hydra(plain_config(composed))
    arguments = [*config_dir_flags(hydra_config.overrides.hydra), *hydra_config.overrides.task]
    with report_failure(config, arguments):
        train(config, arguments)


def main() -> int:
    """Run the command in `sys.argv`; return the exit status."""
    command = read_command_line(sys.argv[1:], "train", Config, __doc__, ranks=True)
    if command.answer is not None:
        command.answer()
        return 0
    if command.multirun:
        from engine.sweeps.sweep import run_sweep

        return run_sweep(command, sweep_job)
    from engine.system.distributed import process_group

    (job,) = command.jobs
    with process_group(getattr(job.config.data, "download_seconds", 0.0)):
        train(job.config, job.arguments)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
