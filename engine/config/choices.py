"""The choices that a run's result depends on, in one spelling each. They give the run its name."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from engine.config.keys import PATH, SAME_RESULT
from engine.errors import key_error, readable


def flatten(config: Any, as_typed: bool, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the choices of a configuration, or a part of it, as (dotted key, value).

    Keys at their dataclass default and keys declared with `same_result` are left out.

    Args:
        config: a configuration dataclass.
        as_typed: True to keep paths and zeros as they were typed.
        prefix: put before each key.

    """
    for key in dataclasses.fields(config):
        value = getattr(config, key.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, as_typed, f"{prefix}{key.name}.")
        elif not key.metadata.get(SAME_RESULT) and (
            key.default is dataclasses.MISSING or value != key.default
        ):
            yield prefix + key.name, value if as_typed else _in_one_spelling(key, value)


def _in_one_spelling(key: dataclasses.Field[Any], value: Any) -> Any:
    if key.metadata.get(PATH) and value:
        return one_path(value)
    # -0.0 equals 0.0, but is written differently.
    return 0.0 if isinstance(value, float) and value == 0 else value


def one_path(path: str) -> str:
    """Return the one spelling of a path: without `~`, `.`, `//` and a trailing `/`.

    The result is relative to the working directory if it lies inside, otherwise absolute. The file
    system is not read, so a run keeps its name if the folder is not mounted or a link changes.
    Links are therefore not resolved, and a `..` is removed together with the folder before it only
    if that folder is the working directory or one of its parents, which are known not to be links.
    After a link, `..` leads elsewhere than the text says.
    """
    here = [part for part in os.getcwd().split("/") if part]
    parts: list[str] = []
    for part in os.path.join(os.getcwd(), os.path.expanduser(path)).split("/"):
        if part == ".." and parts == here[: len(parts)]:
            # The parent of the root is the root.
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    inside = parts[: len(here)] == here
    # The name of the home or working directory may not be valid UTF-8.
    return readable("/".join(parts[len(here) :]) or "." if inside else "/" + "/".join(parts))


def check_utf8(key: str, text: str | None) -> None:
    """Raise UserError for text that is not valid UTF-8, which files and TensorBoard cannot hold."""
    if text is not None and readable(text) != text:
        allowed = "must be UTF-8 text; rename the folder, or make a link to it with a UTF-8 name"
        raise key_error(key, text, allowed)
