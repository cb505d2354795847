"""From YAML and overrides to checked configurations, with Hydra's compose.

Every job of a sweep is composed and checked before anything is made; an error is one line that
names the override it is about. Imports no torch.
"""

import os
import re
import sys
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

from engine.config import hydra_rules
from engine.config.choices import check_utf8
from engine.config.parse import known_keys, text_keys
from engine.errors import UserError

# Composing takes about a tenth of a second a run: a sweep of this many says what it does.
MANY = 20
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
        overrides = as_text(overrides, text_keys(config_type))
        _check_grammar(overrides)
        lists = _split(overrides) if sweep else [overrides]
        if len(lists) >= MANY:
            print(f"checking  {len(lists)} runs", file=sys.stderr, flush=True)
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
    hydra_rules.register_resolvers()
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise UserError(f"{error.full_key}: {hydra_rules.one_line(error)}") from error
    assert isinstance(plain, dict)
    return hydra_rules.without_absent({str(key): value for key, value in plain.items()})


def _hydra(config_name: str) -> initialize_config_dir:
    return initialize_config_dir(str(CONF), version_base="1.3", job_name=config_name)


def _make_job(config_name: str, config_type: Any, overrides: list[str]) -> Job:
    composed = _compose(config_name, config_type, overrides)
    if "experiment" in composed:
        given = next(o for o in overrides if "experiment" in o)
        raise UserError(f"{given}: the first line of its file must be '# @package _global_'")
    chosen = [o for o in overrides if not hydra_rules.is_hydras(o)]
    config = config_type.from_hydra(plain_config(composed))
    return Job(config, chosen, config_dir_flags(overrides))


def config_dir_flags(overrides: Sequence[str]) -> list[str]:
    """Return the flags that one of these overrides was; a folder inside this one is relative."""
    return [
        f"--config-dir={os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder}"
        for folder in _added_folders(overrides)
    ]


def search_path(folders: Sequence[str]) -> str:
    """Write the override of Hydra's that adds folders of configurations."""
    places = ",".join(quoted(f"file://{os.path.abspath(folder)}") for folder in folders)
    return f"hydra.searchpath=[{places}]"


def _added_folders(overrides: Sequence[str]) -> list[Path]:
    own = [o for o in overrides if o.startswith("hydra.searchpath=")]
    values: list[Any] = [o.value() for o in OverridesParser.create().parse_overrides(own)]
    places = [str(getattr(place, "text", place)) for listed in values for place in listed]
    return [Path(place.removeprefix("file://")) for place in places]


def quoted(text: str) -> str:
    """Write text as a value that Hydra's grammar reads as this text and nothing else.

    In quotes a backslash counts only before a quote.
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"


def as_text(overrides: Sequence[str], keys: set[str]) -> list[str]:
    """Quote the values of text keys that Hydra would read as numbers or truth values."""
    found = []
    for override in overrides:
        key, equals, value = override.partition("=")
        elements = value.split(",")
        if key.lstrip("+") in {*keys, "experiment"} and all(
            re.fullmatch(r"[\w.+-]+", element, re.ASCII) for element in elements
        ):
            value = ",".join(e if _is_text(e) else quoted(e) for e in elements)
        found.append(key + equals + value)
    return found


def _is_text(element: str) -> bool:
    """Return True if Hydra reads a plain value as text or as null."""
    parsed = OverridesParser.create().parse_override(f"key={element}").value()
    return parsed is None or isinstance(parsed, str)


def _compose(config_name: str, config_type: Any, overrides: list[str]) -> DictConfig:
    try:
        composed = compose(config_name, overrides, return_hydra_config=True)
    except RecursionError as error:
        raise UserError(f"{' '.join(overrides)}: a configuration that includes itself") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{' '.join(overrides)}: a file of it is no UTF-8 text") from error
    except (HydraException, OmegaConfBaseException, ValueError, OSError, yaml.YAMLError) as error:
        folders = [CONF, *_added_folders(overrides)]
        hydra_rules.explain(overrides, known_keys(config_type), folders, str(error))
        raise UserError(hydra_rules.one_line(error)) from error
    own = list(filter(hydra_rules.is_hydras, overrides))
    hydra_rules.take_hydras(composed, config_name, own)
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
        raise UserError(hydra_rules.one_line(error)) from error
