import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from engine.data.augment import Normalization, TrainingImages
from engine.data.dataset import Split
from engine.runs.tensorboard import (
    GRID_COLUMNS,
    LAYOUT,
    MISTAKES,
    code,
    make_grid,
    worst_mistakes,
)
from engine.training.evaluate import Evaluated
from tests.helpers.runs import only_run
from tests.helpers.training import images_of


@pytest.fixture
def events(small, workplace, command):
    """Return the events and the summary of a run with every feature that writes events."""
    run = [*small, "optimizer=lars", "ema.decay=0.9", "noise_scale=true", "log_layers_every=3"]
    assert command("train.py", *run, "data.holdout=30", "batch=30").status == 0
    directory = only_run(workplace)
    assert len(list(directory.glob("events.out.tfevents.*"))) == 1
    everything = {"tensors": 0, "scalars": 0, "images": 0}
    made = EventAccumulator(str(directory), size_guidance=everything).Reload()
    return made, json.loads((directory / "summary.json").read_text())


def text_of(events, tag):
    (event,) = events.Tensors(f"{tag}/text_summary")
    return make_ndarray(event.tensor_proto)[0].decode()


def test_every_curve_has_a_tag_that_the_layout_matches(events):
    import re

    made, summary = events
    tags = set(made.Tags()["scalars"])
    layers = {"conv1.weight", "bn1.weight", "layer3.0.conv2.weight", "fc.weight", "fc.bias"}
    groups = ("trust_ratio", "effective_rate", "weight_norm", "gradient_norm")
    unadapted = {"bn1.weight", "fc.bias"}
    for group in groups:
        shown = layers - unadapted if group in groups[:2] else layers
        assert {tag.removeprefix(f"{group}/") for tag in tags} & layers == shown
    assert tags >= {
        "accuracy/train", "accuracy/test", "accuracy/holdout", "accuracy/raw_test",
        "accuracy/raw_holdout", "loss/train", "loss/train_epoch", "loss/test",
        "rate/learning_rate", "gradient/norm", "noise/gradient_variance",
        "noise/gradient_squared", "speed/images_per_second",
    }  # fmt: skip
    assert [e.step for e in made.Scalars("loss/train")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in made.Scalars("trust_ratio/conv1.weight")] == [3, 6]
    assert made.Scalars("accuracy/test")[-1].value == pytest.approx(summary["test_accuracy"])
    (event,) = made.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(make_ndarray(event.tensor_proto).item())
    assert [category.title for category in layout.category] == list(LAYOUT)
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                noise = pattern == "noise/scale"  # may be None after only a few steps
                assert noise or any(re.fullmatch(pattern, tag) for tag in tags), pattern


def test_hparams_compare_runs_by_choices_accuracy_and_time(events):
    made, summary = events
    content = made.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    chosen = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert chosen["batch"].number_value == 30
    assert chosen["optimizer"].string_value == "lars"
    assert sorted(chosen)[:5] == ["batch", "model", "optimizer", "peak_lr", "seed"]
    assert chosen["settings/epochs"].number_value == 2
    assert chosen["peak_lr"].number_value == pytest.approx(summary["peak_lr"])
    for key in ("test_accuracy", "train_seconds"):
        (event,) = made.Scalars(f"outcome/{key}")
        assert event.value == pytest.approx(summary[key])


def test_cards_show_command_plan_and_worst_mistakes(events):
    made, summary = events
    card = text_of(made, "run")
    assert summary["command"] in card and "    rates     first" in card
    assert "batch: 30" in text_of(made, "configuration")
    mistakes = text_of(made, "worst_mistakes")
    wrong = 30 - round(0.3 * summary["test_accuracy"])
    assert mistakes.count("\n") == 1 + wrong and "| true | predicted |" in mistakes


def test_the_augmented_images_are_the_first_that_training_sees(events, tree):
    from engine.config.schema import ImageFolderConfig
    from engine.data.dataset import load_data

    made, _ = events
    (event,) = made.Images("pictures/augmented")
    shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    train = load_data(ImageFolderConfig("image_folder", str(tree), None, 30, None, None)).train
    normalization = Normalization.of(train.images)
    training_images = TrainingImages(train, normalization, torch.device("cpu"))
    draws = training_images.draw_epoch(0, 1)
    images, _ = training_images.load(draws.order[:64], draws)
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    pixels = (images.permute(0, 2, 3, 1) * std + mean) * 255
    for place in (0, 9, 63):
        top, left = (2 + 66 * part for part in divmod(place, GRID_COLUMNS))
        cell = shown[top : top + 64 : 2, left : left + 64 : 2]
        assert np.abs(cell - pixels[place].numpy()).max() < 0.6


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_every_line_of_a_card_is_in_its_code_block(end):
    from tensorboard.plugin_util import markdown_to_safe_html

    page = markdown_to_safe_html(
        code(f"python train.py 'data.root=a{end}# b{end}*c* <i>|'{end}end")
    )
    assert page.count("<code>") == page.count("<pre>") == 1
    assert "<h1>" not in page and "<em>" not in page and page.rstrip().endswith("</pre>")


def test_the_worst_mistakes_are_those_of_highest_loss():
    labels = torch.zeros(100, dtype=torch.int64)
    predictions = (torch.arange(100) % 2).long()  # every second one is correct
    losses = torch.arange(100).float()
    made = worst_mistakes(labels, Evaluated(0.0, 0.0, [], losses, predictions))
    assert made.tolist() == list(range(99, 99 - 2 * MISTAKES, -2))
    assert not len(worst_mistakes(labels, Evaluated(0.0, 0.0, [], losses, labels)))


def test_a_grid_shows_every_image_in_rows():
    images = torch.randint(0, 250, (11, 4, 5, 3), dtype=torch.uint8)
    grid = make_grid(images, scale=3, border=1)
    assert grid.shape == (2 * 13 + 1, 8 * 16 + 1, 3)
    assert torch.equal(grid[14:26:3, 33:48:3], images[10])
    assert (grid[14:, 49:] == 255).all()
    assert make_grid(images[:2]).shape == (12, 26, 3)


def test_a_run_that_resumes_keeps_its_cards_and_writes_its_outcome(
    small, workplace, command, monkeypatch
):
    import engine.runs.run

    finish = engine.runs.run.Run.finish
    stopped = []

    def stop(self, status, *rest, **options):
        if status == "completed" and not stopped:
            stopped.append(status)
            raise KeyboardInterrupt
        finish(self, status, *rest, **options)

    monkeypatch.setattr(engine.runs.run.Run, "finish", stop)
    assert command("train.py", *small).status == 130
    assert command("train.py", *small).status == 0
    made = EventAccumulator(str(only_run(workplace))).Reload()
    assert len(made.Scalars("outcome/test_accuracy")) == 1
    assert "rates     first" in text_of(made, "run")
    assert "pictures/worst_mistakes" in made.Tags()["images"] or "no mistakes" in text_of(
        made, "worst_mistakes"
    )


def test_samples_do_not_change_torchs_random_state():
    split = images_of(20)
    training_images = TrainingImages(
        Split(split.images, split.labels), Normalization.of(split.images), torch.device("cpu")
    )
    before = torch.get_rng_state()
    assert training_images.samples(0, 64).shape == (20, 32, 32, 3)
    assert torch.equal(torch.get_rng_state(), before)
