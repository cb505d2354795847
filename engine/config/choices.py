"""What a run's result depends on, by dotted key, and the name that it gives the run."""

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Iterable
from typing import Any

from engine.config.schema import Config


def choices(config: Config) -> dict[str, Any]:
    """Flatten what a run's result depends on to dotted keys, in order.

    A key at its dataclass default is left out, so a key added later (with a default that changes
    nothing) leaves the names of earlier runs as they were.
    """
    about_the_place = {
        "group",
        "device",
        "threads",
        "resume",
        "checkpoint_every",
        "target_accuracy",
        "plan",
        "log_layers_every",
    }
    about_the_place |= {"data.cache", "data.download_seconds"}
    if config.data.name != "image_folder":
        about_the_place.add("data.root")
    return {k: v for k, v in _flatten(config) if k not in about_the_place}


def _flatten(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key in dataclasses.fields(config):
        value = getattr(config, key.name)
        if dataclasses.is_dataclass(value):
            yield from _flatten(value, f"{prefix}{key.name}.")
        elif key.default is dataclasses.MISSING or value != key.default:
            yield prefix + key.name, value


@functools.cache
def default_choices(kind: Any = None, prefix: str = "") -> dict[str, Any]:
    """Return the values that `choices` leaves out, by dotted key."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind or Config)
    for key in dataclasses.fields(kind or Config):
        parts = [hints[key.name], *typing.get_args(hints[key.name])]
        groups = [p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)]
        if not groups and key.default is not dataclasses.MISSING:
            found[prefix + key.name] = key.default
        for group in groups:
            found |= default_choices(group, f"{prefix}{key.name}.")
    return found


def run_name(config: Config) -> str:
    """Name the run's directory: what a reader looks for first, then a digest of every choice."""
    text = json.dumps(choices(config), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return (
        f"{config.model.name}-{config.data.name}-{config.optimizer.name}"
        f"-b{config.batch}-e{config.epochs}-s{config.seed}-{digest}"
    )
