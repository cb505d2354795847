"""Hydra's words for a mistake, put as one line that names the override it is about."""

import re
from collections.abc import Sequence
from pathlib import Path

from engine.errors import UserError, closest, key_error

LAUNCHERS = ("basic", "joblib", "ray", "slurm", "submitit_local", "submitit_slurm")


def explain(
    overrides: Sequence[str], keys: set[str], folders: Sequence[Path], message: str
) -> None:
    """Raise a UserError that names the override Hydra's message is about, if one stands out.

    keys: those that the configuration has; folders: where its groups' files lie.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        found = {path.stem for folder in folders for path in (folder / key).glob("*.yaml")}
        options = sorted(found) if key else []
        if key == "hydra/launcher" and f"'hydra/launcher/{value}'" in message:
            extra = value.partition("_")[0].replace("slurm", "submitit")
            if value not in LAUNCHERS:
                raise key_error(key, value, f"must be one of {', '.join(LAUNCHERS)}")
            raise key_error(key, value, f"not installed; try pip install -e '.[{extra}]'")
        if key.startswith("hydra"):
            continue
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key):
            if key and f"'{key}'" in message:
                raise key_error(key, value, "unknown key; see --help")
            continue
        if override.startswith("+") and key in keys and "Could not append" in message:
            raise key_error(f"+{key}", value, f"write {key}={value}")
        # One that --config-dir adds may be there, and the mistake inside it.
        there = override.startswith("+") and f"Could not find '{key}/{value}'" not in message
        if options and value not in options and not there and not _is_sweep(value):
            raise key_error(key, value, f"must be one of {', '.join(options)}")
        if options and key == "experiment" and not override.startswith("+"):
            raise key_error(key, value, f"write +experiment={value}")
        if not options and key not in keys:
            groups = {path.parent.name for folder in folders for path in folder.glob("*/*.yaml")}
            raise key_error(key, value, f"unknown key; {closest(key, keys | groups)}")
        if _is_sweep(value):
            raise key_error(key, value, "several values make a sweep, which needs -m")
    if "Could not delete" in message:
        deleted = [o for o in overrides if f"'{o.partition('=')[0].lstrip('~')}'" in message]
        raise UserError(f"{deleted[-1] if deleted else '~'}: {' '.join(message.split())}")
    for override in overrides:
        key, _, value = override.partition("=")
        group, _, leaf = key.rpartition(".")
        if group and f"'{key}'" in message:
            chosen = next(
                (o for o in overrides if o.startswith(f"{group}=")), f"the default {group}"
            )
            raise key_error(key, value, f"{leaf} is no key of {chosen}")


def _is_sweep(value: str) -> bool:
    return "," in value and not value.startswith(("[", "{", "'", '"'))


def one_line(error: Exception) -> str:
    """Put a library's message on one line, without its links and advice."""
    text = str(error)
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text} {error.__cause__}"
    text = re.sub(
        r"(See https?://\S+.*|Set the environment variable.*|full_key:.*|object_type=.*)", "", text
    )
    return " ".join(text.split())
