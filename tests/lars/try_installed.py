"""Run the README's loop with the installed package. `make package` runs it in a new environment.

Run it outside of the checkout, which contains a package of the same name.
"""

import importlib.util
import re
from pathlib import Path

import torch

import lars

README = Path(__file__).resolve().parents[2] / "README.md"


def main() -> None:
    """Train a small model on two classes; fail unless its loss falls by at least half."""
    installed = Path(lars.__file__).parent
    assert "site-packages" in str(installed), f"{installed} is not an installed package"
    assert (installed / "py.typed").is_file(), "type checkers would ignore the annotations"
    for other in ("models", "schedulers", "engine", "hydra"):
        assert importlib.util.find_spec(other) is None, f"{other} came with lars"
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (loop,) = [block for block in blocks if "from lars import" in block]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 32), torch.nn.ReLU())
    model.append(torch.nn.Linear(32, 2))
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 4, 4) + labels[:, None, None, None]

    def loss() -> float:
        return torch.nn.functional.cross_entropy(model(images), labels).item()

    before = loss()
    exec(loop, {"torch": torch, "model": model, "batches": [(images, labels)] * 100})
    after = loss()
    print(f"lars {lars.__file__}, torch {torch.__version__}: loss {before:.3f} to {after:.3f}")
    assert after < before / 2


if __name__ == "__main__":
    main()
