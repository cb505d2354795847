"""The README's snippet trains a model, and lars needs nothing but torch."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
import torch

from tests.helpers import PROJECT
from tests.helpers.pages import code_blocks


def snippet() -> str:
    """Return the Python block of the README that imports lars."""
    for language, code in code_blocks((PROJECT / "README.md").read_text()):
        if language == "python" and "from lars import" in code:
            return code
    pytest.fail("README.md has no Python block that imports lars")


def test_the_snippet_trains_a_model() -> None:
    """On two separable classes of noise, the loss falls by at least half."""
    torch.manual_seed(0)
    layers = (torch.nn.Flatten(), torch.nn.Linear(48, 32), torch.nn.BatchNorm1d(32))
    model = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(32, 2))
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 4, 4) + labels[:, None, None, None]
    before = torch.nn.functional.cross_entropy(model(images), labels).item()
    threads = torch.get_num_threads()
    # On busy cores, so small a model takes a hundred times as long with several threads.
    torch.set_num_threads(1)
    try:
        exec(snippet(), {"torch": torch, "model": model, "batches": [(images, labels)] * 100})
    finally:
        torch.set_num_threads(threads)
    after = torch.nn.functional.cross_entropy(model(images), labels).item()
    assert after < before / 2


def test_the_reference_imports_nothing_of_the_package() -> None:
    """The package is compared with it, so it must be independent."""
    tree = ast.parse((PROJECT / "lars" / "reference.py").read_text(encoding="utf-8"))
    names = [n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.Import)]
    names += [n.module or "." * n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert set(names) == {"__future__", "torch"}


def test_lars_imports_torch_alone() -> None:
    """In a new process it imports no other package, except those that torch imports."""
    code = """
import sys, torch
before = {name.partition(".")[0] for name in sys.modules}
import lars
after = {name.partition(".")[0] for name in sys.modules}
print(sorted(after - before - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.strip() == "['lars']", done.stdout + done.stderr
