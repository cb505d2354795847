"""The results of benchmarks: JSON with every figure, and Markdown made from it."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from engine.system.files import write_text_atomically
from engine.system.runtime import commit, device_name

Row = dict[str, Any]


def environment(device: torch.device) -> dict[str, Any]:
    """Return the facts that a figure is cited with: machine, versions, commit, load average."""
    versions = {}
    for package in ("torch", "torchvision", "timm", "pytorch_optimizer"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
        "load_average": os.getloadavg()[0],
    }


def markdown(part: str, result: dict[str, Any]) -> str:
    """Return a part's result as Markdown: a heading, the environment, and the tables."""
    facts = result["environment"]
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in facts["versions"].items())
    lines = [
        f"## {part}",
        "",
        f"{facts['device_name']}, {facts['threads']} threads, {versions}; commit "
        f"{facts['commit']}; load average at the end "
        f"of the run {facts['load_average']:.1f}.",
        *result.get("notes", []),
    ]
    for title, rows in result["tables"]:
        columns = list(rows[0])
        lines += ["", f"### {title}", "", _row(columns), _row(["---"] * len(columns))]
        lines += [_row([_text(row[column]) for column in columns]) for row in rows]
    return "\n".join(lines) + "\n"


def write(part: str, result: dict[str, Any], folder: Path, device: str) -> None:
    """Write a part's result to <folder>/<device>.json and .md; keep the other parts' results.

    Args:
        part: name of the part.
        result: its result, with `environment`, `notes` and `tables`.
        folder: the directory, which is created if needed.
        device: type of the device.

    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{device}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[part] = result
    write_text_atomically(path, json.dumps(results, indent=1) + "\n")
    parts = [markdown(name, results[name]) for name in results]
    write_text_atomically(folder / f"{device}.md", "# Speed\n\n" + "\n".join(parts))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
