"""What a run needs of memory, and what the machine and its container still have."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import engine.training.memory
from engine.system.resources import available_bytes
from engine.system.runtime import Runtime
from engine.training.build import build_model
from engine.training.memory import saved_bytes
from tests.helpers import files_below
from tests.helpers.runs import config

MIB = 2**20


def machine(root, files):
    """Make a file system of these files; numbers are MiB."""
    meminfo = "MemTotal: 9999 kB\nMemAvailable: {} kB\nSwapFree: {} kB\n"
    files = {"proc/meminfo": meminfo.format(8000 * 1024, 100 * 1024)} | files
    files |= {"proc/self/status": f"Name: python\nRssAnon:\t{300 * 1024} kB\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8100),
        # Version 2: the least that any group above leaves; none is "max".
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.stat": "anon 1\nfile 2\n",
                "sys/fs/cgroup/job/memory.max": f"{4000 * MIB}\n",
                "sys/fs/cgroup/job/memory.stat": f"anon {500 * MIB}\nfile {3000 * MIB}\n",
            },
            3500,
        ),
        # Inside a container the path is the host's, and the container's own group is the top.
        (
            {
                "proc/self/cgroup": "0::/docker/abc\n",
                "sys/fs/cgroup/memory.max": f"{2000 * MIB}\n",
                "sys/fs/cgroup/memory.stat": f"anon {400 * MIB}\n",
            },
            1600,
        ),
        # Version 1, with version 2 beside it, which limits nothing.
        (
            {
                "proc/self/cgroup": "9:pids:/x\n4:cpu,memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.stat": "total_rss 1\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{1000 * MIB}\n",
                "sys/fs/cgroup/memory/job/memory.stat": f"cache 7\ntotal_rss {900 * MIB}\n",
            },
            100,
        ),
        ({"proc/self/cgroup": "something else\n"}, 8100),
    ],
    ids=["machine", "version 2", "container", "version 1", "unknown"],
)
def test_what_is_left_is_read_from_machine_and_container(tmp_path, files, expected):
    assert available_bytes(machine(tmp_path, files)) == (expected + 300) * MIB


def test_where_nothing_is_known_nothing_is_told(tmp_path):
    assert available_bytes(tmp_path) is None


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_a_few_images_tell_what_a_trace_of_all_does(name):
    made, runtime = config(f"model={name}").model, Runtime(torch.device("cpu"), "fp32", 1)
    with FakeTensorMode():
        expected = saved_bytes(build_model(made, 10), 512, runtime)
    few = saved_bytes(build_model(made, 10), engine.training.memory.MEASURED, runtime)
    assert few * 512 / engine.training.memory.MEASURED == pytest.approx(expected, rel=0.02)


def test_a_run_that_cannot_fit_is_told_before_it_starts(small, workplace, command, monkeypatch):
    monkeypatch.setattr(engine.training.memory, "available_bytes", lambda: 5 * MIB)
    large = [*small, "batch=120", "precision=fp32"]
    outcome = command("train.py", *large, "micro_batch=100")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: micro_batch=100: the run needs about ")
    # Two passes of 60 images, 0.57 MiB each.
    assert "a pass of 60 images 3" in outcome.err and "there are 5 MiB" in outcome.err
    assert not files_below(workplace)
    # The very pass that was too large fits in more parts.
    assert command("train.py", *large, "micro_batch=4").status == 0


def test_the_check_draws_nothing_from_the_runs_own_numbers(small, workplace, command, monkeypatch):
    def first_loss(group):
        assert command("train.py", *small, "deterministic=true", f"group={group}").status == 0
        (directory,) = (workplace / "results" / "runs" / group).iterdir()
        saved = torch.load(directory / "checkpoint.pt", weights_only=True)
        return saved["history"][0]["train_loss"]

    checked = first_loss("checked")
    monkeypatch.setattr(engine.training.memory, "available_bytes", lambda: None)
    assert first_loss("unchecked") == checked
