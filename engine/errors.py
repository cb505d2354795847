"""Errors that a user can fix, each worded in one line: `key=value: what is allowed`."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake of the user. Its text is printed in one line, then the exit status is 2."""


def key_error(key: str, value: Any, allowed: str) -> UserError:
    """Return a UserError that reads `key=value: allowed`, the value spelled as a user types it."""
    shown = "null" if value is None else json.dumps(value) if type(value) is bool else str(value)
    shown = shown.removesuffix(".0") if type(value) is float else " ".join(shown.split())
    return UserError(readable(f"{key}={shown}: {allowed}"))


def readable(text: str) -> str:
    r"""Return text that can be encoded as UTF-8.

    Python keeps the bytes of a file name that are not valid UTF-8 as lone surrogates. They become
    escapes such as `\xe9`.
    """
    return re.sub("[\ud800-\udfff]", _escape, text)


def _escape(match: re.Match[str]) -> str:
    byte = ord(match[0]) - 0xDC00
    # Any other surrogate stands for no byte. YAML can contain one.
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{ord(match[0]):04x}"


def closest(key: str, known: Iterable[str]) -> str:
    """Return the advice for a mistyped key: the most similar known keys, or all if none is."""
    known = sorted(known)
    matches = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    # Only those that are about as similar as the best one, which comes first.
    likeness = [difflib.SequenceMatcher(None, key, match).ratio() for match in matches]
    matches = [m for m, ratio in zip(matches, likeness, strict=True) if ratio > likeness[0] - 0.1]
    leaf = key.rpartition(".")[2]
    matches = matches or [name for name in known if name.rpartition(".")[2] == leaf]
    return f"did you mean {' or '.join(matches)}?" if matches else f"one of {', '.join(known)}"
