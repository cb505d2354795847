"""Declares configuration keys: type, bounds and meaning in one place.

Contains the types that several keys share, and `key`, which adds a meaning to a key's type.
`--help`, docs/options.md and the comments in conf/ are made from these meanings (options.py).
"""

import dataclasses
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from engine.config.parse import Pattern, Range

T = TypeVar("T")
Count = Annotated[int, Range(low=1)]
NotNegativeCount = Annotated[int, Range(low=0)]
# No machine gains from more, and torch crashes if the system refuses to start threads.
Threads = Annotated[int, Range(low=1, high=1024)]
# JSON readers represent integers up to 2**53 exactly.
Seed = Annotated[int, Range(low=0, high=2**53)]
NotNegative = Annotated[float, Range(low=0)]
Positive = Annotated[float, Range(low=0, low_open=True)]
Fraction = Annotated[float, Range(low=0, high=1)]
PositiveFraction = Annotated[float, Range(low=0, high=1, low_open=True)]
# A moving average with momentum 1 would never change.
Momentum = Annotated[float, Range(low=0, high=1, high_open=True)]
Steps = Annotated[str, Pattern("[1-9][0-9]{0,8}steps", "steps such as 50steps")]
Minutes = Annotated[str, Pattern("[1-9][0-9]{0,5}min", "minutes such as 10min")]
Percent = Annotated[float, Range(low=0, high=100, low_open=True)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Which = Literal["all", "weights"]

# Entries of a field's metadata.
MEANING = "meaning"
SAME_RESULT = "same_result"
PATH = "path"


def key(
    meaning: str,
    *,
    default: Any = dataclasses.MISSING,
    kw_only: bool = False,
    same_result: bool = False,
    path: bool = False,
) -> Any:
    """Return a dataclass field that declares a key of a configuration.

    Args:
        meaning: what the key does, with its unit and the meaning of null, in one line.
        default: only for a key that was added later; it must not change any result. A key at this
            default is left out of a run's name, so that earlier runs keep their names. A user gets
            the value in conf/, which may differ.
        kw_only: True for a key with a default in a class that others extend.
        same_result: True if the key does not change a run's result, and therefore not its name.
        path: True if the text is a path, so that two spellings of one path are equal.

    """
    metadata = {MEANING: meaning, SAME_RESULT: same_result, PATH: path}
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(key,))
def configuration(cls: type[T]) -> type[T]:
    """Turn a class into a frozen dataclass whose fields are declared with `key`."""
    return dataclasses.dataclass(frozen=True)(cls)
