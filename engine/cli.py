"""From the command line to checked configurations, and a user's mistake to one line.

Hydra composes and sweeps; what it does wrong for a user is put right here, before it starts: every
job of a sweep is composed and checked first, its errors are put on one line with exit status 2,
and nothing is made by then. Imports no torch: `--help` and mistakes answer at once.
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
    Job,
    as_text,
    check_overrides,
    plain_config,
    read_overrides,
    search_path,
)
from engine.config.hydra_rules import check_hydra_overrides, is_hydras, register_resolvers
from engine.config.parse import parse, text_keys
from engine.errors import UserError
from engine.system.signals import Stopped, leaving_early

T = TypeVar("T")
# A disk that is full, gone, read-only, or no longer ours; a directory in a file's place.
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ESTALE, errno.ENOTCONN, errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip


@dataclass(frozen=True)
class CommandLine:
    """What the command line asks for: jobs, or an answer of Hydra's own (--help, --cfg).

    hydra_overrides: those of Hydra's own keys, such as the launcher's, which name no run.
    answer: lets Hydra print it; there are no jobs then.
    """

    jobs: list[Job]
    multirun: bool
    hydra_overrides: list[str]
    answer: Callable[[], None] | None = None


@dataclass(frozen=True)
class Groups:
    """group: names of groups, separated by commas."""

    group: str = "default"

    @property
    def names(self) -> list[str]:
        """Return the groups' names, each once."""
        return list(dict.fromkeys(self.group.split(",")))


def exit_status(command: Callable[[], int], resumes: bool = True) -> int:
    """Run a command to its exit status: a user's mistake is one line on stderr and status 2.

    resumes: whether the command, given again, goes on where it was stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        # A class may have a name that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # A rank that waits for others in native code would not hear of a signal.
        with leaving_early() if _world_size() == "1" else contextlib.nullcontext():
            return command()
    except UserError as error:
        # Every rank knows of it, by itself or from the one that it stopped.
        if _is_first_rank():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output left, as `| head` does; there is nobody left to tell.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 141
    except OSError as error:
        # A disk that is full or gone is nobody's mistake, and no traceback helps.
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error}; the same command goes on once that is mended", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Stopped) as error:
        if _is_first_rank():
            then = "; the same command goes on from the last checkpoint" if resumes else ""
            print(f"interrupted{then}", file=sys.stderr)
        return error.status if isinstance(error, Stopped) else 130


def read_command_line(
    arguments: Sequence[str], config_name: str, config_type: Any, ranks: bool = False
) -> CommandLine:
    """Compose and check every job that the arguments ask for; raise UserError on a mistake.

    ranks: whether the command may be one of several ranks, which torchrun started.
    """
    check_ranks(ranks)
    # Hydra prints its own errors over several lines unless it is told to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra's own --cfg job --resolve needs them too.
    register_resolvers()
    parser = _make_parser()
    # Intermixed: the flags may stand anywhere among the overrides.
    flags = parser.parse_intermixed_args(arguments)
    for name in ("experimental_rerun", "config_name", "config_path"):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: not used here; see --help for the keys")
    if not flags.cfg and (flags.resolve or flags.package):
        raise UserError(f"--{'resolve' if flags.resolve else 'package'}: is for --cfg")
    overrides = list(flags.overrides)
    check_hydra_overrides(overrides)
    # Hydra keeps the last of several folders; an experiment may build upon another folder's.
    folders, flags.config_dir = flags.config_dir, None
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"--config-dir={folder}: must be a directory")
        check_utf8("--config-dir", os.path.abspath(folder))
    if folders:
        overrides.append(search_path(folders))
    if flags.help or flags.hydra_help or flags.info or flags.shell_completion or flags.cfg:
        if flags.cfg:
            check_overrides(config_name, config_type, overrides)
        flags.overrides = as_text(overrides, text_keys(config_type))
        return CommandLine(
            [], False, [], functools.partial(_let_hydra_answer, config_name, parser, flags)
        )
    jobs = read_overrides(config_name, config_type, overrides, sweep=flags.multirun)
    if flags.multirun and _world_size() != "1":
        raise UserError(
            "-m: torchrun trains one run; sweep with python train.py -m (hydra/launcher=joblib "
            "trains several runs at once), or start torchrun once for each run"
        )
    hydra_overrides = [o for o in overrides if is_hydras(o)]
    return CommandLine(jobs, flags.multirun, hydra_overrides)


def _make_parser() -> argparse.ArgumentParser:
    """Make the parser of Hydra's flags, those that are refused here among them.

    Hydra's own has a help text that is no string, which argparse refuses since Python 3.14.
    """
    parser = argparse.ArgumentParser(add_help=False, description="Hydra")
    parser.error = refuse_flags  # type: ignore[method-assign]
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
    """Let Hydra answer --help, --cfg and the like."""

    def nothing(composed: DictConfig) -> None:
        """Stand for the task, which these flags never reach."""

    # Hydra names its job by the task's module.
    nothing.__module__ = config_name
    version.setbase("1.3")
    _run_hydra(flags, parser, nothing, str(CONF), config_name)


def read_arguments(arguments: Sequence[str], config_type: type[T], usage: str | None) -> T:
    """Read a script's key=value arguments into its dataclass; `--help` prints `usage`."""
    check_ranks(False)
    if {"--help", "-h"} & set(arguments):
        print((usage or "").strip())
        raise SystemExit(0)
    for argument in arguments:
        if not re.match(r"[a-z_.]+=.", argument):
            raise UserError(f"{argument}: must be key=value; see --help")
        key = argument.partition("=")[0]
        if sum(other.startswith(f"{key}=") for other in arguments) > 1:
            raise UserError(f"{argument}: {key} is given more than once")
    try:
        raw = _read_dotlist(arguments, text_keys(config_type))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        given = " ".join(arguments)
        raise UserError(f"{given}: must be key=value, each value plain or in quotes") from error
    result: T = parse(config_type, raw)
    return result


def _read_dotlist(arguments: Sequence[str], texts: set[str]) -> dict[str, Any]:
    """Read key=value as YAML does, but a text key's value as it was typed."""
    typed = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        plain = key in texts and value != "null" and not value.startswith(("'", '"'))
        typed.append(f"{key}={json.dumps(value)}" if plain else argument)
    return plain_config(OmegaConf.from_dotlist(typed))


def read_own_keys(given: Sequence[str], prefix: str, config_type: type[T]) -> T:
    """Read a script's own keys, `prefix.key=value`, from among those of train.py."""
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
    """Refuse several ranks where a command is for one; let only the first print."""
    if _world_size() == "1":
        return
    if not _is_first_rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if not several:
        name = Path(sys.argv[0]).name
        raise UserError(f"WORLD_SIZE={_world_size()}: {name} is one process; start it with python")
    needed = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if absent := [name for name in needed if name not in os.environ]:
        allowed = f"several ranks are started by torchrun, which sets {', '.join(absent)} too"
        raise UserError(f"WORLD_SIZE={_world_size()}: {allowed}")


def refuse_flags(message: str) -> NoReturn:
    """Raise UserError in place of argparse's usage."""
    raise UserError(f"{message}; see --help")
