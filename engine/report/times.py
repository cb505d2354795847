"""Which of a row's runs its times are of, and what a report says of the others.

Only times of equal conditions are averaged or drawn together, and none of a run that shared its
machine. Summaries of earlier versions do not have the conditions: those are one value of their own.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.runs.records import Record


class Conditions(NamedTuple):
    """What times depend on besides a run's choices."""

    runs_at_once: int
    threads: int | None
    device: str | None

    def describe(self, other: "Conditions | None") -> str:
        """Write them; name the device only if it differs from that of `other`."""
        parts = [f"{_plural(self.runs_at_once, 'run')} at once"]
        if self.threads is not None:
            parts.append(_plural(self.threads, "thread") + " each" * (self.runs_at_once > 1))
        if other is not None and other.device != self.device:
            parts.append(str(self.device))
        return ", ".join(parts)


# None: not recorded.
Known = Conditions | None
NOT_RECORDED = "conditions not recorded"


def conditions_of(record: Record) -> Known:
    """Return the conditions of a run; None if an earlier version trained it."""
    summary = record.summary
    at_once = summary.get("runs_at_once")
    if at_once is None:
        return None
    return Conditions(at_once, summary.get("threads"), summary.get("device"))


@dataclass(frozen=True)
class Timed:
    """The runs of a row whose times count, and the others.

    Attributes:
        candidates: the runs whose times would count if all had been alike and undisturbed.

    """

    candidates: Sequence[Record]

    @functools.cached_property
    def shared(self) -> list[Record]:
        """Return the runs from which something else took CPU."""
        return [r for r in self.candidates if r.summary.get("shared_machine") is True]

    @functools.cached_property
    def conditions(self) -> Known:
        """Return the most common conditions of the runs that were left alone, else of all."""
        alone = [r for r in self.candidates if r.summary.get("shared_machine") is not True]
        return most_common(conditions_of(record) for record in alone or self.candidates)

    @functools.cached_property
    def records(self) -> list[Record]:
        """Return the runs whose times count: left alone, and of the most common conditions."""
        return [
            record
            for record in self.candidates
            if record.summary.get("shared_machine") is not True
            and conditions_of(record) == self.conditions
        ]

    def leaves_out(self, record: Record, common: Known) -> bool:
        """Return True if the run has an outcome, and times that are not comparable to `common`."""
        shared = record.summary.get("shared_machine") is True
        return record.counted and (shared or conditions_of(record) != common)

    def notes(self, common: Known) -> list[str]:
        """Write what a reader must know of the row's times, beside times of `common`."""
        notes, total = [], len(self.candidates)
        if self.shared:
            notes.append(f"{_count(len(self.shared), total)} shared the machine")
        if others := total - len(self.shared) - len(self.records):
            notes.append(f"{_count(others, total)} under other conditions")
        if self.records and self.conditions != common:
            known = self.conditions
            notes.append(NOT_RECORDED if known is None else known.describe(common))
        return notes


def most_common(found: Iterable[Known]) -> Known:
    """Return the most common conditions, or the first of these; None if there are none."""
    ranked = Counter(found).most_common(1)
    return ranked[0][0] if ranked else None


def common_conditions(rows: Iterable[Timed]) -> Known:
    """Return the conditions that most rows' times are of, and of which times are drawn."""
    return most_common(timed.conditions for timed in rows if timed.records)


def describe_conditions(rows: Sequence[Timed]) -> str:
    """Write once what the times of a group's rows are of; empty if that was never recorded."""
    common = common_conditions(rows)
    agreed = all(timed.conditions == common for timed in rows if timed.records)
    if common is None and agreed:
        return ""
    text = f"of {NOT_RECORDED}" if common is None else f"of {common.describe(common)}"
    if not agreed:
        text += " if the row says nothing else; plots have no others"
    return f"Times are {text}."


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def _count(runs: int, total: int) -> str:
    if total == 1:
        return "the run"
    return f"{'all' if runs == total else f'{runs} of'} {total} runs"
