"""From YAML and overrides to checked configurations, with Hydra's compose.

Every job of a sweep is composed and checked before anything is made; an error is one line that
names the override it is about. Imports no torch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.config.choices import check_utf8
from engine.config.hydra_rules import (
    explain,
    is_hydras,
    one_line,
    register_resolvers,
    take_hydras,
    without_absent,
)
from engine.config.parse import known_keys
from engine.errors import UserError

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


@dataclass(frozen=True)
class Job:
    """One run that the command line asks for: its configuration and what was chosen for it.

    folders: the --config-dir flags that the overrides need.
    """

    config: Any
    overrides: list[str]
    folders: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        """Return what follows train.py in the command of this run alone."""
        return [*self.folders, *self.overrides]


def read_overrides(
    config_name: str, config_type: Any, overrides: list[str], sweep: bool
) -> list[Job]:
    """Compose and check every job that a command's overrides ask for; raise UserError on a mistake.

    sweep: a list of values is a job for each of them, as under Hydra's -m.
    """
    with _hydra(config_name):
        _check_grammar(overrides)
        lists = _split(overrides) if sweep else [overrides]
        jobs = [_make_job(config_name, config_type, job) for job in lists]
    if not jobs:
        raise UserError(f"{' '.join(overrides)}: a sweep over no values")
    return jobs


def check_overrides(config_name: str, config_type: Any, overrides: list[str]) -> None:
    """Compose what the overrides ask for; raise UserError on a mistake."""
    with _hydra(config_name):
        _compose(config_name, config_type, overrides)


def make_jobs(config_name: str, config_type: Any, lists: Sequence[list[str]]) -> list[Job]:
    """Compose and check a job for each list of overrides; raise UserError on a mistake."""
    with _hydra(config_name):
        return [_make_job(config_name, config_type, overrides) for overrides in lists]


def plain_config(composed: DictConfig) -> dict[str, Any]:
    """Turn Hydra's configuration into plain dictionaries, interpolations resolved."""
    # A launcher's worker comes here first; only then has it the experiments' resolvers.
    register_resolvers()
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise UserError(f"{error.full_key}: {one_line(error)}") from error
    assert isinstance(plain, dict)
    return without_absent({str(key): value for key, value in plain.items()})


def _hydra(config_name: str) -> initialize_config_dir:
    return initialize_config_dir(str(CONF), version_base="1.3", job_name=config_name)


def _make_job(config_name: str, config_type: Any, overrides: list[str]) -> Job:
    composed = _compose(config_name, config_type, overrides)
    if "experiment" in composed:
        given = next(o for o in overrides if "experiment" in o)
        raise UserError(f"{given}: the first line of its file must be '# @package _global_'")
    chosen = [o for o in overrides if not is_hydras(o)]
    config = config_type.from_hydra(plain_config(composed))
    return Job(config, chosen, config_dir_flags(overrides))


def config_dir_flags(overrides: Sequence[str]) -> list[str]:
    """Return the flags that one of these overrides was; a folder inside this one is relative."""
    return [
        f"--config-dir={os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder}"
        for folder in _added_folders(overrides)
    ]


def _added_folders(overrides: Sequence[str]) -> list[Path]:
    listed = [o.partition("=[")[2][:-1] for o in overrides if o.startswith("hydra.searchpath=")]
    return [Path(place.removeprefix("file://")) for text in listed for place in text.split(",")]


def _compose(config_name: str, config_type: Any, overrides: list[str]) -> DictConfig:
    try:
        composed = compose(config_name, overrides, return_hydra_config=True)
    except RecursionError as error:
        raise UserError(f"{' '.join(overrides)}: a configuration that includes itself") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{' '.join(overrides)}: a file of it is no UTF-8 text") from error
    except (HydraException, OmegaConfBaseException, ValueError, OSError, yaml.YAMLError) as error:
        folders = [CONF, *_added_folders(overrides)]
        explain(overrides, known_keys(config_type), folders, str(error))
        raise UserError(one_line(error)) from error
    take_hydras(composed, config_name, [o for o in overrides if is_hydras(o)])
    return composed


def _check_grammar(overrides: list[str]) -> None:
    for override in overrides:
        key, _, value = override.partition("=")
        check_utf8(key, value)
        try:
            OverridesParser.create().parse_overrides([override])
        except HydraException as error:
            raise UserError(
                f"{override}: must be key=value, what is not plain in quotes: 'key=\"a ~b\"'"
            ) from error


def _split(overrides: list[str]) -> list[list[str]]:
    """Expand a sweep's overrides into one list a job, as Hydra's basic sweeper will."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    try:
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(
            overrides
        )
        return BasicSweeper.split_arguments(parsed, None)[0]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(one_line(error)) from error
