"""Evaluate and save a run after its epochs and inside them; end it at its target or last step."""

import time

from engine.runs.run import Run
from engine.system.signals import Pauses
from engine.system.terminal import Display
from engine.training.evaluate import Evaluations, evaluate_splits
from engine.training.loop import Progress
from engine.training.metrics import PartialEpoch, TrainedEpoch, epoch_row, evaluation_row
from engine.training.setup import Setup
from engine.training.state import State, is_finite


def finish_steps(
    run: Run,
    setup: Setup,
    state: State,
    progress: Progress,
    trained: TrainedEpoch | PartialEpoch,
    started: float,
    display: Display,
) -> None:
    """Evaluate after these steps, if that is due, and record the epoch if it or the run has ended.

    Args:
        run: the run to record it in.
        setup: parts of the run that training does not change.
        state: parts of the run that training changes.
        progress: finished epochs and partial epoch, which are updated.
        trained: the epoch's metrics, or those of its steps so far.
        started: value of time.perf_counter when the epoch began.
        display: shows the evaluation and the epoch's line.

    """
    plan, step, measured = setup.plan, state.scheduler.last_epoch, None
    before = time.perf_counter()
    if is_due(trained, step, setup):
        measured = evaluate_splits(setup, state, display.watch)
    reached = measured is not None and reaches(measured, plan.stop_accuracy)
    if isinstance(trained, PartialEpoch):
        if not reached and (trained.complete or step < plan.last_step):
            progress.part = trained
            if measured is not None:
                inner = evaluation_row(step, trained.seconds, measured)
                trained.evaluations.append(inner)
                trained.evaluation_seconds += time.perf_counter() - before
                display.show_evaluation(len(trained.rates), len(trained.losses), inner)
            return
        trained = ended_epoch(trained, setup, state)
    progress.part, progress.diverged = None, trained.diverged
    progress.ended = reached or step == plan.last_step
    if progress.ended and measured is not None and not measured.finite:
        progress.diverged = True
    row = epoch_row(progress.epoch, trained, measured, time.perf_counter() - started)
    run.record_epoch(row, trained)
    display.end_epoch(row)
    if progress.ended and measured is not None and measured.test is not None:
        run.record_mistakes(setup.data, measured.test)


def must_save(progress: Progress, pauses: Pauses, before_evaluation: bool) -> bool:
    """Return True if the run must save a checkpoint after these steps.

    Args:
        progress: finished epochs and partial epoch.
        pauses: says when to save between epochs, and after a signal.
        before_evaluation: the steps ended before the step that they were to end at.

    """
    if progress.part is None:
        return pauses.due_after(len(progress.history))
    # Only a pause ends a part before its evaluation, or after all of its steps. It may not be due
    # any more, but without a checkpoint the next part could end at the same step, for ever.
    return progress.part.complete or before_evaluation or pauses.due()


def is_due(trained: TrainedEpoch | PartialEpoch, step: int, setup: Setup) -> bool:
    """Return True if the run must be evaluated now.

    Args:
        trained: the epoch's metrics, or those of its steps so far.
        step: number of optimizer steps done.
        setup: parts of the run that training does not change.

    """
    if isinstance(trained, TrainedEpoch):
        return not trained.diverged and setup.plan.evaluates(step)
    # A signal can pause an epoch before its first step, after its last one, and right after an
    # evaluation.
    evaluated = {row["step"] for row in trained.evaluations}
    inside = bool(trained.rates) and not trained.complete
    return inside and setup.plan.evaluates(step) and step not in evaluated


def reaches(measured: Evaluations, accuracy: float | None) -> bool:
    """Return True if the hold-out accuracy is at least `accuracy` %; False if that is None."""
    if accuracy is None or measured.holdout is None or not measured.finite:
        return False
    return measured.holdout.accuracy >= accuracy


def ended_epoch(part: PartialEpoch, setup: Setup, state: State) -> TrainedEpoch:
    """Return the metrics of the steps of an epoch inside which the run ends."""
    done = len(part.rates)
    diverged = not is_finite(state.model, state.optimizer, state.ema)
    return TrainedEpoch.of(
        part,
        sizes=[setup.plan.batch] * done,
        first_step=state.scheduler.last_epoch - done,
        diverged=diverged,
        noise=state.noise is not None,
    )
