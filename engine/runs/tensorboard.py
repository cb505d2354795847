"""What TensorBoard shows of a run: curves, images, text cards and a comparison of runs.

run.py decides when it is written. Tags are grouped by topic: accuracy, loss, rate, gradient, noise,
speed. A layer's statistics have the tags trust_ratio, effective_rate, weight_norm and
gradient_norm, followed by the parameter's name. LAYOUT gathers the curves on the page Custom
Scalars.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.system.text import cell

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from engine.data.dataset import Split
    from engine.training.evaluate import Evaluated
    from engine.training.metrics import TrainedEpoch

# Column of metrics.jsonl for each tag.
TAGS = {
    "accuracy/train": "train_accuracy",
    "accuracy/test": "test_accuracy",
    "accuracy/holdout": "holdout_accuracy",
    "accuracy/raw_test": "raw_test_accuracy",
    "accuracy/raw_holdout": "raw_holdout_accuracy",
    "loss/train_epoch": "train_loss",
    "loss/test": "test_loss",
    "speed/images_per_second": "images_per_second",
}
# Pages and charts of Custom Scalars; each chart's tags are regular expressions.
LAYOUT = {
    "Training": {
        "accuracy, %": ["Multiline", ["accuracy/.*"]],
        "loss": ["Multiline", ["loss/.*"]],
        "learning rate": ["Multiline", ["rate/learning_rate"]],
        "gradient norm": ["Multiline", ["gradient/norm"]],
        "gradient noise scale, examples (noise_scale=true)": ["Multiline", ["noise/scale"]],
        "images per second": ["Multiline", ["speed/images_per_second"]],
    },
    "Layers (log_layers_every=N, LARS or LAMB)": {
        "trust ratio": ["Multiline", ["trust_ratio/.*"]],
        "effective rate": ["Multiline", ["effective_rate/.*"]],
        "weight norm": ["Multiline", ["weight_norm/.*"]],
        "gradient norm": ["Multiline", ["gradient_norm/.*"]],
    },
}
# The metrics of HPARAMS: keys of summary.json.
OUTCOMES = ("test_accuracy", "holdout_accuracy", "train_seconds", "images_per_second")
# HPARAMS sorts its columns and shows the first five. Without a prefix these are among them.
FIRST_CHOICES = {
    "batch": "batch",
    "model.name": "model",
    "optimizer.name": "optimizer",
    "optimizer.base": "optimizer_base",
    "seed": "seed",
}
POINTS_AN_EPOCH = 20
GRID_COLUMNS = 8
MISTAKES = 32


def write_start(
    writer: "SummaryWriter", command: str, plan: str, configuration: str, samples: Tensor
) -> None:
    """Write what is known before the first step.

    Args:
        writer: the run's TensorBoard writer.
        command: the command that trains the run.
        plan: the plan as text.
        configuration: the configuration as YAML.
        samples: augmented images, uint8 [N, H, W, 3].

    """
    writer.add_custom_scalars(LAYOUT)
    writer.add_text("run", code(f"{command}\n\n{plan}"), 0)
    writer.add_text("configuration", code(configuration), 0)
    writer.add_image("pictures/augmented", make_grid(samples), 0, dataformats="HWC")


def write_epoch(writer: "SummaryWriter", row: Mapping[str, Any], trained: "TrainedEpoch") -> None:
    """Write the points that an epoch adds to the curves; `row` is its row of metrics.jsonl."""
    per_step: dict[str, Sequence[float | None]] = {
        "loss/train": trained.losses,
        "rate/learning_rate": trained.rates,
        "gradient/norm": trained.gradient_norms,
        "noise/scale": [estimate.noise_scale for estimate in trained.noise],
        "noise/gradient_variance": [e.gradient_variance for e in trained.noise],
        "noise/gradient_squared": [e.gradient_squared for e in trained.noise],
    }
    first = trained.last_step - len(trained.losses) + 1
    for tag, values in per_step.items():
        # This many points draw the curve; one for every step would bloat the file.
        stride = max(1, len(values) // POINTS_AN_EPOCH)
        for place in range((len(values) - 1) % stride, len(values), stride):
            value = values[place]
            if value is not None:
                writer.add_scalar(tag, value, first + place)
    for step, layers in trained.layers:
        for layer, figures in layers.items():
            # The optimizer does not adapt this layer. Its ratio of 1 would flatten the other
            # curves, which are around 0.01 under LARS.
            unadapted = float(figures["trust_ratio"]) == 1
            for name, figure in figures.items():
                if unadapted and name in ("trust_ratio", "effective_rate"):
                    continue
                writer.add_scalar(f"{name}/{layer}", float(figure), step)
    for measured in (*row.get("evaluations", ()), row):
        for tag, key in TAGS.items():
            if measured.get(key) is not None:
                writer.add_scalar(tag, measured[key], measured["step"])


def read_trust_ratios(directory: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return the steps and trust ratios of each logged layer of a run; empty if none were logged.

    Args:
        directory: the run's directory.

    """
    events = sorted(directory.glob("events.out.tfevents.*"))
    # To parse the events takes far longer than to see that the tag is not in them.
    if not any(b"trust_ratio/" in path.read_bytes() for path in events):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    found = {}
    for tag in read.Tags()["scalars"]:
        # After a resume from before its first log, a tag has no points.
        if tag.startswith("trust_ratio/") and (points := read.Scalars(tag)):
            layer = tag.removeprefix("trust_ratio/")
            found[layer] = [point.step for point in points], [point.value for point in points]
    return found


def write_mistakes(
    writer: "SummaryWriter",
    split: "Split",
    classes: Sequence[str],
    evaluated: "Evaluated",
    step: int,
) -> None:
    """Write the misclassified images of highest loss, and a card with their classes.

    Args:
        writer: the run's TensorBoard writer.
        split: the evaluated images and labels.
        classes: names of the classes.
        evaluated: the evaluation of the final model.
        step: number of the run's last step.

    """
    index = worst_mistakes(split.labels, evaluated)
    lines = ["| image | true | predicted | loss |", "|---|---|---|---|"]
    for place, example in enumerate(index.tolist()):
        row, column = divmod(place, GRID_COLUMNS)
        labels = (int(split.labels[example]), int(evaluated.predictions[example]))
        true, predicted = (cell(classes[label]) for label in labels)
        lines.append(
            f"| row {row + 1}, column {column + 1} | {true} | {predicted} "
            f"| {float(evaluated.losses[example]):.2f} |"
        )
    writer.add_text("worst_mistakes", "\n".join(lines) if len(index) else "no mistakes", step)
    if len(index):
        grid = make_grid(split.images[index])
        writer.add_image("pictures/worst_mistakes", grid, step, dataformats="HWC")


def write_outcome(
    writer: "SummaryWriter", choices: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    """Write the choices and outcomes by which HPARAMS compares runs."""
    from torch.utils.tensorboard.summary import hparams

    outcomes = {f"outcome/{key}": summary[key] for key in OUTCOMES if summary[key] is not None}
    chosen = {
        FIRST_CHOICES.get(key, f"settings/{key}"): value
        for key, value in choices.items()
        if value is not None
    }
    if summary["peak_lr"] is not None:
        chosen["peak_lr"] = summary["peak_lr"]
    # SummaryWriter.add_hparams would create a separate run next to this one.
    for part in hparams(chosen, outcomes):
        writer._get_file_writer().add_summary(part)
    for tag, value in outcomes.items():
        writer.add_scalar(tag, value, summary["steps"])


def worst_mistakes(labels: Tensor, evaluated: "Evaluated") -> Tensor:
    """Return the indices of up to `MISTAKES` misclassified examples, the highest loss first."""
    wrong = (evaluated.predictions != labels).nonzero().flatten()
    order = evaluated.losses[wrong].argsort(descending=True, stable=True)
    return wrong[order[:MISTAKES]]


def make_grid(images: Tensor, scale: int = 2, border: int = 2) -> Tensor:
    """Arrange images in rows of `GRID_COLUMNS` on a white image, uint8 [H, W, 3].

    Args:
        images: uint8 [N, H, W, 3].
        scale: factor by which each image is enlarged.
        border: pixels between images.

    """
    count, height, width, _ = images.shape
    columns = min(GRID_COLUMNS, count)
    rows = -(-count // columns)
    cell_height, cell_width = scale * height + border, scale * width + border
    grid = torch.full(
        (rows * cell_height + border, columns * cell_width + border, 3), 255, dtype=torch.uint8
    )
    large = images.cpu().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    for place, image in enumerate(large):
        row, column = divmod(place, columns)
        top, left = row * cell_height + border, column * cell_width + border
        grid[top : top + scale * height, left : left + scale * width] = image
    return grid


def code(text: str) -> str:
    """Return text as a Markdown code block, which is shown literally."""
    # splitlines knows every line end that Markdown does, so that each line is indented.
    return "\n".join(f"    {line}" for line in text.splitlines())
