"""A user's mistake, and how it is worded in one line: the key, the value, what is allowed."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A user's mistake; its text is the one line to print before exit status 2."""


def key_error(key: str, value: Any, allowed: str) -> UserError:
    """Word a user's mistake: the key, the value, what is allowed."""
    shown = "null" if value is None else json.dumps(value) if type(value) is bool else str(value)
    shown = shown.removesuffix(".0") if type(value) is float else " ".join(shown.split())
    return UserError(readable(f"{key}={shown}: {allowed}"))


def readable(text: str) -> str:
    r"""Return text that every file and stream of UTF-8 takes.

    Bytes of a name that are no UTF-8, which Python keeps as lone surrogates, become `\xe9`.
    """
    return re.sub("[\ud800-\udfff]", _escape, text)


def _escape(match: re.Match[str]) -> str:
    byte = ord(match[0]) - 0xDC00
    # Any other surrogate stands for no byte; YAML can write one.
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{ord(match[0]):04x}"


def closest(key: str, known: Iterable[str]) -> str:
    """Name the known keys nearest to a mistyped one, or all of them."""
    known = sorted(known)
    matches = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    leaf = key.rpartition(".")[2]
    matches = matches or [name for name in known if name.rpartition(".")[2] == leaf]
    return f"did you mean {' or '.join(matches)}?" if matches else f"one of {', '.join(known)}"
