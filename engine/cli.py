"""Reads command lines into checked configurations, and turns exceptions into exit statuses.

Hydra composes configurations and sweeps. Every job of a sweep is composed and checked here before
anything is written. A mistake is printed in one line, with exit status 2. Does not import torch, so
that `--help` and error messages appear at once.
"""

import argparse
import contextlib
import errno
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
import yaml
from hydra import version
from hydra._internal.utils import _run_hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.config.choices import check_utf8
from engine.config.compose import (
    CONF,
    SWEEP_KEYS,
    Job,
    as_text,
    check_overrides,
    plain_config,
    read_overrides,
    search_path,
    sweep_key,
)
from engine.config.hydra_rules import (
    check_hydra_overrides,
    is_hydras,
    is_launchers,
    register_resolvers,
)
from engine.config.keys import Percent
from engine.config.options import help_text
from engine.config.parse import parse, text_keys
from engine.errors import UserError
from engine.system.signals import Stopped, leaving_early

T = TypeVar("T")
# The disk is full, missing, read-only or not permitted, or a directory has the name of a file.
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ESTALE, errno.ENOTCONN, errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip


@dataclass(frozen=True)
class CommandLine:
    """What the command line asks for: jobs, or printed information (--help, --cfg).

    Attributes:
        jobs: the runs; empty if `answer` is set.
        multirun: True for a sweep (-m).
        hydra_overrides: overrides of Hydra's own keys, such as the launcher's. They do not change a
            run's name.
        answer: prints the requested information.

    """

    jobs: list[Job]
    multirun: bool
    hydra_overrides: list[str]
    answer: Callable[[], None] | None = None


@dataclass(frozen=True)
class Groups:
    """The argument `group`: one or more group names, separated by commas."""

    group: str = "default"

    @property
    def names(self) -> list[str]:
        """Return the distinct group names in order."""
        return list(dict.fromkeys(self.group.split(",")))


@dataclass(frozen=True)
class ReportArguments(Groups):
    """The arguments of a report of groups.

    Attributes:
        target_accuracy: accuracy in %; the report shows the time and the steps to reach it.

    """

    target_accuracy: Percent | None = None


def exit_status(command: Callable[[], int], resumes: bool = True) -> int:
    """Run a command and return its exit status.

    A UserError is printed to stderr in one line and gives status 2.

    Args:
        command: returns the exit status.
        resumes: True if the same command, run again after an interruption, resumes.

    """
    for stream in (sys.stdout, sys.stderr):
        # A class name may have characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # A Python handler would not run in a rank that waits for other ranks in native code.
        with leaving_early() if _world_size() == "1" else contextlib.nullcontext():
            return command()
    except UserError as error:
        # Every rank has the error, its own or that of another rank.
        if _is_first_rank():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output closed it, as `| head` does, so nothing more can be printed.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 141
    except OSError as error:
        # A full or missing disk is not a bug, so a traceback would not help.
        if error.errno not in DISK_ERRORS:
            raise
        advice = "fix this, then run the same command again to resume"
        print(f"error: {error}; {advice}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Stopped) as error:
        if _is_first_rank():
            advice = "; run the same command again to resume from the last checkpoint"
            print(f"interrupted{advice if resumes else ''}", file=sys.stderr)
        return error.status if isinstance(error, Stopped) else 130


def read_command_line(
    arguments: Sequence[str],
    config_name: str,
    config_type: Any,
    usage: str | None = None,
    ranks: bool = False,
) -> CommandLine:
    """Compose and check every job that the arguments ask for; raise UserError on a mistake.

    Args:
        arguments: the command line without the program's name.
        config_name: name of the configuration's file in conf/, without `.yaml`.
        config_type: configuration class.
        usage: text that `--help` prints before the keys.
        ranks: True if torchrun may start several ranks of the command.

    """
    check_ranks(ranks)
    # With this variable Hydra raises its errors instead of printing them over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra needs them for --cfg job --resolve.
    register_resolvers()
    parser = _make_parser()
    # Intermixed: the flags may stand anywhere among the overrides.
    flags = parser.parse_intermixed_args(arguments)
    for name in ("experimental_rerun", "config_name", "config_path"):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: not used here; see --help for the keys")
    if not flags.cfg and (flags.resolve or flags.package):
        raise UserError(f"--{'resolve' if flags.resolve else 'package'}: needs --cfg")
    overrides = list(flags.overrides)
    check_hydra_overrides(overrides)
    if flags.help:
        text = help_text(usage or "", config_type, config_name)
        return CommandLine([], False, [], functools.partial(print, text))
    # Hydra itself uses only the last --config-dir, but an experiment may extend one in another.
    folders, flags.config_dir = flags.config_dir, None
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"--config-dir={folder}: must be a directory")
        check_utf8("--config-dir", os.path.abspath(folder))
    if folders:
        overrides.append(search_path(folders))
    if flags.hydra_help or flags.info or flags.shell_completion or flags.cfg:
        if flags.cfg:
            check_overrides(config_name, config_type, overrides)
        flags.overrides = as_text(overrides, text_keys(config_type))
        return CommandLine(
            [], False, [], functools.partial(_let_hydra_answer, config_name, parser, flags)
        )
    jobs = read_overrides(config_name, config_type, overrides, sweep=flags.multirun)
    if flags.multirun and _world_size() != "1":
        raise UserError(
            "-m: torchrun trains one run; sweep with python train.py -m, which trains several "
            "runs at once, or start torchrun once for each run"
        )
    check_sweep_keys(overrides, jobs, flags.multirun)
    hydra_overrides = [o for o in overrides if is_hydras(o)]
    return CommandLine(jobs, flags.multirun, hydra_overrides)


def check_sweep_keys(overrides: Sequence[str], jobs: Sequence[Job], multirun: bool) -> None:
    """Check `SWEEP_KEYS`; raise UserError if one has several values, no sweep, or a launcher."""
    given = {key: override for override in overrides if (key := sweep_key(override))}
    if given and not multirun:
        allowed = "is for sweeps, python train.py -m ...; one run has no use for it"
        raise UserError(f"{next(iter(given.values()))}: {allowed}")
    for key in SWEEP_KEYS:
        if multirun and len({getattr(job.config, key, None) for job in jobs}) > 1:
            raise UserError(f"{given.get(key, key)}: must be one value for the whole sweep")
    launcher = next(filter(is_launchers, overrides), None)
    if "parallel" in given and launcher is not None:
        raise UserError(
            f"{given['parallel']}: cannot be combined with {launcher}; give one of them"
        )


def _make_parser() -> argparse.ArgumentParser:
    """Return a parser of Hydra's flags, including those that `read_command_line` refuses.

    One help text of Hydra's own parser is not a string, which argparse refuses since Python 3.14.
    """
    parser = FlagParser(add_help=False, description="Hydra")
    parser.add_argument("overrides", nargs="*", help="key=value, to override the configuration")
    parser.add_argument(
        "--version", action="version", version=f"Hydra {hydra.__version__}", help="Hydra's version"
    )
    parser.add_argument(
        "--config-dir", "-cd", action="append", default=[], help="a folder of configurations to add"
    )
    parser.add_argument(
        "--cfg", "-c", choices=["job", "hydra", "all"], help="show the configuration"
    )
    parser.add_argument("--package", "-p", help="with --cfg: the part to show")
    parser.add_argument(
        "--info", "-i", nargs="?", const="all", help="show what Hydra composes from",
        choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
    )  # fmt: skip
    for names, text in {
        ("--help", "-h"): "the application's help",
        ("--hydra-help",): "Hydra's help",
        ("--resolve",): "with --cfg: resolve interpolations",
        ("--run", "-r"): "run a job",
        ("--multirun", "-m"): "run a job for each combination of values",
        ("--shell-completion", "-sc"): "install or uninstall the shell's completion",
    }.items():
        parser.add_argument(*names, action="store_true", help=text)
    for names in (("--config-path", "-cp"), ("--config-name", "-cn"), ("--experimental-rerun",)):
        parser.add_argument(*names, help="not used here")
    return parser


def _let_hydra_answer(
    config_name: str, parser: argparse.ArgumentParser, flags: argparse.Namespace
) -> None:
    """Let Hydra print what --cfg, --info and similar flags ask for."""

    def task(composed: DictConfig) -> None:
        """Do nothing: with these flags Hydra never calls its task."""

    # Hydra names its job after the task's module.
    task.__module__ = config_name
    version.setbase("1.3")
    _run_hydra(flags, parser, task, str(CONF), config_name)


def read_arguments(arguments: Sequence[str], config_type: type[T], usage: str | None) -> T:
    """Read a script's `key=value` arguments into its dataclass; raise UserError on a mistake.

    `--help` prints `usage` and exits.
    """
    check_ranks(False)
    if {"--help", "-h"} & set(arguments):
        print((usage or "").strip())
        raise SystemExit(0)
    for argument in arguments:
        if not re.match(r"[a-z_.]+=.", argument):
            raise UserError(f"{argument}: must be key=value; see --help")
        key = argument.partition("=")[0]
        if sum(other.startswith(f"{key}=") for other in arguments) > 1:
            raise UserError(f"{argument}: {key} is given more than once; give it once")
    try:
        raw = _read_dotlist(arguments, text_keys(config_type))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        given = " ".join(arguments)
        raise UserError(f"{given}: must be key=value, each value plain or in quotes") from error
    result: T = parse(config_type, raw)
    return result


def _read_dotlist(arguments: Sequence[str], texts: set[str]) -> dict[str, Any]:
    """Parse `key=value` arguments as YAML, except the values of text keys, which stay as typed."""
    typed = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        plain = key in texts and value != "null" and not value.startswith(("'", '"'))
        typed.append(f"{key}={json.dumps(value)}" if plain else argument)
    return plain_config(OmegaConf.from_dotlist(typed))


def read_own_keys(given: Sequence[str], prefix: str, config_type: type[T]) -> T:
    """Read a script's own arguments, `prefix.key=value`; ignore all others, which are train.py's.

    Raises UserError on a mistake.
    """
    own = [argument for argument in given if argument.startswith(f"{prefix}.")]
    try:
        raw = _read_dotlist(own, set()).get(prefix, {})
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{' '.join(own)}: must be {prefix}.key=value") from error
    result: T = parse(config_type, raw, f"{prefix}.")
    return result


def _world_size() -> str:
    return os.environ.get("WORLD_SIZE", "1")


def _is_first_rank() -> bool:
    return _world_size() == "1" or os.environ.get("RANK", "0") == "0"


def check_ranks(several: bool) -> None:
    """Raise UserError if there are several ranks and `several` is False; silence all but rank 0."""
    if _world_size() == "1":
        return
    if not _is_first_rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if not several:
        name = Path(sys.argv[0]).name
        raise UserError(f"WORLD_SIZE={_world_size()}: {name} is one process; start it with python")
    needed = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if absent := [name for name in needed if name not in os.environ]:
        allowed = f"{', '.join(absent)} not set; start several ranks with torchrun"
        raise UserError(f"WORLD_SIZE={_world_size()}: {allowed}")


class FlagParser(argparse.ArgumentParser):
    """A parser of flags that raises UserError with argparse's message, and prints no usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; see --help")
