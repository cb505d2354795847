"""A user's mistake, and how it is worded in one line: the key, the value, what is allowed."""

import difflib
import json
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A user's mistake; its text is the one line to print before exit status 2."""


def key_error(key: str, value: Any, allowed: str) -> UserError:
    """Word a user's mistake: the key, the value, what is allowed."""
    shown = "null" if value is None else json.dumps(value) if type(value) is bool else str(value)
    shown = shown.removesuffix(".0") if type(value) is float else " ".join(shown.split())
    return UserError(f"{key}={shown}: {allowed}")


def closest(key: str, known: Iterable[str]) -> str:
    """Name the known keys nearest to a mistyped one, or all of them."""
    known = sorted(known)
    matches = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    leaf = key.rpartition(".")[2]
    matches = matches or [name for name in known if name.rpartition(".")[2] == leaf]
    return f"did you mean {' or '.join(matches)}?" if matches else f"one of {', '.join(known)}"
