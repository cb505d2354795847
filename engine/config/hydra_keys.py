"""Which of Hydra's own keys a command or an experiment may set: the launcher's, and no code.

Hydra imports and calls what its configuration names: callbacks, handlers of its loggers, each
`_target_` inside the launcher's keys. Its job settings change folders and the environment, and say
where files go. A run needs none of that, and a configuration from elsewhere must not bring it.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from engine.errors import UserError, key_error

SETTABLE = r"[+~]*hydra(/launcher=|\.launcher\.)"
# The keys by which Hydra's `instantiate` imports and calls.
CODE = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
# Hydra's own record of a command, and the texts of its help.
TOLD = ("help", "hydra_help", "overrides", "runtime", "searchpath")


def is_hydras(override: str) -> bool:
    """Tell whether an override is of one of Hydra's own keys."""
    return re.match(r"[+~]*hydra[./=@]", override) is not None


def check_hydra_overrides(overrides: Iterable[str]) -> None:
    """Raise UserError for an override of Hydra's own keys that no run needs."""
    for override in filter(is_hydras, overrides):
        if match := re.match(r"hydra\.(launcher)=(.*)", override):
            raise UserError(f"{override}: write hydra/{match[1]}={match[2]}")
        if re.match(r"[+~]*hydra[./]sweeper", override):
            raise UserError(
                f"{override}: not used here; -m trains every combination, scripts.tune searches"
            )
        if re.match(r"[+~]*hydra\.searchpath=", override):
            raise UserError(f"{override}: not used here; --config-dir=DIR adds configurations")
        if not re.match(SETTABLE, override):
            raise UserError(
                f"{override}: not used here; of Hydra's own keys, hydra/launcher=NAME and "
                "hydra.launcher.KEY=VALUE are"
            )
        if any(word in override for word in CODE):
            raise UserError(f"{override}: no key may name code to import")


def take_hydras(composed: DictConfig, config_name: str, hydra_overrides: Sequence[str]) -> None:
    """Take Hydra's own node out of a composition; raise UserError where it is not the command's.

    An experiment, or a group of any other place, could set what a command may not, or choose a
    launcher, which is the whole sweep's. The command's own launcher may come from a folder of the
    user's, whose file could set other keys of Hydra's.
    """
    own = _plain(composed.hydra)
    launcher = _chosen(config_name, tuple(hydra_overrides))["launcher"]
    for key, expected in (_chosen(config_name, ()) | {"launcher": launcher}).items():
        if own.get(key) != expected:
            hint = "; write hydra/launcher=NAME and hydra.launcher.KEY=VALUE in the command"
            extra = hint if key == "launcher" else ""
            told = own.get(key)
            raise key_error(f"hydra.{key}", told, f"no configuration may set it here{extra}")
    inner = [v for v in composed.hydra.launcher.values() if OmegaConf.is_config(v)]
    if any(word in OmegaConf.to_yaml(value) for value in inner for word in CODE):
        raise key_error("hydra.launcher", inner, "no key may name code to import")
    with open_dict(composed):
        del composed["hydra"]


@functools.cache
def _chosen(config_name: str, hydra_overrides: tuple[str, ...]) -> dict[str, Any]:
    """Compose Hydra's node with the command's own keys alone, under `initialize_config_dir`."""
    return _plain(compose(config_name, list(hydra_overrides), return_hydra_config=True).hydra)


def _plain(hydra: DictConfig) -> dict[str, Any]:
    job = {key: hydra.job[key] for key in ("chdir", "env_set", "env_copy")}
    values = {key: value for key, value in hydra.items() if key not in (*TOLD, "job")}
    plain: Any = OmegaConf.to_container(OmegaConf.create({**values, "job": job}))
    return dict(plain)
