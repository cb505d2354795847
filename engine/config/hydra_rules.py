"""Rules for Hydra: which of its own keys are allowed, its error messages, and resolvers.

Of Hydra's own keys, a command may set only the launcher's, and an experiment none. Hydra imports
and calls what its configuration names: callbacks, log handlers, and each `_target_` inside the
launcher's keys. Its job settings change the working directory, the environment and where files are
written. A run needs none of that, and a configuration from elsewhere must not be able to run code.

An experiment's YAML can use these OmegaConf resolvers:

    ${times_k:1e-5}                             1e-5 * k, with k = batch / 128
    ${by_optimizer:{sgd: 5e-4, lars: 5e-3}}     the chosen optimizer's value; no key if not listed
    ${by_batch:{128: 0.1, 1024: 0.8}}           the chosen batch's value; an error if not listed

conf/optimizer/lars.yaml uses one more:

    ${without_base:4.0}                         the value; with optimizer.base the base's own value,
                                                or null if the base replaces the key

The command line overrides each of them, like any value of an experiment.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from engine.config.optimizers import MEMBERS, label_of
from engine.errors import UserError, closest, key_error

SETTABLE = r"[+~]*hydra(/launcher=|\.launcher\.)"
# The keys with which Hydra's `instantiate` imports and calls code.
CODE = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
# Nodes in which Hydra records the command, and its help texts. They may differ between commands.
RECORDED = ("help", "hydra_help", "overrides", "runtime", "searchpath")
LAUNCHERS = ("basic", "joblib", "ray", "slurm", "submitit_local", "submitit_slurm")
# The study's k is batch / 128 in every recipe, whatever the optimizer's `base_batch` is.
STUDY_BATCH = 128
ABSENT = "(default of the optimizer or its base)"


def is_hydras(override: str) -> bool:
    """Return True if an override sets one of Hydra's own keys."""
    return re.match(r"[+~]*hydra[./=@]", override) is not None


def is_launchers(override: str) -> bool:
    """Return True if an override chooses or configures Hydra's launcher."""
    return re.match(SETTABLE, override) is not None


def check_hydra_overrides(overrides: Iterable[str]) -> None:
    """Raise UserError for an override of Hydra's own keys, except those of the launcher."""
    for override in filter(is_hydras, overrides):
        if match := re.match(r"hydra\.(launcher)=(.*)", override):
            raise UserError(f"{override}: write hydra/{match[1]}={match[2]}")
        if re.match(r"[+~]*hydra[./]sweeper", override):
            raise UserError(
                f"{override}: not used here; -m trains every combination, scripts.tune searches"
            )
        if re.match(r"[+~]*hydra\.searchpath=", override):
            raise UserError(f"{override}: not used here; --config-dir=DIR adds configurations")
        if not is_launchers(override):
            raise UserError(
                f"{override}: not used here; of Hydra's own keys only hydra/launcher=NAME and "
                "hydra.launcher.KEY=VALUE can be set"
            )
        if any(word in override for word in CODE):
            raise UserError(f"{override}: no key may name code to import")


def take_hydras(composed: DictConfig, config_name: str, hydra_overrides: Sequence[str]) -> None:
    """Remove Hydra's node from a composed configuration; raise UserError if a file changed it.

    An experiment or another group's file could set keys that a command may not set, or choose a
    launcher, which must be the same for the whole sweep. A launcher's file from --config-dir could
    set other keys of Hydra.
    """
    own = _plain(composed.hydra)
    launcher = _chosen(config_name, tuple(hydra_overrides))["launcher"]
    for key, expected in (_chosen(config_name, ()) | {"launcher": launcher}).items():
        if own.get(key) != expected:
            hint = "set hydra/launcher=NAME and hydra.launcher.KEY=VALUE in the command instead"
            extra = f"; {hint if key == 'launcher' else 'remove it from the file'}"
            raise key_error(
                f"hydra.{key}", own.get(key), f"a configuration file must not set this key{extra}"
            )
    inner = [v for v in composed.hydra.launcher.values() if OmegaConf.is_config(v)]
    if any(word in OmegaConf.to_yaml(value) for value in inner for word in CODE):
        raise key_error("hydra.launcher", inner, "no key may name code to import")
    with open_dict(composed):
        del composed["hydra"]


@functools.cache
def _chosen(config_name: str, hydra_overrides: tuple[str, ...]) -> dict[str, Any]:
    """Compose Hydra's node from these overrides only; Hydra must be initialized."""
    return _plain(compose(config_name, list(hydra_overrides), return_hydra_config=True).hydra)


def _plain(hydra: DictConfig) -> dict[str, Any]:
    job = {key: hydra.job[key] for key in ("chdir", "env_set", "env_copy")}
    values = {key: value for key, value in hydra.items() if key not in (*RECORDED, "job")}
    plain: Any = OmegaConf.to_container(OmegaConf.create({**values, "job": job}))
    return dict(plain)


def explain(
    overrides: Sequence[str], keys: set[str], folders: Sequence[Path], message: str
) -> None:
    """Raise a UserError that names the override Hydra's message is about, if it can be identified.

    Args:
        overrides: the command's overrides.
        keys: the configuration's dotted keys.
        folders: the directories with the groups' files.
        message: Hydra's error message.

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
        # If Hydra found the file, which may be from --config-dir, the mistake is inside it.
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
            raise key_error(key, value, f"{chosen} has no key {leaf}; see --help")


def _is_sweep(value: str) -> bool:
    return "," in value and not value.startswith(("[", "{", "'", '"'))


def one_line(error: Exception) -> str:
    """Return a library's error message in one line, without its links and advice."""
    text = str(error)
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text} {error.__cause__}"
    text = re.sub(
        r"(See https?://\S+.*|Set the environment variable.*|full_key:.*|object_type=.*)", "", text
    )
    return " ".join(text.split())


def register_resolvers() -> None:
    """Register the resolvers with OmegaConf in this process; further calls have no effect."""
    for resolver in (times_k, by_optimizer, by_batch, without_base):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def times_k(value: float, *, _root_: Any) -> float:
    """Return the value times batch / 128; raise UserError if it is not a number.

    If the batch is not an int, return the value as it is: the batch is checked later.
    """
    if type(value) not in (int, float):
        raise UserError(f"${{times_k:{value}}}: must be a number")
    batch = _root_.get("batch")
    return value * batch / STUDY_BATCH if type(batch) is int else value


def by_optimizer(values: Mapping[str, Any], *, _root_: Any) -> Any:
    """Return the value listed for the chosen optimizer, or `ABSENT`: the key's default."""
    _check_mapping("by_optimizer", values)
    return values.get(label_of(_root_.optimizer.name, _base(_root_)), ABSENT)


def without_base(value: Any, *, _root_: Any) -> Any:
    """Return the value, or `ABSENT` if LARS wraps another optimizer."""
    return value if _base(_root_) == "none" else ABSENT


def _base(root: Any) -> str:
    """Return the value of optimizer.base; none if it is not the name of an optimizer."""
    base = root.optimizer.get("base", "none")
    return base if base in MEMBERS else "none"


def by_batch(values: Mapping[int, Any], *, _root_: Any, _node_: Any) -> Any:
    """Return the value listed for the chosen batch; raise UserError if there is none."""
    _check_mapping("by_batch", values)
    batch = _root_.get("batch")
    if batch not in values:
        known = ", ".join(map(str, sorted(values)))
        key = _node_._get_full_key(None)
        allowed = f"this experiment has {key} only for {known}; give {key}=VALUE"
        raise key_error("batch", batch, allowed)
    return values[batch]


def _check_mapping(resolver: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        allowed = f"must be key: value pairs, such as ${{{resolver}:{{a: 1, b: 2}}}}"
        raise UserError(f"${{{resolver}:{values}}}: {allowed}")


def without_absent(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Replace `ABSENT` values by their defaults; remove the keys that have none."""
    filled = {k: defaults.get(k, ABSENT) if v == ABSENT else v for k, v in values.items()}
    return {key: value for key, value in filled.items() if value != ABSENT}
