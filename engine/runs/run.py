"""Write a run's directory: metrics.jsonl, TensorBoard events and summary.json.

The directory is created only after configuration and data have been checked. A lock in it keeps
other processes out until this one ends, however it ends. records.py reads the directory.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from torch import Tensor

from engine.config.schema import Config
from engine.data.dataset import Dataset
from engine.errors import key_error
from engine.runs import records
from engine.runs.claims import claimed_threads, write_threads
from engine.runs.summary import summarize
from engine.runs.tensorboard import write_epoch, write_mistakes, write_outcome, write_start
from engine.system.distributed import rank
from engine.system.files import (
    json_line,
    naming,
    plain,
    previous_of,
    write_text_atomically,
)
from engine.system.lock import locked
from engine.system.resources import is_out_of_memory
from engine.system.sharing import Neighbors
from engine.training.checkpoint import Checkpoint, load_latest
from engine.training.evaluate import Evaluated
from engine.training.metrics import TrainedEpoch

OUT_OF_MEMORY = "the run does not fit into memory; a smaller micro_batch needs less"


class Run:
    """One run's directory and the files in it; constructing this writes nothing.

    Attributes:
        config: the run's configuration.
        name: the run's name, from its choices.
        directory: the run's directory.
        checkpoint: path of the checkpoint.
        log: path of the log that a sweep writes if the run fails.
        history: one row per finished epoch, as in metrics.jsonl.
        found: entries of the summary that the run learned while it trained.
        arguments: the arguments of train.py that train this run.
        writer: the TensorBoard writer; None before `start`.
        held: returns True if this process holds the directory's lock.
        neighbors: the processes of this host that train other runs.

    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = records.name_of(config)
        self.directory = records.runs_directory(config.group) / self.name
        self.checkpoint = self.directory / records.CHECKPOINT
        self.log = self.directory / "error.log"
        self.history: list[dict[str, Any]] = []
        self.found: dict[str, Any] = {}
        self.arguments: list[str] = []
        self.writer: Any = None
        self.held: Callable[[], bool] = lambda: False
        self.neighbors = Neighbors(records.RESULTS / "runs")

    def summary(self) -> dict[str, Any] | None:
        """Return the content of summary.json or the published line; None if there is neither.

        A published line replaces a summary without an outcome.
        """
        summary = records.read_summary(self.directory)
        if summary is None or summary["status"] not in records.FINISHED:
            if not records.restarted(self.directory):
                summary = records.published_runs(self.config.group).get(self.name, summary)
        return summary

    def latest(self) -> Checkpoint | None:
        """Return the checkpoint to resume from; None if the run starts from scratch.

        Raises UserError as `load_latest` does.
        """
        if not (self.config.resume or records.restarted(self.directory)):
            return None
        return load_latest(self.checkpoint, start_over=not self.config.resume)

    def finished(self) -> bool:
        """Return True if the run has completed or diverged, and need not be trained again."""
        summary = self.summary()
        return summary is not None and summary["status"] in records.FINISHED

    def outcome(self) -> str:
        """Return accuracy and training time of a finished run as one line."""
        summary = self.summary()
        assert summary is not None
        split = "holdout" if summary["test_accuracy"] is None else "test"
        accuracy = f"{split} accuracy {summary[f'{split}_accuracy']:.2f} %"
        if summary["status"] == records.DIVERGED:
            accuracy = f"diverged after {summary['steps']} steps, {accuracy} (chance)"
        speed = summary["images_per_second"]
        return f"{accuracy}, trained in {summary['train_seconds']:.1f} s" + (
            f" ({speed:,.0f} images/s)" if speed else ""
        )

    def describe(self) -> str:
        """Return the outcome and the path of its file as two lines."""
        here = (self.directory / "summary.json").exists()
        place = self.directory if here else records.RESULTS / self.config.group / "runs.jsonl"
        return f"{self.outcome()}\nin        {place}"

    def settled_at(self) -> int:
        """Return the time of the run's last outcome in ns since 1970; 0 if it has none.

        A failure is an outcome. An interruption is not, so a sweep that waits for the run resumes
        it.
        """
        times, summary = [0], self.summary()
        paths = [self.directory / "summary.json", self.log]
        settled = summary is not None and summary["status"] != records.INTERRUPTED
        for path in paths if settled else paths[1:]:
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime_ns)
        return max(times)

    def claim(self, arguments: list[str]) -> None:
        """Create the run's directory and its configuration, unless they exist.

        A run whose directory has no summary.json is pending or running, or was killed. A sweep
        claims all its runs first, so that its table lists each of them. Raises UserError if the
        directory cannot be written.
        """
        records.check_inside(self.config.group, self.name)
        self.arguments = arguments
        try:
            (self.directory / ".hydra").mkdir(parents=True, exist_ok=True)
            if not (self.directory / ".hydra" / "config.yaml").exists():
                self._write_configuration()
            with open(self.directory / ".lock", "a", encoding="utf-8"):
                pass
        except OSError as error:
            raise records.cannot_write(self.directory, error) from error

    @contextlib.contextmanager
    def open(self, arguments: list[str]) -> Iterator[None]:
        """Claim and lock the run inside the block; write what stops it to its summary.

        Raises RunBusy if another process holds the lock. Raises UserError in place of an
        out-of-memory error, and in place of an OSError if the directory was removed.
        """
        self.claim(arguments)
        with locked(self.directory) as self.held:
            self._write_configuration()
            try:
                yield
            except (KeyboardInterrupt, SystemExit, BrokenPipeError):
                # Ctrl-C, a launcher that hands the job back to its queue, or `| head`.
                self._try_to_finish(records.INTERRUPTED)
                raise
            except BaseException as error:
                if is_out_of_memory(error):
                    error = key_error("micro_batch", self.config.micro_batch, OUT_OF_MEMORY)
                if isinstance(error, OSError):
                    self.check_place()
                self._try_to_finish(records.FAILED, reason_of(error))
                raise error
            finally:
                if self.writer is not None:
                    self.writer.close()

    def start(self, plan: str, samples: Tensor, resumed: bool) -> None:
        """Make the files agree with `history`, and open the TensorBoard writer.

        A run from scratch removes what an earlier one has left.

        Args:
            plan: the plan as text.
            samples: a few images as training sees them, uint8 [N, H, W, 3].
            resumed: True if the run resumes from a checkpoint.

        """
        # Files whose names start with a dot are incomplete writes of a killed process.
        leftovers = [self.directory / "summary.json", self.log, *self.directory.glob(".*.*")]
        if not resumed:
            for pattern in ("checkpoint*.pt", "events.out.tfevents.*"):
                leftovers += self.directory.glob(pattern)
        for path in leftovers:
            path.unlink(missing_ok=True)
        if not (resumed or self.config.resume):
            (self.directory / records.CLEARED).touch()
        begun = resumed and claimed_threads(self.directory) is not None
        if self.found["world_size"] == 1 and not begun:
            write_threads(self.directory, self.found["threads"])
        self._write_metrics()
        # Importing TensorBoard takes a second, and only a run that trains should wait for it.
        from torch.utils.tensorboard import SummaryWriter

        done = self.history[-1]["step"] if self.history else 0
        self.writer = SummaryWriter(str(self.directory), purge_step=done + 1)
        if not resumed:
            configuration = yaml.safe_dump(self.config.to_dict(), sort_keys=False)
            write_start(
                self.writer, records.command_of(self.arguments), plan, configuration, samples
            )
        # TensorBoard creates its file in a separate thread. Without this flush, that could happen
        # after the directory was removed.
        self.writer.flush()

    def check_place(self) -> None:
        """Raise UserError if the directory was removed, even if it was created again."""
        if not self.held():
            allowed = (
                "was removed while the run trained; run the same command again to start from "
                "scratch"
            )
            raise key_error("results", self.directory, allowed)

    def record_epoch(self, row: dict[str, Any], trained: TrainedEpoch) -> None:
        """Add an epoch to the history, metrics.jsonl and TensorBoard.

        Raises UserError if the directory was removed.
        """
        self.check_place()
        self.history.append(row)
        metrics = self.directory / "metrics.jsonl"
        with naming(metrics), open(metrics, "a", encoding="utf-8") as file:
            file.write(json_line(row))
        write_epoch(self.writer, row, trained)
        self.writer.flush()

    def record_mistakes(self, data: Dataset, tested: Evaluated) -> None:
        """Show the final model's worst mistakes on the test split in TensorBoard."""
        step = self.history[-1]["step"]
        write_mistakes(self.writer, data.test, data.classes, tested, step)

    def finish(self, status: str, error: str | None = None) -> None:
        """Write summary.json, the last of a run's files; a diverged run has the accuracy of chance.

        Args:
            status: completed, diverged, failed or interrupted.
            error: what stopped a failed run, in one line.

        """
        command = records.command_of(self.arguments)
        summary = summarize(self.config, self.name, status, self.history, command)
        summary |= self.found | {"error": error}
        if status == records.DIVERGED:
            summary["test_accuracy"] = self.found["chance_accuracy"]
        if status in records.FINISHED:
            if self.writer is not None:
                write_outcome(self.writer, summary["choices"], summary)
            # The lines were appended and may not have reached the disk.
            self._write_metrics()
        text = json.dumps(plain(summary), indent=2, allow_nan=False)
        write_text_atomically(self.directory / "summary.json", text + "\n")
        if status in records.FINISHED:
            previous_of(self.checkpoint).unlink(missing_ok=True)
            (self.directory / records.CLEARED).unlink(missing_ok=True)

    def record_failure(self, log: str, reason: str, arguments: list[str]) -> None:
        """Write error.log and, for a run that has no summary yet, one with the status failed.

        Args:
            log: the text of error.log.
            reason: what stopped the run, in one line.
            arguments: the arguments of train.py that train this run by itself.

        """
        # If the disk is full, the log cannot be written either.
        with contextlib.suppress(OSError):
            self.log.write_text(log, encoding="utf-8", errors="backslashreplace")
            if self.summary() is None:
                self.arguments = arguments
                self.finish(records.FAILED, reason)

    def _try_to_finish(self, status: str, error: str | None = None) -> None:
        # A full disk or a removed directory may have stopped the run; an error here would hide it.
        with contextlib.suppress(OSError):
            if self.held():
                self.finish(status, error=error)

    def _write_metrics(self) -> None:
        lines = "".join(json_line(row) for row in self.history)
        write_text_atomically(self.directory / "metrics.jsonl", lines)

    def _write_configuration(self) -> None:
        contents = {"config.yaml": self.config.to_dict(), "overrides.yaml": self.arguments}
        for name, content in contents.items():
            text = yaml.safe_dump(content, sort_keys=False)
            write_text_atomically(self.directory / ".hydra" / name, text)


class Follower(Run):
    """The run on a rank above 0, which leaves the directory to rank 0."""

    def describe(self) -> str:
        """Return no text, since rank 0 prints the outcome."""
        return ""

    @contextlib.contextmanager
    def open(self, arguments: list[str]) -> Iterator[None]:
        """Print an out-of-memory error and exit; rank 0 sees only that this rank ended."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            key = f"micro_batch={self.config.micro_batch}"
            print(f"error: {key}: on rank {rank()} {OUT_OF_MEMORY}", file=sys.stderr)
            raise SystemExit(2) from None

    def start(self, plan: str, samples: Tensor, resumed: bool) -> None:
        """Do nothing, since rank 0 writes the files."""

    def record_epoch(self, row: dict[str, Any], trained: TrainedEpoch) -> None:
        """Add an epoch to the history."""
        self.history.append(row)

    def record_mistakes(self, data: Dataset, tested: Evaluated) -> None:
        """Do nothing, since rank 0 writes the files."""

    def finish(self, status: str, error: str | None = None) -> None:
        """Do nothing, since rank 0 writes the files."""


def reason_of(error: BaseException) -> str:
    """Return what stopped a run as one line."""
    name = type(error).__name__
    return f"{name}: {' '.join(str(error).split()) or name}"
