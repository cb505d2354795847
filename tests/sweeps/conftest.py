"""What tests of sweeps share."""

import pytest

import engine.sweeps.children
from tests.helpers import PROJECT


@pytest.fixture
def altered(monkeypatch, tmp_path):
    """Make the sweep's processes run some code first."""

    def alter(code):
        script = tmp_path / "altered.py"
        script.write_text(
            f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n{code}\n"
            "import train\nfrom engine.cli import exit_status\nsys.exit(exit_status(train.main))\n"
        )
        monkeypatch.setattr(engine.sweeps.children, "TRAIN", script)

    return alter
