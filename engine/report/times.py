"""Select the runs whose times count in a report, and note the others.

Only times measured under equal conditions are averaged or drawn together. The times of a run that
shared its machine do not count. Neither do those of an earlier version's run, whose conditions are
not recorded; runs.jsonl keeps its seconds.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.runs.records import Record


class Conditions(NamedTuple):
    """What a run's times depend on besides its choices.

    Attributes:
        runs_at_once: number of runs that the sweep trained at once.
        threads: CPU threads of each run; None if not recorded.
        device: name of the device; None if not recorded.

    """

    runs_at_once: int
    threads: int | None
    device: str | None

    def describe(self, other: "Conditions | None") -> str:
        """Return the conditions as text; the device only if it differs from that of `other`."""
        parts = [f"{_plural(self.runs_at_once, 'run')} at once"]
        if self.threads is not None:
            parts.append(_plural(self.threads, "thread") + " each" * (self.runs_at_once > 1))
        if other is not None and other.device != self.device:
            parts.append(str(self.device))
        return ", ".join(parts)


# None if no run has recorded conditions.
Known = Conditions | None
NOT_RECORDED = "not recorded"


def conditions_of(record: Record) -> Known:
    """Return the conditions of a run; None if they are not recorded.

    They include whether the run shared its machine, which earlier versions did not record.
    """
    summary = record.summary
    at_once = summary.get("runs_at_once")
    if at_once is None or summary.get("shared_machine") is None:
        return None
    return Conditions(at_once, summary.get("threads"), summary.get("device"))


def shared_machine(record: Record) -> bool:
    """Return True if other processes took CPU from a run."""
    return record.summary.get("shared_machine") is True


@dataclass(frozen=True)
class Timed:
    """The runs of a row whose times count, and the others.

    Attributes:
        candidates: the runs that are considered; their times count unless their conditions are not
            recorded, they shared the machine, or they had other conditions.

    """

    candidates: Sequence[Record]

    @functools.cached_property
    def recorded(self) -> list[Record]:
        """Return the runs whose conditions are recorded."""
        return [record for record in self.candidates if conditions_of(record) is not None]

    @functools.cached_property
    def alone(self) -> list[Record]:
        """Return those of them from which no other process took CPU."""
        return [record for record in self.recorded if not shared_machine(record)]

    @functools.cached_property
    def conditions(self) -> Known:
        """Return the most common conditions of the runs that did not share, else of all runs."""
        return most_common(conditions_of(record) for record in self.alone or self.recorded)

    @functools.cached_property
    def records(self) -> list[Record]:
        """Return the runs whose times count: not shared, and under the most common conditions."""
        return [record for record in self.alone if conditions_of(record) == self.conditions]

    def leaves_out(self, record: Record, common: Known) -> bool:
        """Return True if the run has finished and its times are not comparable with `common`."""
        return record.counted and (shared_machine(record) or conditions_of(record) != common)

    def notes(self, common: Known) -> list[str]:
        """Return notes on how the conditions of the row's times differ from `common`."""
        notes, total = [], len(self.candidates)
        if unknown := total - len(self.recorded):
            only = unknown == total
            notes.append(NOT_RECORDED if only else f"{_count(unknown, total)} {NOT_RECORDED}")
        if shared := len(self.recorded) - len(self.alone):
            notes.append(f"{_count(shared, total)} shared the machine")
        if others := len(self.alone) - len(self.records):
            notes.append(f"{_count(others, total)} under other conditions")
        if self.records and self.conditions is not None and self.conditions != common:
            notes.append(self.conditions.describe(common))
        return notes


def most_common(found: Iterable[Known]) -> Known:
    """Return the most common conditions; None if `found` is empty. In a tie the first one wins."""
    ranked = Counter(found).most_common(1)
    return ranked[0][0] if ranked else None


def common_conditions(rows: Iterable[Timed]) -> Known:
    """Return the conditions of most rows' times, which are those that plots show."""
    return most_common(timed.conditions for timed in rows if timed.records)


def describe_conditions(rows: Sequence[Timed]) -> str:
    """Return the conditions of a group's times as text; empty if there are no finished runs."""
    common, sentences = common_conditions(rows), []
    if common is not None:
        agreed = all(timed.conditions == common for timed in rows if timed.records)
        exception = "" if agreed else " if the row says nothing else; plots have no others"
        sentences.append(f"Times are of {common.describe(common)}{exception}.")
    if any(len(timed.recorded) < len(timed.candidates) for timed in rows):
        sentences.append(
            f'A time is "{NOT_RECORDED}" if an earlier version trained the run: it did not record '
            "how many runs trained at once and whether other processes took CPU from them."
        )
    return " ".join(sentences)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def _count(runs: int, total: int) -> str:
    if total == 1:
        return "the run"
    return f"{'all' if runs == total else f'{runs} of'} {total} runs"
