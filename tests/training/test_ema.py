"""Label smoothing and the weight average."""

import json

import pytest
import torch
from torch import nn

from engine.config.schema import EMAConfig
from engine.training.build import build_ema
from models import BatchNorm2d, commit_batch_statistics
from tests.helpers.runs import config, only_run, rewrite
from tests.helpers.training import images_of, make_plain, trained

ON = ["ema.decay=0.9", "loss.label_smoothing=0.1", "model.zero_init_residual=true"]


def test_the_average_of_weights_and_buffers_equals_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4)).double()
    ema = build_ema(EMAConfig(0.75), model)
    expected = None
    for step in range(4):
        model(torch.randn(5, 3, 6, 6, dtype=torch.float64))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        commit_batch_statistics(model)
        ema.update_parameters(model)
        present = {name: value.clone() for name, value in model.state_dict().items()}
        if expected is None:
            expected = present
        expected = {k: 0.75 * expected[k] + 0.25 * present[k] for k in expected}
        expected["1.num_batches_tracked"] = torch.tensor(step + 1)
    made = ema.module.state_dict()
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(made[name], value, rtol=1e-12, atol=1e-12), name


def test_the_average_is_updated_at_every_step():
    model = make_plain()
    ema = build_ema(EMAConfig(0.5), model)
    trained(model, ema=ema)
    assert int(ema.n_averaged) == 3
    assert not torch.equal(ema.module.fc.weight, model.fc.weight)


def test_without_a_decay_there_is_no_average():
    assert build_ema(EMAConfig(), make_plain()) is None


def test_label_smoothing_is_in_the_training_loss_only():
    still = ["optimizer.lr_scaling=none", "optimizer.base_lr=1e-12"]
    model, plain = trained(make_plain(), *still)
    _, smoothed = trained(make_plain(), *still, label_smoothing=0.2)
    # The smoothed loss is 0.8 of the label's loss and 0.2 of the mean over all classes.
    logits, labels = logits_of(model)
    uniform = -logits.log_softmax(1).mean(1).mean()
    assert smoothed.loss == pytest.approx(0.8 * plain.loss + 0.2 * float(uniform), rel=1e-5)
    assert plain.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def logits_of(model):
    from engine.data.augment import Normalization, TrainingImages

    split = images_of(90)
    training_images = TrainingImages(split, Normalization.of(split.images), torch.device("cpu"))
    draws = training_images.draw_epoch(0, 0)
    images, labels = training_images.load(draws.order, draws)
    return model(images).detach(), labels


def test_the_average_is_reported_and_the_weights_as_raw_values(small, workplace, command):
    run = [*small, *ON, "data.holdout=30", "eval_every=2", "epochs=3", "deterministic=true"]
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    summary = json.loads((directory / "summary.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["test_accuracy"] is None and "raw_test_accuracy" not in rows[0]
    for key in ("test_accuracy", "raw_test_accuracy", "holdout_accuracy", "raw_holdout_accuracy"):
        assert summary[key] == rows[-1][key] is not None
    assert rows[-1]["raw_test_loss"] != rows[-1]["test_loss"]
    evaluated = json.loads(command("val.py", f"checkpoint={directory}", "json=true").out)
    assert evaluated["test_accuracy"] == summary["test_accuracy"]
    assert evaluated["test_loss"] == summary["test_loss"]
    assert evaluated["ema_decay"] == 0.9
    shown = command("val.py", f"checkpoint={directory}").out
    assert f"{summary['test_accuracy']:.2f} % (weights averaged, ema.decay=0.9)" in shown

    # The same run without an average reports the results of the weights.
    plain = [o for o in run if not o.startswith("ema")]
    assert command("train.py", *plain, "group=plain").status == 0
    (other,) = (workplace / "results" / "runs" / "plain").iterdir()
    last = json.loads((other / "metrics.jsonl").read_text().splitlines()[-1])
    assert "raw_test_accuracy" not in last
    for name in ("test_loss", "test_accuracy", "holdout_loss", "holdout_accuracy"):
        assert rows[-1][f"raw_{name}"] == last[name]


@pytest.mark.parametrize("key", ["ema", "noise_scale"])
def test_a_checkpoint_without_a_state_of_the_run_is_an_error(small, workplace, command, key):
    run = [*small, *ON, "noise_scale=true"]
    assert command("train.py", *run).status == 0
    path = only_run(workplace) / "checkpoint.pt"
    (path.parent / "summary.json").unlink()
    rewrite(path, torch.load(path, weights_only=True) | {key: None})
    outcome = command("train.py", *run)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "checkpoint.pt: does not fit the run" in outcome.err
    if key == "ema":
        assert "its weights do not fit" in command("val.py", f"checkpoint={path}").err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.label_smoothing=1", "loss.label_smoothing=1: must be a number at least 0 and below"),
        ("ema.decay=0", "ema.decay=0: must be a number above 0 and below 1 or null"),
        ("model.zero_init_residual=1", "model.zero_init_residual=1: must be true or false"),
    ],
)
def test_wrong_values_are_errors(override, message):
    from engine.errors import UserError

    with pytest.raises(UserError) as raised:
        config(override)
    assert message in str(raised.value)
