import contextlib
import importlib
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from engine.config.optimizers import TITLES
from engine.system.runtime import Runtime, choose_precision
from models import resnet8, resnet18
from scripts.bench import (
    __main__,
    cpu_share,
    data,
    epoch,
    ladder,
    optimizers,
    probe,
    profile,
    reference,
    report,
    rest,
    startup,
    step,
)
from scripts.bench.ceilings import Ceilings, Flops, count_flops, measure_ceilings
from scripts.bench.progress import Progress
from scripts.bench.report import Result
from scripts.bench.session import Session
from scripts.bench.timing import Candidate
from tests.helpers.runs import CPU

CEILINGS = Ceilings({"fp32": 1e9, "bf16": 4e9}, 1e9)


def wait_for_ever(*_: object) -> None:
    time.sleep(600)


def tiny_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 32 * 32, 10)
    )


@pytest.fixture(autouse=True)
def _one_cpu(monkeypatch):
    """One thread and one worker: with more, a busy machine makes each step wait for the others."""
    monkeypatch.setattr("engine.system.runtime.available_cpus", lambda: 1)
    monkeypatch.setattr(reference, "available_cpus", lambda: 1)


def measured(run: Callable[[Session], None], rounds: int = 2) -> Result:
    session = Session(CPU, rounds, 60.0, Progress(1.0))
    run(session)
    session.finish()
    return session.result


def run_startup(session: Session) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "call", lambda arguments, folder: "")
        patch.setattr(startup, "start_reference", lambda device, folder: 3.0)
        phases = dict.fromkeys(probe.LABELS, 0.25)
        patch.setattr(startup, "start_training", lambda arguments, folder: phases)
        startup.run(session)


@contextlib.contextmanager
def idle_reference(make_model, images, device):
    yield Candidate(lambda: time.sleep(0.001))


def run_epochs(session: Session, compiler: str = "no-such-compiler") -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler)
        patch.setattr(epoch, "reference_epochs", idle_reference)
        epoch.run(session, {"tiny": (tiny_network, 128, 128)}, CEILINGS)


# Each part's run at its smallest settings, and its tables with their figures.
OPTIMIZERS = {"torch SGD", "torch SGD fused", "the norms alone", "LARS (default)"}
OPTIMIZERS |= {"torch AdamW", "torch AdamW fused", "LAMB (default)", "LAMB one by one"}
OPTIMIZERS |= {"Muon, AdamW fused", "LARSWrapper(SGD fused)", "LARSWrapper(AdamW fused)"}
STEPS = {"SGD", "LARS", "LARS, log_layers_every=1"}
REST = {"training", "drawing", "evaluation", "records and TensorBoard"}
LOADERS, LOOPS = {"this harness", "DataLoader"}, {"this harness", "reference loop"}
RUNS = {
    "data": (lambda s: data.run(s, 256, 128, (64,)), {"Input path, batch 64": LOADERS}),
    "epoch": (run_epochs, {"tiny, batch 128": LOOPS}),
    "ladder": (
        lambda s: ladder.run(s, "resnet8", (16, 32), CEILINGS, 32),
        {"resnet8, {precision}": {"16", "32"}},
    ),
    "optimizers": (
        lambda s: optimizers.run(s, {"tiny": tiny_network}, examples=16),
        {"tiny, groups": OPTIMIZERS, "tiny, flat list": OPTIMIZERS,
         "training step, resnet8, batch 16, {precision}": set(TITLES.values())},
    ),
    "profile": (
        lambda s: profile.run(s, "resnet8", 16, CEILINGS),
        {"resnet8, batch 16, {precision}": {"the step", *profile.KINDS, *profile.REGIONS}},
    ),
    "rest": (
        lambda s: rest.run(s, "resnet8", (128, 100)),
        {"resnet8, batch 128, {precision}": REST},
    ),
    "startup": (
        run_startup,
        {f"{startup.TOTAL}, ResNet-18, batch 128; --help to its end": {"train.py", startup.HELP},
         "train.py: where the time goes": set(probe.LABELS)},
    ),
    "step": (
        lambda s: step.run(s, "resnet8", CEILINGS), {"resnet8, batch 128, {precision}": STEPS}
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", RUNS)
def test_each_part_runs_and_writes_its_figures(part, tmp_path, workplace):
    assert set(RUNS) == set(__main__.PARTS)
    run, expected = RUNS[part]
    result = measured(run)
    path = report.write(part, result, tmp_path)
    report.write("another", result, tmp_path)
    written = json.loads(path.read_text())
    assert list(written) == [part, "another"] and report.read(path)[part] == written[part]
    precision = choose_precision("auto", CPU)
    tables = {table["title"]: table for table in written[part]["tables"]}
    assert list(tables) == [title.format(precision=precision) for title in expected]
    for table, names in zip(tables.values(), expected.values(), strict=True):
        assert names <= set(table["figures"])
        assert all(len(values) == 2 for values in table["figures"].values())
        assert any("s of 2 rounds" in note for note in table["notes"])
    if part in ("epoch", "ladder", "profile", "step"):
        rates = {"matmul_flops_per_second": CEILINGS.matmul, "copy_bytes_per_second": 1e9}
        assert written[part]["extra"]["ceilings"] == rates
        shares = [row["of the matmul rate"] for row in written[part]["tables"][0]["rows"]]
        assert any(float(share.rstrip("%")) > 0 for share in shares if share)
    page = (tmp_path / "README.md").read_text()
    assert all(f"#### {title}" in page for title in tables)
    assert not list(workplace.iterdir())


@pytest.mark.parametrize("part", __main__.PARTS)
def test_a_part_takes_the_options_that_the_command_gives_it(part):
    taken = inspect.signature(importlib.import_module(f"scripts.bench.{part}").run).parameters
    assert set(__main__.PARTS[part][1]) == {"model", "batch"} & set(taken)


def test_a_profile_has_each_kind_and_adds_up_to_the_step():
    (table,) = measured(lambda s: profile.run(s, "resnet8", 16, CEILINGS))["tables"]
    kinds = {kind: sum(values) for kind, values in table["figures"].items()}
    whole = kinds.pop("the step")
    seen = {*profile.KINDS, *profile.REGIONS} - {"casts and copies"}
    assert all(kinds[kind] > 0 for kind in seen), kinds
    assert 0.5 < sum(kinds.values()) / whole <= 1.0


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
    rows = profile.profile_rows({"a": 0.5, "b": 1.0}, 2.0, {"b": 0.5})
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


def test_ladder_rows_are_relative_to_the_fastest_batch():
    per_image = {"128": [0.004, 0.002, 0.001], "256": [0.001, 0.001, 0.001]}
    rows = ladder.ladder_rows(per_image, 1e6, CEILINGS, "bf16")
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
    for compiler, loops in (("true", 3), ("no-such-compiler", 2)):
        (table,) = measured(lambda s, name=compiler: run_epochs(s, name))["tables"]
        assert len(table["rows"]) == loops and len(compiled) == 1


def test_an_epoch_has_the_images_that_the_time_suffices_for(monkeypatch):
    monkeypatch.setattr(epoch, "fastest", lambda step, device, rounds: 0.5)
    # A step of 0.5 s, six times that for all loops, in one round of warm-up and two others.
    for seconds, images in ((1.0, 128), (37.0, 4 * 128), (1000.0, 5 * 128)):
        session = Session(CPU, 2, seconds, Progress(1.0))
        assert epoch.fitting(session, tiny_network, 5 * 128, 1) == images


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
    with epoch.reference_epochs(resnet8, 32, CPU) as reference:
        (process,) = torch.multiprocessing.active_children()
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
        reference.step()
        reference.step()
        # A process that is still starting has no environment, so this comes after a step.
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert b"THP_MEM_ALLOC_ENABLE=0" in environment
        # The terminal sends Ctrl-C to it too, and its traceback would hide what is printed.
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        assert ignored & 1 << (signal.SIGINT - 1)
        assert process.is_alive()
    assert not process.is_alive()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_does_not_wait_for_an_epoch_of_the_reference(monkeypatch):
    monkeypatch.setattr(epoch, "serve_epochs", wait_for_ever)
    with pytest.raises(KeyboardInterrupt), epoch.reference_epochs(resnet8, 128, CPU):
        (process,) = torch.multiprocessing.active_children()
        raise KeyboardInterrupt
    assert process.exitcode == -signal.SIGTERM


def test_the_rest_is_a_share_of_an_epoch():
    seconds = {
        "training": 1.0, "drawing": 0.2, "evaluation": 0.5, "records and TensorBoard": 0.1,
        "checkpoint, written beside training": 0.3,
    }  # fmt: skip
    scales = {"training": 20.0, "evaluation": 4.0}
    figures = {name: [value * scales.get(name, 1.0)] * 3 for name, value in seconds.items()}
    rows, ratios = rest.rest_rows(figures, Flops(1e9, 2e9))
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
