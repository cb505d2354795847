"""Composes YAML files and overrides into checked configurations, with Hydra's compose.

Every job of a sweep is composed and checked before anything is written. An error is one line that
names the override it is about. Does not import torch.
"""

import copy
import functools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.config import hydra_rules
from engine.config.choices import check_utf8
from engine.config.optimizers import MEMBERS, REPLACED, SHARED
from engine.config.parse import known_keys, text_keys
from engine.errors import UserError

# Composing a run takes about 0.1 s, so a sweep of this many runs prints that it is checking them.
MANY = 20
CONF = Path(__file__).resolve().parent.parent.parent / "conf"
# Keys of a sweep as a whole. A run's command leaves them out.
SWEEP_KEYS = ("parallel", "report")


@dataclass(frozen=True)
class Job:
    """One run that the command line asks for.

    Attributes:
        config: the checked configuration.
        overrides: the run's overrides, without those of `SWEEP_KEYS` and of Hydra's own keys, which
            concern the sweep.
        folders: the --config-dir flags that the overrides need.

    """

    config: Any
    overrides: list[str]
    folders: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of train.py that train this run by itself."""
        return [*self.folders, *self.overrides]


def read_overrides(
    config_name: str, config_type: Any, overrides: list[str], sweep: bool
) -> list[Job]:
    """Compose and check every job that a command's overrides ask for; raise UserError on a mistake.

    Args:
        config_name: name of the configuration's file in conf/, without `.yaml`.
        config_type: configuration class.
        overrides: the command's overrides.
        sweep: True to make one job for each combination of listed values, as Hydra's -m does.

    """
    with _hydra(config_name):
        overrides = as_text(overrides, text_keys(config_type))
        _check_grammar(overrides)
        lists = _split(overrides) if sweep else [overrides]
        if len(lists) >= MANY:
            print(f"checking  {len(lists)} runs", file=sys.stderr, flush=True)
        jobs = _make_jobs(config_name, config_type, lists)
    if not jobs:
        raise UserError(
            f"{' '.join(overrides)}: a list of values is empty; give at least one value"
        )
    return jobs


def check_overrides(config_name: str, config_type: Any, overrides: list[str]) -> None:
    """Compose what the overrides ask for; raise UserError on a mistake."""
    with _hydra(config_name):
        _compose(config_name, config_type, overrides)


def make_jobs(config_name: str, config_type: Any, lists: Sequence[list[str]]) -> list[Job]:
    """Compose and check a job for each list of overrides; raise UserError on a mistake."""
    with _hydra(config_name):
        return _make_jobs(config_name, config_type, lists)


def plain_config(composed: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain dictionaries, with interpolations resolved.

    Raises UserError if an interpolation cannot be resolved.
    """
    # In a launcher's worker process nothing else has registered the resolvers.
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
    return _with_defaults({str(key): value for key, value in plain.items()})


def values_of(group: str, member: str) -> dict[str, Any]:
    """Read the values of a group's member from conf/, with those of the files that it extends."""
    hydra_rules.register_resolvers()
    root = OmegaConf.create({group: OmegaConf.load(CONF / group / f"{member}.yaml")})
    values: Any = OmegaConf.to_container(root, resolve=True)
    values = values[group]
    for entry in values.pop("defaults", ()):
        values = values_of(group, entry.partition("@")[0]) | values
    return dict(values)


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Replace each `ABSENT` value by the default in conf/, or remove the key if it has none.

    An experiment lists values for some optimizers; under another one its keys stay as they are.
    LARS with a base has the base's defaults.
    """
    parts = [value for value in values.values() if isinstance(value, dict)]
    if all(hydra_rules.ABSENT not in part.values() for part in (values, *parts)):
        return values
    root: Any = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(value, dict):
            found |= hydra_rules.without_absent({key: value}, root)
            continue
        is_member = (CONF / key / f"{value.get('name')}.yaml").is_file()
        defaults = values_of(key, value["name"]) if is_member else root.get(key, {})
        if key == "optimizer" and value.get("base") in MEMBERS:
            # LARS with a base has the base's rate and decay, and no momentum.
            own = values_of(key, value["base"])
            defaults |= dict.fromkeys(REPLACED) | {name: own[name] for name in SHARED}
        found[key] = hydra_rules.without_absent(value, defaults)
    return found


def _hydra(config_name: str) -> initialize_config_dir:
    return initialize_config_dir(str(CONF), version_base="1.3", job_name=config_name)


def _make_jobs(config_name: str, config_type: Any, lists: Sequence[list[str]]) -> list[Job]:
    shared: dict[tuple[str, ...], DictConfig] = {}
    return [_make_job(config_name, config_type, overrides, shared) for overrides in lists]


def _make_job(
    config_name: str,
    config_type: Any,
    overrides: list[str],
    shared: dict[tuple[str, ...], DictConfig],
) -> Job:
    composed = _compose_shared(config_name, config_type, overrides, shared)
    if "experiment" in composed:
        given = next(o for o in overrides if "experiment" in o)
        raise UserError(f"{given}: the first line of its file must be '# @package _global_'")
    chosen = [o for o in overrides if not (hydra_rules.is_hydras(o) or sweep_key(o))]
    config = config_type.from_hydra(plain_config(composed))
    return Job(config, chosen, config_dir_flags(overrides))


def sweep_key(override: str) -> str | None:
    """Return the key of `SWEEP_KEYS` that an override sets; None if it sets another key."""
    return next((key for key in SWEEP_KEYS if sets(key, override)), None)


def sets(key: str, override: str) -> bool:
    """Return True if an override sets, adds or deletes a key."""
    return re.match(rf"[+~]*{re.escape(key)}(=|$)", override) is not None


def config_dir_flags(overrides: Sequence[str]) -> list[str]:
    """Return the --config-dir flags that were turned into one of these overrides.

    A folder inside the working directory is given as a relative path.
    """
    return [
        f"--config-dir={os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder}"
        for folder in _added_folders(overrides)
    ]


def search_path(folders: Sequence[str]) -> str:
    """Return the override of Hydra's search path that adds these configuration folders."""
    places = ",".join(quoted(f"file://{os.path.abspath(folder)}") for folder in folders)
    return f"hydra.searchpath=[{places}]"


def _added_folders(overrides: Sequence[str]) -> list[Path]:
    own = [o for o in overrides if o.startswith("hydra.searchpath=")]
    values: list[Any] = [_parsed(o).value() for o in own]
    places = [str(getattr(place, "text", place)) for listed in values for place in listed]
    return [Path(place.removeprefix("file://")) for place in places]


def quoted(text: str) -> str:
    """Return text quoted so that Hydra's grammar reads it as exactly this text.

    Inside quotes a backslash is an escape only before a quote.
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"


def as_text(overrides: Sequence[str], keys: set[str]) -> list[str]:
    """Quote the values of text keys that Hydra would read as numbers or booleans."""
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
    parsed = _parsed(f"key={element}").value()
    return parsed is None or isinstance(parsed, str)


def _compose_shared(
    config_name: str,
    config_type: Any,
    overrides: list[str],
    shared: dict[tuple[str, ...], DictConfig],
) -> DictConfig:
    """Compose a job of a sweep as `_compose` does, ten times as fast if others are like it.

    Jobs that choose the same files differ in values alone. The files are composed once, and the
    values are put into a copy, by the function that Hydra calls for them. If a value is wrong, or
    an override is neither a file's choice nor a plain value, `_compose` composes the whole job.

    Args:
        config_name: name of the configuration's file in conf/, without `.yaml`.
        config_type: configuration class.
        overrides: the job's overrides.
        shared: compositions by the overrides that choose files; new ones are added.

    """
    folders = [CONF, *_added_folders(overrides)]
    files, values = list[str](), list[Override]()
    for text in overrides:
        override = _parsed(text)
        key, is_hydras = override.key_or_group, hydra_rules.is_hydras(text)
        if is_hydras or any((folder / key).is_dir() for folder in folders):
            files.append(text)
        elif override.type is OverrideType.CHANGE and override.package is None:
            values.append(override)
        else:
            return _compose(config_name, config_type, overrides)
    place = tuple(files)
    try:
        if place not in shared:
            shared[place] = _compose(config_name, config_type, files)
        composed = copy.deepcopy(shared[place])
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
    except (UserError, HydraException, OmegaConfBaseException, ValueError):
        return _compose(config_name, config_type, overrides)
    return composed


@functools.cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _compose(config_name: str, config_type: Any, overrides: list[str]) -> DictConfig:
    try:
        composed = compose(config_name, overrides, return_hydra_config=True)
    except RecursionError as error:
        raise UserError(
            f"{' '.join(overrides)}: a configuration file includes itself; fix its defaults"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{' '.join(overrides)}: a configuration file is not UTF-8; save it as UTF-8"
        ) from error
    except (HydraException, OmegaConfBaseException, ValueError, OSError, yaml.YAMLError) as error:
        folders = [CONF, *_added_folders(overrides)]
        hydra_rules.explain(overrides, known_keys(config_type), folders, str(error))
        raise UserError(f"{' '.join(overrides)}: {hydra_rules.one_line(error)}") from error
    own = list(filter(hydra_rules.is_hydras, overrides))
    hydra_rules.take_hydras(composed, config_name, own)
    return composed


def _check_grammar(overrides: list[str]) -> None:
    for override in overrides:
        key, _, value = override.partition("=")
        check_utf8(key, value)
        try:
            _parsed(override)
        except HydraException as error:
            raise UserError(
                f"{override}: must be key=value; put special characters in quotes: 'key=\"a ~b\"'"
            ) from error


def _split(overrides: list[str]) -> list[list[str]]:
    """Expand a sweep's overrides into one list per job, as Hydra's basic sweeper does."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    try:
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(
            overrides
        )
        return BasicSweeper.split_arguments(parsed, None)[0]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{' '.join(overrides)}: {hydra_rules.one_line(error)}") from error
