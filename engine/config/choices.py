"""What a run's result depends on, each choice in one spelling: its identity, and so its name."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from engine.config.keys import PATH, SAME_RESULT
from engine.errors import key_error, readable


def flatten(config: Any, as_typed: bool, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """List the choices of a configuration, or a part of it, as `Config.choices` gives them."""
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
    # Zero has two signs, and no rate or bound is another for it.
    return 0.0 if isinstance(value, float) and value == 0 else value


def one_path(path: str) -> str:
    """Return the one spelling of a path: without `~`, `.`, `//` and a last `/`, links as they are.

    It is relative to the working directory if it lies inside, else absolute. The file system is not
    asked: a run has its name also where the folder is not mounted, and keeps it when a link on the
    way is put elsewhere. So a `..` goes together with the folder before it only if the working
    directory is that folder or lies in it: the system gives the working directory without links.
    Any other folder may be a link, and `..` behind a link leads elsewhere than the text says.
    """
    here = [part for part in os.getcwd().split("/") if part]
    parts: list[str] = []
    for part in os.path.join(os.getcwd(), os.path.expanduser(path)).split("/"):
        if part == ".." and parts == here[: len(parts)]:
            # The root's parent is the root.
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    inside = parts[: len(here)] == here
    # The home or working directory may have a name that is no UTF-8 text.
    return readable("/".join(parts[len(here) :]) or "." if inside else "/" + "/".join(parts))


def check_utf8(key: str, text: str | None) -> None:
    """Raise UserError for text that configurations, tables and TensorBoard could not hold."""
    if text is not None and readable(text) != text:
        allowed = "must be UTF-8 text; rename the folder, or make a link to it under such a name"
        raise key_error(key, text, allowed)
