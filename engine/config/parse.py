"""Parses plain dictionaries into typed dataclasses; an error is one line.

A field's annotation says which values its key allows: a type, `Annotated[int, Range(...)]`, a
Literal, any of these or null, a group of keys, or one of several groups with different `name`s.
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.errors import UserError, closest, key_error

# The largest float32. torch refuses larger numbers.
LARGEST = (2 - 2**-23) * 2.0**127
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Range:
    """The numbers that a key allows. An open end excludes the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        parts = []
        if self.low != -math.inf:
            parts.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high != math.inf:
            parts.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Pattern:
    """The texts that a key allows, as a regular expression and in words."""

    expression: str
    words: str


def key_types(cls: Any) -> dict[str, Any]:
    """Return the type of each key of a configuration class, with its bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def known_keys(cls: Any, prefix: str = "") -> set[str]:
    """Return every dotted key of a configuration class, over all members of each group."""
    keys = set()
    for name, hint in key_types(cls).items():
        members = [m for m in (get_args(hint) or (hint,)) if _is_group(m)]
        keys |= {prefix + name} if not members else set()
        keys = keys.union(*(known_keys(member, f"{prefix}{name}.") for member in members))
    return keys


def text_keys(cls: Any, prefix: str = "") -> set[str]:
    """Return every dotted key whose value is text, including groups, whose value is a member."""
    keys = set()
    for name, hint in key_types(cls).items():
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        groups = [m for m in members if _is_group(m)]
        if str in members or groups:
            keys.add(prefix + name)
        keys = keys.union(*(text_keys(group, f"{prefix}{name}.") for group in groups))
    return keys


def allowed_values(hint: Any) -> str:
    """Return in words which values a key's type allows.

    >>> allowed_values(Annotated[int, Range(low=1)] | None)
    'a whole number at least 1, or null'
    """
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = []
    for member in members:
        base, *rest = get_args(member) if get_origin(member) is Annotated else (member,)
        pattern = next((part.words for part in rest if isinstance(part, Pattern)), None)
        bounds = next((part for part in rest if isinstance(part, Range)), Range())
        if base is type(None):
            words.append("null")
        elif get_origin(base) is Literal:
            words.append(f"one of {', '.join(get_args(base))}")
        else:
            words.append(pattern or f"{KINDS[base]} {bounds}".rstrip())
    return ", or ".join(words)


def parse(cls: Any, raw: Any, prefix: str = "") -> Any:
    """Build dataclass `cls` from a mapping and check every value; raise UserError on a mistake.

    Args:
        cls: a dataclass.
        raw: a mapping from keys to values.
        prefix: put before each key in error messages.

    """
    hints = key_types(cls)
    for key in raw:
        if key not in hints:
            names = closest(f"{prefix}{key}", (prefix + name for name in hints))
            raise key_error(f"{prefix}{key}", raw[key], f"unknown key; {names}")
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in raw:
            values[field.name] = _convert(hints[field.name], raw[field.name], prefix + field.name)
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{prefix}{field.name}: this key is missing and has no default")
    return cls(**values)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Check one value against its type and return it. Only ints are converted, to floats."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    groups = [member for member in members if _is_group(member)]
    if groups:
        return _convert_group(groups, value, key)
    nullable = type(None) in members
    if value is None and nullable:
        return None
    words = [member for member in members if get_origin(member) is Literal]
    others = [member for member in members if member not in (*words, type(None))]
    or_null = " or null" if nullable else ""
    if words and (isinstance(value, str) or not others):
        if value in get_args(words[0]) and isinstance(value, str):
            return value
        or_number = " or a number" if others else ""
        allowed = f"must be one of {', '.join(get_args(words[0]))}{or_number}{or_null}"
        raise key_error(key, value, allowed)
    patterns = [p for m in others for p in get_args(m)[1:] if isinstance(p, Pattern)]
    if any(type(value) is str and re.fullmatch(p.expression, value) for p in patterns):
        return value
    or_null = "".join(f" or {p.words}" for p in patterns) + or_null
    # Besides patterns and Literals a key allows only one type.
    hint = next(m for m in others if not any(p in get_args(m) for p in patterns))
    base, bounds = get_args(hint) if get_origin(hint) is Annotated else (hint, Range())
    if base is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    finite = not isinstance(value, float) or abs(value) <= LARGEST
    if type(value) is base and finite and (base in (bool, str) or value in bounds):
        return value
    kind = KINDS[base]
    too_large = " and within float32" if base is float and not finite else ""
    if base is int and isinstance(value, float) and value.is_integer():
        # YAML reads 1e3 as a float.
        raise key_error(key, repr(value), f"must be {kind} {bounds}, in digits only{or_null}")
    quoted = "; in a file, text goes in quotes" if base is str and value is not None else ""
    raise key_error(key, value, f"must be {kind} {bounds}".rstrip() + too_large + or_null + quoted)


def _convert_group(groups: list[Any], value: Any, key: str) -> Any:
    """Parse a group as the member that its `name` chooses."""
    if not isinstance(value, Mapping):
        raise key_error(key, value, "must be a group of keys")
    named = {name: g for g in groups for name in get_args(get_type_hints(g).get("name"))}
    if not named:
        return parse(groups[0], value, f"{key}.")
    name = value.get("name")
    if not isinstance(name, str) or name not in named:
        raise key_error(f"{key}.name", name, f"must be one of {', '.join(named)}")
    return parse(named[name], value, f"{key}.")
