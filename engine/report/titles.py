"""What the title of a row says: the choices that tell it from the other rows of its group."""

import json
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.config.schema import default_choices

if TYPE_CHECKING:
    from engine.runs.records import Record

# What tells the rows of a group apart where it mixes them; table.csv has a column for each.
KIND = ("model.name", "data.name")
SCOPE = (*KIND, "epochs")
# With more keys than these a row names only those in which it differs from most others.
MOST_TOLD = 3
# What such a row is called that differs in none.
COMMON = "(what most rows share)"
# The runs of one cell are alike in these; in what else they differ tells its rows apart.
CELL = ("optimizer.name", "batch", *SCOPE)
# What a row or a column of its own already says.
NAMED = (*CELL, "seed")


def told(members: Sequence["Record"], records: Sequence["Record"]) -> str:
    """Name what tells a row from others of its optimizer, batch and scope."""
    own, rivals = members[0].choices, alike(members, records, CELL)
    varied = varied_keys(rivals)
    if len(varied) <= MOST_TOLD:
        return differences(members, rivals, varied)
    # An ablation varies one key a row: what most rows share goes without saying.
    named = [key for key in varied if own.get(key) != commonest(rivals, key)]
    # But a schedule's keys tell nothing without its name.
    if any(key.startswith("scheduler.") for key in named) and "scheduler.name" in varied:
        named = sorted({*named, "scheduler.name"})
    return differences(members, rivals, named) or COMMON


def shared(named: str, members: Sequence["Record"], records: Sequence["Record"]) -> str:
    """Name the settings that a row shares with others of its line, through batches or epochs.

    named: what is told of the row. One without rivals lies on the line of those that have its
    values of what they differ in.
    """
    if named:
        # The setting from which an ablation's differ is the one that other cells have.
        return "" if named == COMMON else named
    same = alike(members, records, ("optimizer.name",))
    cells: dict[tuple[Any, ...], list[Record]] = {}
    for r in same:
        cells.setdefault(tuple(r.choices[key] for key in CELL), []).append(r)
    varied = {key for rivals in cells.values() for key in varied_keys(rivals)}
    # Whatever a recipe does at other batches, its rate there is another.
    keys = sorted(varied - {"optimizer.base_lr"})
    return differences(members, same, keys) if len(keys) <= MOST_TOLD else ""


def varied_keys(rivals: Sequence["Record"]) -> list[str]:
    """List the choices in which runs of one optimizer, batch and scope differ."""
    first = rivals[0].choices
    keys = sorted({key for rival in rivals for key in rival.choices} - set(NAMED))
    return [key for key in keys if any(r.choices.get(key) != first.get(key) for r in rivals)]


def alike(
    members: Sequence["Record"], records: Sequence["Record"], keys: Sequence[str]
) -> list["Record"]:
    """Return the runs that have a row's values of these choices, its own among them."""
    own = members[0].choices
    return [r for r in records if all(r.choices[key] == own[key] for key in keys)]


def apart(members: Sequence["Record"], records: Sequence["Record"]) -> str:
    """Name what else tells a row from its optimizer's others, where no rival of its own cell does.

    A recipe gives each batch its own rate, which has a column of its own.
    """
    own, rivals = members[0].choices, alike(members, records, CELL)
    same = alike(members, records, ("optimizer.name",))
    keys = {key for r in same for key in r.choices} - {*NAMED, "optimizer.base_lr"}
    if any(r.choices["scheduler.name"] != own["scheduler.name"] for r in rivals):
        # Each has keys of its own, and is named already.
        keys = {key for key in keys if not key.startswith("scheduler.")}
    steady = [
        key for key in sorted(keys) if all(r.choices.get(key) == own.get(key) for r in rivals)
    ]
    return differences(members, same, steady)


def commonest(records: Sequence["Record"], key: str) -> Any:
    """Return the value of a choice that most of the rows share; of equals, the first's."""
    rows = {json.dumps({**r.choices, "seed": 0}, sort_keys=True): r for r in records}
    values = [json.dumps(record.choices.get(key)) for record in rows.values()]
    return json.loads(statistics.mode(values))


def differences(
    members: Sequence["Record"], rivals: Sequence["Record"], keys: Sequence[str]
) -> str:
    """Write the row's value of each key that is not the same for all the rivals."""
    known = default_choices() | members[0].choices
    return " ".join(
        f"{key}={shown(known[key])}"
        for key in keys
        # Another schedule has other keys.
        if key in known
        and any(rival.choices.get(key) != members[0].choices.get(key) for rival in rivals)
    )


def mixed(members: Sequence["Record"]) -> str:
    """Mark a row whose runs were not all made by the same means."""
    counted = [record.summary for record in members if record.counted]
    means = ("commit", "device", "precision", "torch", "world_size")
    keys = [key for key in means if len({summary.get(key) for summary in counted}) > 1]
    return f"(mixed {', '.join(keys)})" if keys else ""


def shown(value: Any) -> str:
    """Write a value for a row's title."""
    return value if isinstance(value, str) else json.dumps(value)
