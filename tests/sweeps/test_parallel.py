"""How many runs train at once: what is refused, the decision on fake machines, measured speeds."""

import dataclasses
import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

import engine.sweeps.parallel
import engine.sweeps.speeds
import engine.training.memory
from engine.config.compose import make_jobs
from engine.config.schema import Config
from engine.errors import UserError
from engine.runs.claims import write_threads
from engine.runs.run import Run
from engine.sweeps.parallel import candidates, choose_way, count_fitting, fastest, makespan
from engine.sweeps.speeds import Speeds, load_speeds, measure_speeds, store_speeds, training_flops
from engine.system.signals import Stopped, leaving
from engine.training.plan import make_plan
from tests.helpers import files_below

GIB = 2**30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parallel=2"], "parallel=2: is for sweeps, python train.py -m"),
        (["parallel=auto"], "parallel=auto: is for sweeps, python train.py -m"),
        (["-m", "parallel=1,2"], "parallel=1,2: must be one value for the whole sweep"),
        (
            ["-m", "parallel=2", "hydra/launcher=basic"],
            "parallel=2: cannot be combined with hydra/launcher=basic",
        ),
        (["-m", "parallel=0"], "parallel=0: must be a whole number at least 1"),
        (["-m", "parallel=many"], "parallel=many: must be one of auto or a number"),
    ],
)
def test_parallel_is_refused_where_it_has_no_meaning(small, workplace, command, arguments, message):
    outcome = command("train.py", *small, *arguments)
    assert outcome.status == 2 and outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1 and files_below(workplace) == set()


def test_more_runs_than_fit_into_memory_are_refused(small, workplace, command, monkeypatch):
    # 1.5 GiB for each process and a few MiB for each run.
    monkeypatch.setattr(engine.sweeps.parallel, "available_bytes", lambda: 4 * GIB)
    outcome = command("train.py", "-m", *small, "seed=0,1,2", "parallel=3")
    assert outcome.status == 2 and outcome.err == (
        "error: parallel=3: at most 2 of these runs fit into memory at once\n"
    )
    assert files_below(workplace) == set()


def test_the_command_of_a_run_leaves_parallel_out_and_its_name_too(small):
    (plain,) = make_jobs("train", Config, [small])
    (job,) = make_jobs("train", Config, [[*small, "parallel=2"]])
    assert job.config.parallel == 2 and job.arguments == plain.arguments == small
    assert job.config.run_name() == plain.config.run_name()


class Fake:
    """A machine of so many CPUs whose speeds are given, and the sweeps on it."""

    def __init__(self, monkeypatch, workplace):
        self.patch, self.measured = monkeypatch, []

    def become(self, cpus, rates, startup=4.0, device="cpu", free=1000 * GIB, on_device=0):
        def measure(config, classes, train_examples, threads, flops):
            self.measured.append(dict(threads))
            return Speeds({n: rates.get(n) for n in threads}, startup)

        for name, value in {
            "available_cpus": lambda: cpus,
            "available_bytes": lambda: free,
            "free_device_bytes": lambda device: on_device,
            "needed_bytes": lambda config, data, plan: 0.5 * GIB,
            "choose_device": lambda name: torch.device(device),
            "choose_precision": lambda name, device: "bf16",
            "device_name": lambda device: f"a {device.type}",
            "measure_speeds": measure,
            "load_data": lambda config: SimpleNamespace(classes=range(10)),
        }.items():
            self.patch.setattr(engine.sweeps.parallel, name, value)

    def decide(self, *overrides, runs=4, total=None):
        shared = ["data=synthetic", "model=resnet8", "epochs=100", *overrides]
        (job,) = make_jobs("train", Config, [shared])
        configs = [dataclasses.replace(job.config, seed=seed) for seed in range(runs)]
        jobs = [dataclasses.replace(job, config=config) for config in configs]
        plans = [make_plan(job.config, 10_000) for job in jobs]
        return choose_way(jobs, plans, [], total or runs)


@pytest.fixture
def fake(workplace, monkeypatch):
    return Fake(monkeypatch, workplace)


def test_two_cores_train_two_runs_if_that_is_faster(fake):
    fake.become(2, {1: 1000.0, 2: 1250.0})
    way = fake.decide()
    assert (way.at_once, way.threads, way.replaces) == (2, 1, False)
    # 4 runs of 1e6 images: 4000 s one at a time; two rounds of 4 s + 1e6 / 625 s at once.
    assert way.line == (
        "parallel  2 runs at once, 1 thread each: 1.25 times one at a time; parallel=1 for one"
    )
    assert fake.measured == [{1: 2, 2: 1}]


def test_an_odd_number_of_runs_leaves_a_core_idle_at_the_end(fake):
    fake.become(2, {1: 1000.0, 2: 1250.0})
    # 3 runs: 3000 s one at a time, and two rounds of 1604 s.
    assert fake.decide(runs=3).at_once is None


def test_a_gain_below_three_percent_is_not_worth_it(fake):
    fake.become(2, {1: 1000.0, 2: 1025.0})
    way = fake.decide()
    assert (way.at_once, way.threads) == (None, 2) and "more at once are not faster" in way.line


def test_sixteen_cores_train_as_many_runs_as_is_fastest(fake):
    rates = {1: 1000.0, 2: 1700.0, 4: 2600.0, 8: 2800.0, 16: 2700.0}
    fake.become(16, rates)
    assert (fake.decide(runs=16).at_once, fake.decide(runs=16).threads) == (8, 2)
    # With four runs, eight at once would be four at their slow rate.
    assert (fake.decide(runs=4).at_once, fake.decide(runs=4).threads) == (4, 4)


def test_memory_bounds_the_number(fake):
    # 2 GiB for each run.
    fake.become(16, {1: 1000.0, 2: 1900.0, 4: 3600.0, 8: 7000.0}, free=7 * GIB)
    assert fake.decide(runs=16).at_once == 2 and fake.measured == [{1: 16, 2: 8}]
    fake.become(16, {1: 1000.0, 2: 1900.0}, free=3 * GIB)
    assert fake.decide(runs=16).at_once is None
    with pytest.raises(UserError, match="parallel=2: at most 1 of these runs fits into memory"):
        fake.decide("parallel=2")


def test_a_gpu_bounds_the_number_and_its_sharing_is_named(fake, monkeypatch, tmp_path):
    rates = {1: 1000.0, 2: 1900.0, 4: 3000.0, 8: 5000.0}
    fake.become(16, rates, device="cuda", on_device=9 * GIB)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    way = fake.decide("epochs=4000", runs=16)
    assert way.at_once == 4 and "Service" not in way.line
    os.mkfifo(tmp_path / "control")
    way = fake.decide("epochs=4000")
    assert way.line.startswith(
        "parallel  4 runs at once, 4 threads each, on one GPU by NVIDIA's Multi-Process Service: "
    )
    # A GPU would train this sweep in a few seconds.
    assert fake.decide("epochs=4", "model=resnet20").at_once is None


def test_a_short_sweep_is_neither_measured_nor_divided(fake):
    fake.become(2, {1: 1000.0, 2: 2000.0})
    # 4 x 1e5 images of 73 MFLOP at 200 GFLOP/s are 147 s; 3 are 110 s.
    assert fake.decide("epochs=10", runs=3).at_once is None and fake.measured == []
    assert fake.decide("epochs=10", runs=4).at_once == 2 and len(fake.measured) == 1
    # By the measured speed 100 s are left, so the guess no longer counts.
    assert fake.decide("epochs=1", runs=10).at_once is None


def test_one_run_that_is_left_and_a_given_number_need_no_measurement(fake):
    fake.become(8, {})
    assert fake.decide(runs=1) == engine.sweeps.parallel.Way(None, 8)
    assert fake.decide("parallel=1") == engine.sweeps.parallel.Way(None, 8, replaces=True)
    way = fake.decide("parallel=4")
    assert (way.at_once, way.threads, way.replaces) == (4, 2, True)
    assert way.line == "parallel  4 runs at once, 2 threads each"
    # With one run left, a sweep that is started again gives it the same threads.
    way = fake.decide("parallel=4", runs=1, total=6)
    assert (way.at_once, way.threads) == (1, 2)
    assert fake.measured == []


def test_a_sweep_that_starts_again_trains_as_many_runs_as_its_threads_allow(fake, workplace):
    fake.become(4, {1: 1000.0, 2: 1900.0, 4: 3600.0})

    def claim(threads, seed=2):
        (job,) = make_jobs(
            "train", Config, [["data=synthetic", "model=resnet8", "epochs=100", f"seed={seed}"]]
        )
        (Run(job.config).directory / ".hydra").mkdir(parents=True, exist_ok=True)
        write_threads(Run(job.config).directory, threads)

    for seed in range(3):
        claim(1, seed)
    # The fourth has no claim, so that its sweep decides.
    assert fake.decide(runs=4).at_once == 4 and len(fake.measured) == 1
    way = fake.decide(runs=3)
    assert (way.at_once, way.threads, way.replaces) == (3, 1, False)
    assert way.line == "parallel  3 runs at once, 1 thread each"
    # The run with the most threads counts.
    claim(2)
    assert fake.decide(runs=3).at_once == 2
    claim(4)
    way = fake.decide(runs=3)
    assert way.at_once is None and "the runs keep their threads" in way.line
    assert fake.decide("resume=false", runs=3).at_once == 2 and len(fake.measured) == 1


def test_given_threads_are_measured_as_given(fake):
    fake.become(4, {1: 1000.0, 2: 1990.0, 4: 3900.0})
    way = fake.decide("threads=1")
    assert fake.measured == [{1: 1, 2: 1, 4: 1}]
    assert way.at_once == 4 and "4 runs at once, 1 thread each" in way.line


def test_a_measurement_is_kept_for_later_sweeps_until_it_is_damaged(fake, workplace):
    fake.become(2, {1: 1000.0, 2: 1250.0})
    path = workplace / "results" / "runs" / ".calibration.json"
    fake.decide()
    entry = json.loads(path.read_text())
    (key,) = entry
    assert key == f"a cpu, torch {torch.__version__}, 2 CPUs, resnet8, bf16"
    assert entry[key] == {"rates": {"1": 1000.0, "2": 1250.0}, "startup_seconds": 4.0}
    assert fake.decide().at_once == 2 and len(fake.measured) == 1
    # Another model is measured by itself, and the first is kept.
    fake.decide("model=resnet20")
    assert len(fake.measured) == 2 and len(json.loads(path.read_text())) == 2
    damages = [
        "", "{", "[]", json.dumps({key: {"rates": {"1": "x"}, "startup_seconds": 1}}),
        json.dumps({key: {"rates": {"1": -5.0, "2": 1.0}, "startup_seconds": 1}}),
        json.dumps({key: {"rates": {"1": 5.0}, "startup_seconds": 1}}), json.dumps({key: 3}),
    ]  # fmt: skip
    for count, damage in enumerate(damages, 3):
        path.write_text(damage)
        assert fake.decide().at_once == 2 and len(fake.measured) == count, damage
        assert json.loads(path.read_text())[key] == entry[key]
    path.unlink()
    assert fake.decide().at_once == 2 and len(fake.measured) == 3 + len(damages)


def test_a_measurement_that_failed_decides_for_one_run_and_is_not_kept(fake, workplace):
    fake.become(2, {})
    assert fake.decide().at_once is None and not (workplace / "results").exists()
    fake.become(2, {2: 1250.0})
    assert fake.decide().at_once is None and not (workplace / "results").exists()


def test_candidates_are_powers_of_two_and_divisors():
    assert candidates(2, 100) == [1, 2] and candidates(2, 1) == [1]
    assert candidates(16, 16) == [1, 2, 4, 8, 16] and candidates(6, 6) == [1, 2, 3, 4, 6]
    assert candidates(96, 96) == [1, 2, 4, 8, 16, 32, 64]


def test_the_makespan_of_a_list_of_runs():
    # Two slots at 5 images/s each, 1 s to start: 10 images take 3 s, 20 take 5 s.
    assert makespan([10, 20, 10, 10], 2, 10.0, 1.0) == 8.0
    assert makespan([10, 20, 10, 10], 1, 10.0, 1.0) == 5.0
    assert fastest([10, 20], {1: 10.0, 2: 20.0}, 0.0) == (2, 1.5)


def test_the_flops_of_a_training_step_are_the_papers():
    # He et al. 2015, table 6, has no FLOPs; these are of the layers: see results/bench.
    (job,) = make_jobs("train", Config, [["model=resnet18"]])
    assert training_flops(job.config.model) == pytest.approx(3 * 2 * 0.5554e9, rel=0.01)


def test_the_largest_run_counts(small, monkeypatch):
    jobs = make_jobs("train", Config, [[*small, f"batch={b}"] for b in (16, 120)])
    plans = [make_plan(job.config, 120) for job in jobs]
    seen = []

    def needed(config, data, plan):
        seen.append(config.batch)
        return (GIB, 2 * GIB)[config.batch > 16] / 2

    monkeypatch.setattr(engine.sweeps.parallel, "needed_bytes", needed)
    monkeypatch.setattr(engine.sweeps.parallel, "available_bytes", lambda: 10 * GIB)
    # 2.5 GiB each, not 2 GiB; the same run under another seed is not traced again.
    assert count_fitting(jobs * 2, plans * 2) == 4 and seen == [16, 120]


def test_an_optimizer_with_and_without_a_base_counts_separately(small, monkeypatch):
    bases = [["optimizer=lars", f"optimizer.base={base}"] for base in ("none", "sgd")]
    jobs = make_jobs("train", Config, [[*small, *base] for base in bases])
    plans = [make_plan(job.config, 120) for job in jobs]
    seen = []

    def needed(config, data, plan):
        seen.append(config.optimizer.label)
        return GIB

    monkeypatch.setattr(engine.sweeps.parallel, "needed_bytes", needed)
    count_fitting(jobs, plans)
    assert seen == ["lars", "lars-sgd"]


def test_an_estimate_without_a_runtime_is_the_runs_own(small):
    (job,) = make_jobs("train", Config, [[*small, "precision=fp32"]])
    setup = engine.training.memory.Setup
    from engine.data.dataset import load_data
    from engine.system.runtime import Runtime
    from engine.training.build import build_model

    data, plan = load_data(job.config.data), make_plan(job.config, 120)
    own = setup(job.config, Runtime(torch.device("cpu"), "fp32", 1), data, plan)
    model = build_model(job.config.model, len(data.classes))
    expected = engine.training.memory.estimate(own, model, 4).total
    assert engine.training.memory.needed_bytes(job.config, data, plan) == expected


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def pids(monkeypatch):
    """Record the processes that a measurement starts."""
    started, popen = [], engine.sweeps.speeds.subprocess.Popen

    def noted(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(engine.sweeps.speeds.subprocess, "Popen", noted)
    return started


def test_speeds_are_measured_in_processes_that_end_with_it(workplace, pids, monkeypatch):
    monkeypatch.setattr(engine.sweeps.speeds, "BUDGET_SECONDS", 120.0)
    options = [
        "model.ghost_batch=256",
        "noise_scale=true",
        "batch=8192",
        "scheduler.warmup_steps=9",
    ]
    (job,) = make_jobs("train", Config, [["data=synthetic", "model=resnet8", "epochs=2", *options]])
    flops = training_flops(job.config.model)
    speeds = measure_speeds(job.config, 10, 50_000, {1: 1, 2: 1}, flops)
    assert set(speeds.measured()) == {1, 2} and 0 < speeds.startup_seconds < 100
    assert all(10 < rate < 1e6 for rate in speeds.measured().values())
    assert len(pids) == 2 and all(is_gone(worker.pid) for worker in pids)
    store_speeds("here", speeds)
    assert load_speeds("here") == speeds and load_speeds("there") is None


def test_a_measurement_ends_in_time_and_on_ctrl_c(workplace, pids, monkeypatch):
    monkeypatch.setattr(engine.sweeps.speeds, "BUDGET_SECONDS", 0.2)
    (job,) = make_jobs("train", Config, [["data=synthetic", "model=resnet8", "epochs=2"]])
    speeds = measure_speeds(job.config, 10, 50_000, {1: 1}, 7e7)
    assert speeds.rates == {1: None} and all(is_gone(worker.pid) for worker in pids)

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(engine.sweeps.speeds, "ask", interrupt)
    with pytest.raises(Stopped), leaving():
        measure_speeds(job.config, 10, 50_000, {1: 2, 2: 1}, 7e7)
    assert len(pids) == 3 and all(is_gone(worker.pid) for worker in pids)
