"""Shared fixtures: a small image tree, a working directory, and commands run in this process."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import engine.system.sharing
import train
import val
from engine.cli import exit_status
from engine.data.dataset import load_data
from tests.helpers import CLASSES, Outcome


def pytest_configure():
    """Handle SIGINT even if a shell started the tests in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests run in several workers at once, so the commands that they start get one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _plain_torch():
    torch.set_num_threads(1)
    load_data.cache_clear()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch):
    """Count no run as short of CPU, even on a busy machine, so that tables have its times."""
    monkeypatch.setattr(engine.system.sharing, "LEAST_CPU_SHARE", 0.0)


@pytest.fixture(autouse=True)
def _blank_plots(request, monkeypatch):
    """Write plots without content, since to render them takes most of a report's time.

    A test with the mark `drawn` renders them.
    """
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"blank"))


@pytest.fixture(scope="session")
def drawn_tree(tmp_path_factory) -> Path:
    """Return an image tree of 3 classes that a few steps learn, each with 40 + 10 images."""
    root = tmp_path_factory.mktemp("images")
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
    """Return a copy of the image tree, which a test may change."""
    import shutil

    # Runs on the original leave a decoded cache in it.
    cache = shutil.ignore_patterns(".decoded-*")
    return Path(shutil.copytree(drawn_tree, tmp_path / "images", ignore=cache))


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """Return an empty folder that is the working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Return a function that runs train.py or val.py in this process as a shell would."""

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
    """Return overrides of a run that takes about a second."""
    return [
        "data=image_folder",
        f"data.root={tree}",
        "model=resnet8",
        "epochs=2",
        "batch=32",
        "threads=1",
    ]
