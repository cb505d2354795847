import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from engine.cli import exit_status
from engine.system.runtime import Runtime
from models import resnet8, resnet18
from scripts.bench import (
    __main__,
    cpu_share,
    data,
    epoch,
    ladder,
    lars,
    probe,
    profile,
    report,
    rest,
    startup,
    step,
)
from scripts.bench.ceilings import Ceilings, Flops, count_flops, measure_ceilings
from scripts.bench.harness import random_split
from scripts.bench.timing import summarise
from tests.helpers.runs import CPU

CEILINGS = Ceilings({"fp32": 1e9, "bf16": 4e9}, 1e9)


def tiny_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 32 * 32, 10)
    )


def run_startup() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "call", lambda arguments, folder: "")
        patch.setattr(startup, "start_reference", lambda device, folder: 3.0)
        phases = dict.fromkeys(probe.LABELS, 0.25)
        patch.setattr(startup, "start_training", lambda arguments, folder: phases)
        return startup.run(CPU, 2)


def run_epochs(compiler: str = "no-such-compiler") -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler)
        return epoch.run(CPU, 2, {"ResNet-8": (resnet8, 128, 128)}, CEILINGS)


# Each part's run at its smallest settings, and the keys of its figures.
RUNS = {
    "data": (lambda: data.run(CPU, 2, 256, 128, (64,)), {"64"}),
    "epoch": (run_epochs, {"ResNet-8"}),
    "ladder": (
        lambda: ladder.run(CPU, 2, "resnet8", (16, 32), CEILINGS),
        {"model", "images", "precision", "seconds"},
    ),
    "lars": (lambda: lars.run(CPU, 2, {"tiny": tiny_network}), {"tiny, groups", "tiny, flat list"}),
    "profile": (
        lambda: profile.run(CPU, 2, "resnet8", 16, CEILINGS),
        {"model", "batch", "precision", "seconds", "seconds_by_kind", "share_of_matmul_rate"},
    ),
    "rest": (
        lambda: rest.run(CPU, 2, "resnet8", (128, 100)),
        {"model", "scales", "seconds", "ratios"},
    ),
    "startup": (run_startup, {"seconds", "phases"}),
    "step": (
        lambda: step.run(CPU, 2, "resnet8", CEILINGS),
        {"SGD", "LARS", "LARS, log_layers_every=1"},
    ),
}


@pytest.mark.parametrize("part", RUNS)
def test_each_part_runs_and_writes_its_figures(part, tmp_path, workplace):
    assert set(RUNS) == set(__main__.PARTS)
    measure, figures = RUNS[part]
    result = measure()
    report.write(part, result, tmp_path, "cpu")
    report.write("another", result, tmp_path, "cpu")
    written = json.loads((tmp_path / "cpu.json").read_text())
    assert list(written) == [part, "another"]
    assert {"environment", "rounds", "notes", "figures", "tables"} <= set(written[part])
    assert set(written[part]["figures"]) == figures
    if part in ("epoch", "ladder", "profile", "step"):
        rates = {"matmul_flops_per_second": CEILINGS.matmul, "copy_bytes_per_second": 1e9}
        assert written[part]["ceilings"] == rates
        shares = [row["of the matmul rate"] for row in written[part]["tables"][0][1]]
        assert any(float(share.rstrip("%")) > 0 for share in shares if share)
    markdown = (tmp_path / "cpu.md").read_text()
    assert all(f"### {title}" in markdown for title, _ in result["tables"])
    assert not list(workplace.iterdir())


def test_a_profile_has_each_kind_and_adds_up_to_the_step():
    figures = profile.run(CPU, 2, "resnet8", 16, CEILINGS)["figures"]
    kinds = figures["seconds_by_kind"]
    seen = {*profile.KINDS, *profile.REGIONS} - {"casts and copies"}
    assert all(kinds[kind] > 0 for kind in seen), kinds
    assert 0.5 < sum(kinds.values()) / figures["seconds"] <= 1.0


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::mkldnn_convolution", "aten::conv2d"], "convolution, forward"),
        (["aten::convolution_backward", "ConvolutionBackward0"], "convolution, backward"),
        (["aten::copy_", "aten::convolution_backward"], "casts and copies"),
        (["aten::empty", "aten::native_batch_norm"], "batch norm"),
        (["aten::add_"], "ReLU and addition"),
        (["aten::clamp_min_", "aten::relu_"], "ReLU and addition"),
        (["aten::add_", "Optimizer.step#SGD.step"], "optimizer"),
        (["aten::mul_", "augmentation"], "augmentation"),
        (["aten::addmm", "aten::linear"], "linear layer and loss"),
        (["aten::linalg_vector_norm"], "gradient norm"),
        (["aten::argmax"], "other"),
    ],
)
def test_an_operation_has_one_kind(names, kind):
    assert profile.kind_of(names) == kind


def test_own_times_add_up_by_kind_and_kernels_count_once():
    def event(name, own, kernels, caller=None, device=DeviceType.CPU):
        return SimpleNamespace(
            name=name, self_cpu_time_total=own, self_device_time_total=kernels,
            cpu_parent=caller, device_type=device,
        )  # fmt: skip

    region = event("augmentation", 5e5, 0)
    events = [
        region,
        event("aten::add_", 1e6, 2e6, region),
        event("aten::add_", 2e6, 4e6),
        event("void kernel()", 9e6, 9e6, None, DeviceType.CUDA),
    ]
    on_cpu, on_device = profile.seconds_by_kind(events, False), profile.seconds_by_kind(events, 1)
    assert (on_cpu["augmentation"], on_cpu["ReLU and addition"]) == (1.5, 2.0)
    assert (on_device["augmentation"], on_device["ReLU and addition"]) == (2.0, 4.0)
    assert sum(on_cpu.values()) == 3.5
    rows = profile.profile_rows({"a": 1.0, "b": 2.0}, 4.0, 2, {"b": 0.5})
    assert [tuple(row.values()) for row in rows] == [
        ("b", 1000.0, "50.0%", "50.0%"),
        ("a", 500.0, "25.0%", ""),
        ("between operations", 500.0, "25.0%", ""),
    ]


def test_flops_are_two_for_each_multiplication():
    # The convolution's input needs no gradient, so its backward pass has one of two products.
    assert count_flops(tiny_network()) == Flops(442_368 + 163_840, 442_368 + 2 * 163_840)
    # 555,422,720 multiplications, added up over the layers of He et al.'s blocks at 32x32.
    assert count_flops(resnet18()).forward == 2 * 555_422_720


def test_ceilings_are_measured_at_fp32_and_the_runs_precision():
    measured = measure_ceilings(CPU, size=64, rounds=2)
    assert "fp32" in measured.matmul
    assert all(rate > 0 for rate in (*measured.matmul.values(), measured.copy))
    assert CEILINGS.share(1e9, "bf16") == 0.25
    assert CEILINGS.percent(1e9, "bf16") == "25.0%"


def test_medians_and_quartiles():
    figures = summarise([0.004, 0.001, 0.002, 0.003, 0.010])
    assert figures == pytest.approx({"median_ms": 3, "min_ms": 1, "q1_ms": 2, "q3_ms": 4})


def test_ladder_rows_are_relative_to_the_fastest_batch():
    times = {"128": [4.0, 2.0, 1.0], "256": [1.0, 1.0, 1.0]}
    rows = ladder.ladder_rows(times, 1000, 1e6, CEILINGS, "bf16")
    assert [tuple(row.values()) for row in rows] == [
        (128, "500", "333 to 667", 0.5, "12.5%"),
        (256, "1,000", "1,000 to 1,000", 1.0, "25.0%"),
    ]


def test_epoch_rows_compare_with_the_reference():
    times = {"this harness": [1.0, 2.0, 3.0], "reference loop": [8.0, 8.0, 8.0]}
    precisions = {"this harness": "bf16", "reference loop": "fp32"}
    rows = epoch.epoch_rows(times, 1000, 4e6, CEILINGS, precisions)
    assert [tuple(row.values()) for row in rows] == [
        ("this harness", "500", 2.0, "1.50 to 2.50", 4.0, "50.0%"),
        ("reference loop", "125", 8.0, "8.00 to 8.00", 1.0, "50.0%"),
    ]


def test_epochs_are_compiled_if_there_is_a_compiler(monkeypatch):
    compiled = []
    monkeypatch.setattr(Runtime, "compile", lambda self, model: compiled.append(model) or model)
    assert len(run_epochs("true")["tables"][0][1]) == 3 and len(compiled) == 1
    assert len(run_epochs()["tables"][0][1]) == 2 and len(compiled) == 1


def test_the_cpu_share_is_printed_for_each_epoch(monkeypatch, capsys):
    shares = iter([0.2, 0.9, 0.8])
    monkeypatch.setattr(cpu_share, "cpu_share", lambda *_: next(shares))
    monkeypatch.setattr(cpu_share, "SHORTEST_SECONDS", 1e9)
    options = ["--images", "32", "--batch", "32", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", ["cpu_share", *options])
    assert cpu_share.main() == 0
    title, *epochs, least = capsys.readouterr().out.splitlines()
    assert title.startswith("resnet8, batch 32, ") and least.startswith("least 0.800; ")
    assert [line[:5] for line in epochs] == ["0.200", "0.900", "0.800"]
    assert all(line.endswith("too short: give more --images") for line in epochs)


def test_the_reference_trains_in_a_separate_process():
    with epoch.reference_epochs(resnet8, 128, CPU) as reference:
        (process,) = torch.multiprocessing.active_children()
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
        reference.step()
        reference.step()
        # A process that is still starting has no environment, so this comes after a step.
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert b"THP_MEM_ALLOC_ENABLE=0" in environment
        assert process.is_alive()
    assert not process.is_alive()


def test_the_rest_is_scaled_to_a_whole_epoch():
    seconds = {
        "training": 1.0, "drawing": 0.2, "evaluation": 0.5, "records and TensorBoard": 0.1,
        "checkpoint, written beside training": 0.3,
    }  # fmt: skip
    times = {name: [value] * 3 for name, value in seconds.items()}
    rows, ratios = rest.rest_rows(times, {"training": 20.0, "evaluation": 4.0}, Flops(1e9, 2e9))
    assert [tuple(row.values()) for row in rows] == [
        ("training", "20.000", "100.00%"),
        ("drawing", "0.200", "1.00%"),
        ("evaluation", "2.000", "10.00%"),
        ("records and TensorBoard", "0.100", "0.50%"),
        ("checkpoint, written beside training", "0.300", "1.50%"),
    ]
    # 10,000 forward passes, compared with 50,000 forward and backward passes.
    assert ratios == pytest.approx(
        {
            "flops": 1 / 15,
            "evaluation": 0.1,
            "evaluation over its flops": 1.5,
            "records and checkpoint": 0.02,
        }
    )


def test_start_rows_have_medians_and_aims():
    rows = startup.start_rows({"train.py": [3.0, 5.0, 4.0], "reference loop": [6.0, 6.0]})
    assert [tuple(row.values()) for row in rows] == [
        ("train.py", 4.0, "3.50 to 4.50", 6.0),
        ("reference loop", 6.0, "6.00 to 6.00", ""),
    ]
    phases = [dict.fromkeys(probe.LABELS, 1.0) | {"torch": value} for value in (2.0, 4.0, 3.0)]
    rows = {row.pop("phase"): tuple(row.values()) for row in startup.phase_rows(phases)}
    assert list(rows) == list(probe.LABELS)
    assert rows["torch"] == (3.0, "2.50 to 3.50", "33.3%", "")
    assert rows["own code"] == (1.0, "1.00 to 1.00", "11.1%", 1.0)


def test_a_clock_charges_the_innermost_label(monkeypatch):
    now = iter([10.0, 11.0, 13.0, 16.0, 20.0])
    monkeypatch.setattr(time, "time", lambda: next(now))
    clock = probe.Clock(8.0)
    clock.call("data", clock.call, "torch", lambda: None)
    clock.charge()
    assert dict(clock.seconds) == {"interpreter": 2.0 + 4.0, "data": 1.0 + 3.0, "torch": 2.0}


@pytest.mark.parametrize(
    ("module", "label"),
    [
        ("torch", "torch"),
        ("torch._dynamo", "torch"),
        ("torch.utils.tensorboard", "other libraries"),
        ("torchvision.models", "other libraries"),
        ("hydra.core.hydra_config", "other libraries"),
        ("json", "own code"),
        ("engine.data.dataset", "own code"),
    ],
)
def test_an_import_has_its_label(module, label):
    assert probe.label_of(module) == label


def test_a_start_is_divided_into_phases(tree, tmp_path):
    arguments = ["data=image_folder", f"data.root={tree}", "model=resnet8", "batch=32", "threads=1"]
    started = time.time()
    phases = startup.start_training(arguments, tmp_path)
    assert tuple(phases) == probe.LABELS
    assert all(seconds > 0 for seconds in phases.values())
    assert 0.5 * (time.time() - started) < sum(phases.values()) < time.time() - started
    # The process ends after one step, so no epoch is recorded.
    (metrics,) = tmp_path.glob("results/runs/*/*/metrics.jsonl")
    assert metrics.read_text() == ""


def test_the_reference_starts_on_the_cached_images(tmp_path):
    folder = tmp_path / ".data" / "synthetic"
    folder.mkdir(parents=True)
    split = random_split(4)
    decoded = {"train_images": split.images, "train_labels": split.labels}
    torch.save(decoded, folder / ".decoded-synthetic.pt")
    started = time.time()
    assert 0 < startup.start_reference(CPU, tmp_path) < time.time() - started


def test_a_start_that_fails_raises(tmp_path):
    with pytest.raises(RuntimeError, match="batch=0"):
        startup.start_training(["batch=0"], tmp_path)


def run_bench(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    return exit_status(__main__.main)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "speed: must be one of data, epoch"),
        (["lars", "--rounds=x"], "argument --rounds: invalid int value: 'x'; see --help"),
        (["data", "--folder=/proc/nowhere"], "--folder=/proc/nowhere: cannot be written ("),
        (["step", "--rounds=1"], "--rounds=1: must be at least 2"),
        (["step", "--model=vgg"], "--model=vgg: must be one of resnet8"),
        (["profile", "--batch=1"], "--batch=1: must be at least 2"),
        (["step", "--batch=64"], "--batch=64: needs one of the parts profile"),
        (["--model=resnet8"], "--model=resnet8: needs one of the parts ladder, profile, rest"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, monkeypatch, capsys, workplace):
    assert run_bench(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not captured.out and not list(workplace.iterdir())


def test_the_command_prints_and_writes(monkeypatch, capsys, workplace):
    monkeypatch.setattr(profile, "measure_ceilings", lambda device: CEILINGS)
    options = ["--model=resnet8", "--batch=16", "--rounds=2", "--folder=speed", "--device=cpu"]
    assert run_bench(monkeypatch, "profile", *options) == 0
    assert "| convolution, backward |" in capsys.readouterr().out
    assert json.loads((workplace / "speed/cpu.json").read_text())["profile"]["rounds"] == 2
