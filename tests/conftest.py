"""Shared fixtures: a small picture tree, a folder to work in, and the commands run in-process."""

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import engine.system.sharing
import train
import val
from engine.cli import exit_status
from engine.data.dataset import load_data
from tests.helpers import CLASSES, Outcome


def pytest_configure():
    """Hear Ctrl-C also where a shell started the tests in the background, deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _plain_torch():
    torch.set_num_threads(1)
    load_data.cache_clear()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch):
    """Let no run lack CPU, also where the tests run beside others: tables then have its times."""
    monkeypatch.setattr(engine.system.sharing, "LEAST_CPU_SHARE", 0.0)


@pytest.fixture(scope="session")
def drawn_tree(tmp_path_factory) -> Path:
    """A tree of 3 classes, 40 + 10 pictures each, that a few steps can learn."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for place in range(count):
                pixels = rng.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., number] += 90
                Image.fromarray(pixels).save(folder / f"{place:04}.png")
    return root


@pytest.fixture
def tree(drawn_tree, tmp_path) -> Path:
    """A copy of the tree that a test may spoil."""
    import shutil

    # Runs on the tree itself leave their decoded cache in it.
    cache = shutil.ignore_patterns(".decoded-*")
    return Path(shutil.copytree(drawn_tree, tmp_path / "pictures", ignore=cache))


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty folder to run the commands in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Run train.py or val.py in this process, as the shell would."""

    def run(script: str, *arguments: object) -> Outcome:
        main = {"train.py": train.main, "val.py": val.main}[script]
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            status = exit_status(main)
        except SystemExit as leave:
            status = int(leave.code or 0)
        finally:
            # Hydra's --info leaves a handler that writes to this test's stderr.
            root.handlers[:] = handlers
            root.setLevel(level)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def small(tree) -> list[str]:
    """Overrides that make a run take a second."""
    return [
        "data=image_folder",
        f"data.root={tree}",
        "model=resnet8",
        "epochs=2",
        "batch=32",
        "threads=1",
    ]
