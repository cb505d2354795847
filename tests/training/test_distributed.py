"""Several ranks, as spawned processes that communicate over Gloo, compared with one process."""

import contextlib
import io
import itertools
import json
import math
import os
import shutil
import signal
import socket
import sys
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F

import engine.runs.run
import engine.training.evaluate
import engine.training.step
import train
from engine.cli import exit_status
from engine.config.schema import EMAConfig
from engine.data.augment import Normalization, TrainingImages
from engine.errors import UserError
from engine.runs.history import evaluations
from engine.runs.run import Follower
from engine.system.distributed import check_equal, distribute
from engine.system.resources import available_cpus
from engine.system.runtime import start_runtime
from engine.training.build import build_ema, build_optimizer
from engine.training.evaluate import evaluate
from engine.training.loop import train_epoch
from engine.training.noise_scale import NoiseScale
from engine.training.plan import build_scheduler, even_sizes, make_plan
from engine.training.step import Step
from models import BatchNorm2d, commit_batch_statistics, synchronize_batch_norms
from tests.helpers.runs import RANKED, config
from tests.helpers.training import DoubleImages, Plain, images_of, make_plain, make_resnet

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)
# The last batch of an epoch is one group, so only one rank has examples in it.
GHOSTS = ["batch=64", "micro_batch=16", "model.ghost_batch=8", "epochs=10"]

# An epoch of the 90 images that are left has 3 steps.
TO_TARGET = [
    "data.holdout=30", "stop_at_target=true", "target_accuracy=90", "eval_every=4steps",
]  # fmt: skip


def trained(
    model, overrides, dtype=torch.float32, count=76, epochs=10, ema=None, noise=None, **more
):
    """Train a model over all ranks; return this rank's state and metrics."""
    made = config(*overrides)
    split = images_of(count, side=16)
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    plan = make_plan(made, count, runtime.world_size)
    images_type = DoubleImages if dtype == torch.float64 else TrainingImages
    training_images = images_type(split, Normalization.of(split.images), runtime.device)
    model = model.to(dtype)
    optimizer = build_optimizer(made.optimizer, made.clip, model, plan.optimizer_lr)
    scheduler = build_scheduler(made.scheduler, plan, optimizer)
    ema = build_ema(EMAConfig(ema), model)
    network = distribute(model)
    reductions = []
    if network is not model:

        def count_reductions(state, bucket):
            reductions.append(bucket.index())
            return allreduce_hook(state, bucket)

        network.register_comm_hook(None, count_reductions)
    step = Step(network, optimizer, training_images, plan, runtime, ema=ema, noise=noise, **more)
    losses, norms = [], []
    for epoch in range(epochs):
        outcome = train_epoch(step, scheduler, training_images.draw_epoch(0, epoch))
        losses += outcome.losses
        norms += outcome.gradient_norms
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "ema": None if ema is None else ema.state_dict(),
        "losses": losses,
        "norms": norms,
        "accuracy": outcome.accuracy,
        "diverged": outcome.diverged,
        "reductions": reductions,
        "noise": [(e.gradient_variance, e.gradient_squared) for e in outcome.noise],
    }


class Unlucky(Plain):
    """A network with an infinite loss but a finite gradient, on the last rank's examples only."""

    def forward(self, x):
        last = dist.is_initialized() and dist.get_rank() == dist.get_world_size() - 1
        logits = super().forward(x)
        never = (torch.arange(10) == 3) & last
        return logits.masked_fill(never, -math.inf)


def exercise():
    """Run everything on this rank that the tests below compare."""
    made = {
        "float64": trained(make_resnet(8), [*GHOSTS, "optimizer=lars"], torch.float64, ema=0.9),
        "fp32": trained(make_resnet(8), [*GHOSTS, "optimizer.base_lr=0.02"], ema=0.9),
        "muon": trained(make_resnet(8), [*GHOSTS, "optimizer=muon"], torch.float64, ema=0.9),
        "plain": trained(make_plain(), ["batch=30", "epochs=2"], torch.float64, epochs=2),
        "warmed up": trained(
            make_plain(), ["batch=30", "epochs=2"], torch.float64, epochs=2, compiled=True
        ),
        "noise": trained(
            make_plain(),
            ["batch=30", "epochs=2", "noise_scale=true", "optimizer.base_lr=1e-12"],
            torch.float64,
            epochs=1,
            noise=NoiseScale(torch.device("cpu")),
        ),
        "unlucky": trained(Unlucky(), ["batch=38", "epochs=1"], epochs=1),
    }
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    split = images_of(230, side=16)
    engine.training.evaluate.EVALUATION_BATCH = 50
    made["evaluated"] = vars(
        evaluate(distribute(make_resnet(None)), split, Normalization.of(split.images), 10, runtime)
    )
    engine.training.evaluate.EVALUATION_BATCH = 1000
    made["synchronized"] = normalize_together(torch.device("cpu"))
    check_equal("data.root", "the same")
    try:
        check_equal("data.root", runtime.rank)
    except UserError as error:
        made["different"] = str(error)
    made["together"] = train_together()
    made["threads"] = start_runtime("cpu", "fp32", None, False, 0).threads
    return made


def normalize_together(device):
    """Pass 8 examples and then 1 through a synchronized layer; return this rank's results.

    torch has these kernels on CUDA only. On the CPU the functions in `KERNELS` replace them.
    """
    torch.manual_seed(0)
    x, target = torch.randn(2, 9, 3, 4, 5).to(device)
    layer = BatchNorm2d(3).to(device)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
    runtime = start_runtime("cpu", "fp32", 1, False, 0)
    synchronize_batch_norms(layer)
    if runtime.world_size == 1:
        layer.synchronized = False
    with kernels_on(device):
        outputs, gradients = [], []
        for start, count in ((0, 8), (8, 1)):
            parts = even_sizes(count, runtime.world_size)
            first = start + sum(parts[: runtime.rank])
            own = slice(first, first + parts[runtime.rank])
            part = x[own].requires_grad_()
            output = layer(part)
            (output * target[own]).sum().backward()
            outputs.append(output.detach().cpu())
            # Without examples, torch sets no gradient.
            gradients.append(part.grad.cpu() if len(part) else part.detach().cpu())
        commit_batch_statistics(layer)
    return {
        "output": outputs,
        "gradient": gradients,
        "weight": layer.weight.grad.cpu(),
        "bias": layer.bias.grad.cpu(),
        "buffers": {name: buffer.cpu() for name, buffer in layer.named_buffers()},
    }


def train_together():
    """Train a network with synchronized layers; some ranks have no example in the last batch."""
    model = make_resnet(None)
    if dist.is_initialized():
        synchronize_batch_norms(model)
    with kernels_on(torch.device("cpu")):
        return trained(model, ["batch=64", "epochs=3"], torch.float64, count=66, epochs=3)


@contextlib.contextmanager
def kernels_on(device):
    with contextlib.ExitStack() as stack:
        for kernel in KERNELS if device.type == "cpu" else ():
            stack.enter_context(mock.patch.object(torch, kernel.__name__, kernel))
        yield


def batch_norm_stats(x, eps):
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(x, means, invstds, mean, variance, momentum, eps, counts):
    share, count = (counts / counts.sum()).view(-1, 1), counts.sum()
    together = (share * means).sum(0)
    spread = (share * (invstds**-2 - eps + (means - together) ** 2)).sum(0)
    mean.lerp_(together, momentum)
    variance.lerp_(spread * count / (count - 1), momentum)
    return together, (spread + eps).rsqrt()


def batch_norm_elemt(x, weight, bias, mean, invstd, eps):
    return (x - channels(mean)) * channels(invstd * weight) + channels(bias)


def batch_norm_backward_reduce(dy, x, mean, invstd, weight, *needed):
    sum_dy, sum_dy_xmu = dy.sum((0, 2, 3)), (dy * (x - channels(mean))).sum((0, 2, 3))
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy


def batch_norm_backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
    slope = channels(invstd**2 * sum_dy_xmu / counts.sum())
    centered = dy - channels(sum_dy / counts.sum()) - (x - channels(mean)) * slope
    return centered * channels(invstd * weight)


def channels(values):
    return values.view(1, -1, 1, 1)


KERNELS = (
    batch_norm_stats, batch_norm_gather_stats_with_counts, batch_norm_elemt,
    batch_norm_backward_reduce, batch_norm_backward_elemt,
)  # fmt: skip


def command(port, *arguments):
    """Run train.py in this process as a rank of torchrun; return exit status, stdout, stderr."""
    os.environ["MASTER_PORT"] = str(port)
    sys.argv = ["train.py", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = exit_status(train.main)
        except SystemExit as leave:
            status = leave.code
    if dist.is_initialized():  # a process that ends would do this
        dist.destroy_process_group()
    return status, out.getvalue(), err.getvalue()


def run_commands(rank, ports, run):
    """Run all commands of the two-rank tests; return their outcomes."""
    made = {"beyond": command(ports[0], *run, "batch=121")}
    made["sync_bn"] = command(ports[1], *run, "model.ghost_batch=null", "sync_bn=true")
    made["sweep"] = command(ports[2], "-m", *run, "seed=0,1")
    made["whole"] = command(ports[3], *run, "epochs=1")
    made["again"] = command(ports[4], *run, "epochs=1")
    record_epoch = engine.runs.run.Run.record_epoch

    def stop_in_the_third(self, row, trained):
        record_epoch(self, row, trained)
        if row["epoch"] == 3:  # epoch 3 has metrics and no checkpoint yet
            raise KeyboardInterrupt

    engine.runs.run.Run.record_epoch = stop_in_the_third
    made["stopped"] = command(ports[5], *run)
    engine.runs.run.Run.record_epoch = record_epoch
    clip, steps = engine.training.step.clip_gradients, itertools.count(1)

    def signal_one_rank(parameters, limits):
        if next(steps) == 6 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return clip(parameters, limits)

    engine.training.step.clip_gradients = signal_one_rank
    made["paused"] = command(ports[6], *run, "group=paused")
    engine.training.step.clip_gradients = clip
    made["target"] = command(ports[7], *run, *TO_TARGET, "group=target")
    return made


def work(rank, world, ports, folder, run):
    """Run as rank `rank` of `world` ranks and save the results to `folder`."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
    }  # fmt: skip
    os.chdir(folder / str(world))
    if world == 2:
        made = run_commands(rank, ports, run)
    else:
        made = {"resumed": command(ports[0], *run)}
    os.environ["MASTER_PORT"] = str(ports[-1])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    made |= exercise()
    dist.destroy_process_group()
    torch.save(made, folder / f"{world}-{rank}.pt")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder for the ranks' results, with one working directory per number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for world in (1, 2, 4):
        (folder / str(world)).mkdir()
    return folder


@pytest.fixture(scope="module")
def made(places, drawn_tree):
    """Each rank's results by number of ranks; 4 ranks and 1 rank resume the run of 2 ranks."""
    run = [*RANKED, f"data.root={drawn_tree}"]
    found = {}
    for world in (2, 4):
        torch.multiprocessing.spawn(work, (world, free_ports(9), places, run), nprocs=world)
        found[world] = [
            torch.load(places / f"{world}-{rank}.pt", weights_only=False) for rank in range(world)
        ]
        if world == 2:
            for other in ("1", "4"):
                shutil.copytree(places / "2" / "results", places / other / "results")
    torch.set_num_threads(1)
    found[1] = [exercise()]
    return found


def assert_close(left, right, close):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=close, atol=close, msg=name)


@pytest.mark.parametrize(
    ("precision", "close"), [("float64", 1e-9), ("fp32", 1e-3), ("muon", 1e-9)]
)
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_train_the_weights_of_one_process(made, world, precision, close):
    expected = made[1][0][precision]
    assert len(expected["losses"]) == 20
    for rank in made[world]:
        found = rank[precision]
        assert_close(found["state"], expected["state"], close)
        assert_close(found["ema"], expected["ema"], close)
        # Both are recorded in fp32. A gradient is a difference, so it has fewer exact digits.
        losses, norms = max(close, 1e-6), max(10 * close, 1e-6)
        assert found["losses"] == pytest.approx(expected["losses"], rel=losses)
        assert found["norms"] == pytest.approx(expected["norms"], rel=norms)


@pytest.mark.parametrize("world", [2, 4])
def test_all_ranks_have_bit_identical_states(made, world):
    for precision in ("float64", "fp32", "muon"):
        for rank in made[world][1:]:
            for part in ("state", "ema"):
                first = made[world][0][precision][part]
                for name, value in rank[precision][part].items():
                    assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("world", [2, 4])
def test_uneven_parts_count_every_example_once(made, world):
    (expected,) = made[1]
    for rank in made[world]:
        assert_close(rank["plain"]["state"], expected["plain"]["state"], 1e-9)
        assert rank["plain"]["losses"] == pytest.approx(expected["plain"]["losses"], rel=1e-6)
        assert rank["plain"]["accuracy"] == pytest.approx(expected["plain"]["accuracy"])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_that_warm_up_exchange_nothing_and_train_the_same_bits(made, world):
    for rank in made[world]:
        warm, plain = rank["warmed up"], rank["plain"]
        assert warm["losses"] == plain["losses"] and warm["reductions"] == plain["reductions"]
        for name, value in plain["state"].items():
            assert torch.equal(warm["state"][name], value), name


def test_gradients_are_reduced_once_per_step(made):
    # Each rank makes two passes of 16 per step, and only the second one reduces its gradient.
    for rank in made[2]:
        assert rank["float64"]["reductions"] == [0] * 20


@pytest.mark.parametrize("world", [2, 4])
def test_evaluation_equals_that_of_one_process(made, world):
    expected = made[1][0]["evaluated"]
    for rank in made[world]:
        got = rank["evaluated"]
        assert got["accuracy"] == expected["accuracy"]
        assert got["per_class_accuracy"] == expected["per_class_accuracy"]
        assert torch.equal(got["losses"], expected["losses"])
        assert torch.equal(got["predictions"], expected["predictions"])
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_an_infinite_loss_on_one_rank_is_a_divergence_on_all(made, world):
    assert not made[1][0]["unlucky"]["diverged"]
    for rank in made[world]:
        assert rank["unlucky"]["diverged"] and len(rank["unlucky"]["losses"]) == 1


def test_the_noise_scale_is_the_mean_over_the_ranks_first_passes(made):
    # At a rate near 0 the weights do not change. Each rank has 15 examples per batch, 8 of them in
    # its first pass. In the last batch it has 8 examples, 4 of them in the first pass.
    split = images_of(76, side=16)
    training_images = DoubleImages(split, Normalization.of(split.images), torch.device("cpu"))
    draws = training_images.draw_epoch(0, 0)
    model = make_plain().double()

    def square(index):
        images, labels = training_images.load(index, draws)
        loss = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return sum(float(gradient.square().sum()) for gradient in gradients)

    weight = variance = squared = 0.0
    noise = made[2][0]["noise"]["noise"]
    for step, (batch, first) in enumerate(zip(draws.order.split(30), (8, 8, 4), strict=True)):
        size = len(batch)
        small = (square(batch[:first]) + square(batch[size // 2 :][:first])) / 2
        whole = square(batch)
        weight = 0.98 * weight + 0.02
        squared = 0.98 * squared + 0.02 * (size * whole - first * small) / (size - first)
        variance = 0.98 * variance + 0.02 * (small - whole) / (1 / first - 1 / size)
        assert noise[step] == pytest.approx((variance / weight, squared / weight), rel=1e-3)
    assert made[2][1]["noise"]["noise"] == noise


def test_data_that_differ_between_ranks_are_an_error(made):
    assert "different" not in made[1][0]
    for rank in (*made[2], *made[4]):
        assert rank["different"].startswith(
            "data.root=rank 1: its data differ from those of rank 0"
        )


def test_a_rank_out_of_memory_prints_an_error(capsys):
    with pytest.raises(SystemExit) as raised, Follower(config("micro_batch=77")).open([]):
        raise MemoryError
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: micro_batch=77: on rank 0 the run does not fit into memory")
    assert error.count("\n") == 1


def test_ranks_share_the_cpus(made):
    for world in (2, 4):
        assert {rank["threads"] for rank in made[world]} == {max(1, available_cpus() // world)}


def test_a_users_mistake_is_printed_once(made, places):
    first, second = made[2]
    for name, message in (
        ("beyond", "error: batch=121: must be at most the training split's 120 images\n"),
        ("sync_bn", "error: sync_bn=true: needs device=cuda, and this run's is cpu; model.ghost_"),
        ("sweep", "error: -m: torchrun trains one run; sweep with python train.py -m"),
    ):
        status, out, err = first[name]
        assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith(message)
        assert second[name] == (2, "", "")


def test_only_rank_0_writes_and_prints(made, places):
    first, second = made[2]
    assert first["whole"][0] == first["again"][0] == 0
    assert "2 ranks of 1 x 16 images a step" in first["whole"][1]
    assert "test accuracy" in first["whole"][1]
    assert "finished already" in first["again"][1]
    assert second["whole"] == second["again"] == (0, "", "")
    (directory,) = (places / "2" / "results" / "runs" / "default").glob("*-e1-*")
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["world_size"], summary["threads"]) == ("completed", 2, 1)
    assert len(list(directory.glob("events.*"))) == 1
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_resumes_with_any_number_of_ranks(made, places, drawn_tree, command, monkeypatch):
    assert made[2][0]["stopped"][0] == 130
    assert made[2][0]["stopped"][2].startswith("interrupted; ")
    assert made[2][1]["stopped"] == (1, "", "")
    assert "resuming  after epoch 2 of 4" in made[4][0]["resumed"][1]
    assert [rank["resumed"][0] for rank in made[4]] == [0] * 4
    run = [*RANKED, f"data.root={drawn_tree}"]
    monkeypatch.chdir(places / "1")
    outcome = command("train.py", *run)
    assert outcome.status == 0 and "resuming  after epoch 2 of 4" in outcome.out
    assert command("train.py", *run, "group=whole").status == 0
    states, accuracies = [], []
    for place, group in (("1", "whole"), ("1", "default"), ("4", "default")):
        (directory,) = (places / place / "results" / "runs" / group).glob("*-e4-*")
        saved = torch.load(directory / "checkpoint.pt", weights_only=True)
        states.append(saved["model"] | saved["ema"])
        summary = json.loads((directory / "summary.json").read_text())
        accuracies.append(summary["test_accuracy"])
        assert summary["world_size"] == int(place)
    for state in states[1:]:
        assert_close(state, states[0], 1e-3)
    assert accuracies == pytest.approx([accuracies[0]] * 3, abs=3.4)  # one image of 30


def test_a_signal_to_one_rank_pauses_all_after_the_same_step(
    made, places, drawn_tree, command, monkeypatch
):
    assert [rank["paused"][0] for rank in made[2]] == [143, 143]
    # An epoch has 4 steps, and the signal came in step 2 of epoch 2.
    position = "after epoch 1 of 4 and step 2 of 4 of the next"
    monkeypatch.chdir(places / "2")
    outcome = command("train.py", *RANKED, f"data.root={drawn_tree}", "group=paused")
    assert outcome.status == 0 and position in outcome.out
    states, rows = [], []
    for place, group in (("1", "whole"), ("2", "paused")):
        (directory,) = (places / place / "results" / "runs" / group).glob("*-e4-*")
        saved = torch.load(directory / "checkpoint.pt", weights_only=True)
        states.append(saved["model"] | saved["ema"])
        rows.append([json.loads(r) for r in (directory / "metrics.jsonl").read_text().splitlines()])
    assert_close(states[1], states[0], 1e-3)
    for whole, paused in zip(*rows, strict=True):
        assert paused["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-3)
        assert paused["train_accuracy"] == pytest.approx(whole["train_accuracy"], abs=1.0)


def assert_normalized_as_one(ranks, expected):
    for number in (0, 1):
        for part in ("output", "gradient"):
            whole = torch.cat([rank[part][number] for rank in ranks])
            torch.testing.assert_close(whole, expected[part][number], rtol=1e-4, atol=1e-5)
    for part in ("weight", "bias"):
        total = sum(rank[part] for rank in ranks)
        torch.testing.assert_close(total, expected[part], rtol=1e-4, atol=1e-5)
    for rank in ranks:
        assert_close(rank["buffers"], expected["buffers"], 1e-5)
        assert int(rank["buffers"]["num_batches_tracked"]) == 1


@pytest.mark.parametrize("world", [2, 4])
def test_synchronized_statistics_are_those_of_the_whole_pass(made, world):
    ranks = [rank["synchronized"] for rank in made[world]]
    assert_normalized_as_one(ranks, made[1][0]["synchronized"])
    for rank in made[world]:
        assert_close(rank["together"]["state"], made[1][0]["together"]["state"], 1e-9)


def normalize_on_gpu(rank, port, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # NCCL refuses two ranks on one GPU. Gloo accepts CUDA tensors too.
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.save(normalize_together(torch.device("cuda", 0)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_torchs_cuda_kernels_synchronize(tmp_path):
    torch.multiprocessing.spawn(normalize_on_gpu, (free_ports(1)[0], tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_normalized_as_one(ranks, normalize_together(torch.device("cpu")))


def test_ranks_stop_together_at_a_target(made, places, drawn_tree, command, monkeypatch):
    assert made[2][0]["target"][0] == 0 and made[2][1]["target"] == (0, "", "")
    monkeypatch.chdir(places / "1")
    run = [*RANKED, f"data.root={drawn_tree}", *TO_TARGET, "group=target"]
    assert command("train.py", *run).status == 0
    seen = []
    for place in ("1", "2"):
        (directory,) = (places / place / "results" / "runs" / "target").iterdir()
        summary = json.loads((directory / "summary.json").read_text())
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        found = list(evaluations(rows, 32))
        assert summary["status"] == "completed" and summary["steps"] == found[-1].step
        assert summary["steps_to_target"] == found[-1].step
        accuracies = [e.accuracy("holdout") for e in found]
        assert accuracies[-1] >= 90 and all((a or 0.0) < 90 for a in accuracies[:-1])
        seen.append([e.step for e in found])
    # Step 8 is inside epoch 3. Rounding errors of the ranks' sums change no more than one image of
    # 30, and the accuracies are further from the target.
    assert seen[0] == seen[1] == [3, 4, 6, 8]
