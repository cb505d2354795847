"""Answer a group's question in one sentence, computed from its runs.

The sentence compares the optimizers at the largest batch that most of them share, and says how far
each of them stays within one point of its accuracy at the smallest batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.report import titles
from engine.report.rows import Row
from engine.runs.records import DIVERGED

# Accuracy in points that a line may lose and still count as equal.
POINTS = 1.0
# An accuracy of at most this many times that of a random guess is called near chance.
NEAR_CHANCE = 1.2


@dataclass(frozen=True)
class Entry:
    """A row that stands for its optimizer in the comparison.

    Attributes:
        row: the row.
        name: what the sentence calls it.
        note: how it was selected, if the optimizer has other settings there; may be empty.

    """

    row: Row
    name: str
    note: str = ""

    @property
    def accuracy(self) -> float:
        """Return the mean accuracy in %."""
        return self.row.accuracy() or 0.0


def opening(rows: Sequence[Row]) -> str:
    """Return the sentence that answers the group's question, without Markdown.

    Args:
        rows: all rows of the group.

    """
    known = [row for row in rows if row.accuracies()]
    if not known:
        return "No run of this group has an accuracy yet."
    known = [row for row in known if not row.stops_at_target]
    if not known:
        return "The runs of this group end at their target, so their accuracies are not compared."
    scope, batch = place_of(known)
    known = [row for row in known if row.scope == scope]
    batches = {row.batch for row in known}
    here = [row for row in known if row.batch == batch]
    if len(here) > 1 and len(optimizers(known, batch)) == 1 and len(batches) == 1:
        entries = best_settings(here)
    else:
        entries = [entry_of(here, name) for name in optimizers(known, batch)]
    entries = sorted(entries, key=lambda entry: -entry.accuracy)
    where = f"At batch {batch}{scope_text(known[0], rows)}"
    spanned = spans([row for row in rows if row.scope == scope])
    return f"{where} {compare(entries)}{'; ' + spanned if spanned else ''}."


def place_of(rows: Sequence[Row]) -> tuple[str, int]:
    """Return scope and batch of the comparison: the largest batch with several optimizers.

    Only rows of the same model, data and epochs are compared. Of scopes with equal batches, the one
    with most runs is chosen.
    """

    def rank(scope: str, batch: int) -> tuple[int, int, int]:
        found = [row for row in rows if row.scope == scope]
        runs = sum(len(row.accuracies()) for row in found)
        return min(2, len(optimizers(found, batch))), batch, runs

    return max(dict.fromkeys((row.scope, row.batch) for row in rows), key=lambda at: rank(*at))


def optimizers(rows: Sequence[Row], batch: int) -> list[str]:
    """Return the names of the optimizers with rows at a batch."""
    return list(dict.fromkeys(row.optimizer_title for row in rows if row.batch == batch))


def scope_text(row: Row, rows: Sequence[Row]) -> str:
    """Return in words those of model, data and epochs in which rows of the group differ."""
    words = {"model.name": " with", "data.name": " on", "epochs": " over"}
    differing = [k for k in titles.SCOPE if any(r.choices[k] != row.choices[k] for r in rows)]
    parts = [f"{words[key]} {row.choices[key]}" for key in differing]
    return "".join(parts) + " epochs" * ("epochs" in differing)


def entry_of(rows: Sequence[Row], optimizer: str) -> Entry:
    """Return the row that stands for an optimizer at a batch.

    Of several settings it is the one with most seeds, then the most common one, then the best.
    """
    found = [row for row in rows if row.optimizer_title == optimizer and row.accuracies()]
    common = [row for row in found if row.setting == titles.COMMON]
    seeds = max(len(row.accuracies()) for row in found)
    most = [row for row in found if len(row.accuracies()) == seeds]
    row = max(most, key=lambda row: (row in common, row.accuracy() or 0.0))
    if len(found) == 1:
        note = ""
    elif row in common:
        note = f"the most common of {len(found)} settings of {optimizer}"
    elif len(most) == len(found):
        note = f"the best of {len(found)} settings of {optimizer}: {row.setting}"
    else:
        note = f"of {len(found)} settings of {optimizer} the one with most seeds: {row.setting}"
    return Entry(row, optimizer, note)


def best_settings(rows: Sequence[Row]) -> list[Entry]:
    """Return the best setting of one optimizer at one batch, and another to compare it with.

    The other one is the most common setting if there is one, else the second best.
    """
    ranked = sorted(rows, key=lambda row: -(row.accuracy() or 0.0))
    best, others = ranked[0], ranked[1:]
    common = [row for row in others if row.setting == titles.COMMON]
    name = f"the best of {len(rows)} settings of {best.optimizer_title}"
    other = "the setting that most rows share" if common else f"the next, {others[0].setting}"
    chosen = "the setting that most rows share" if best.setting == titles.COMMON else best.setting
    return [Entry(best, f"{name}, {chosen},"), Entry((common or others)[0], other)]


def compare(entries: Sequence[Entry]) -> str:
    """Return the comparison of entries, best first, with what limits it in parentheses."""
    best, *others = entries
    if all(len(entry.row.of(DIVERGED)) == len(entry.row.accuracies()) for entry in entries):
        return f"every run of {' and '.join(entry.name for entry in entries)} diverged"
    held_out = " on held-out images" if best.row.split == "holdout" else ""
    text = f"{best.name} reaches {best.accuracy:.1f} %{held_out}"
    if len(others) == 1:
        difference = f"{best.accuracy - others[0].accuracy:.1f}"
        more = f"{difference} points more than" if difference != "0.0" else "as much as"
        text += f", {more} {others[0].name}"
    elif others:
        text += ", " + ", ".join(f"{entry.name} {entry.accuracy:.1f} %" for entry in others)
    notes = [entry.note for entry in entries if entry.note]
    notes += [note for entry in entries if (note := diverged_note(entry))]
    notes += [note for note in (chance_note(entries), seeds_note(entries)) if note]
    return f"{text} ({'; '.join(notes)})" if notes else text


def diverged_note(entry: Entry) -> str:
    """Return how many runs of an entry diverged; empty if none did."""
    lost, total = len(entry.row.of(DIVERGED)), len(entry.row.accuracies())
    if not lost:
        return ""
    which = "its only run" if total == 1 else f"all {total} runs" if lost == total else (
        f"{lost} of {total} runs"
    )  # fmt: skip
    return f"{entry.name.rstrip(',')} diverged in {which}, which counts as chance"


def chance_note(entries: Sequence[Entry]) -> str:
    """Return which entries learned hardly more than a random guess; empty if none is known to."""
    near = [
        entry
        for entry in entries
        if (chance := entry.row.first("chance_accuracy")) is not None
        and entry.accuracy <= NEAR_CHANCE * chance
        and not entry.row.of(DIVERGED)
    ]
    if not near:
        return ""
    names = " and ".join(entry.name.rstrip(",") for entry in near)
    verb = "is" if len(near) == 1 else "are"
    return f"{names} {verb} near chance, {near[0].row.first('chance_accuracy'):g} %"


def seeds_note(entries: Sequence[Entry]) -> str:
    """Return whether single seeds, or overlapping ones, make the comparison uncertain."""
    single = [entry for entry in entries if len(entry.row.accuracies()) == 1]
    if len(single) == len(entries):
        return "one seed" if len(entries) == 1 else "one seed each"
    if single:
        return f"{' and '.join(entry.name.rstrip(',') for entry in single)}: one seed"
    for entry in entries[1:]:
        if max(entry.row.accuracies()) >= min(entries[0].row.accuracies()):
            return "their seeds overlap" if len(entries) == 2 else "some seeds overlap"
    return ""


def spans(rows: Sequence[Row]) -> str:
    """Return how far each optimizer stays near its accuracy at the smallest batch; may be empty."""
    batches = sorted({row.batch for row in rows})
    found: dict[str, str] = {}
    for name in dict.fromkeys(row.optimizer_title for row in rows):
        accuracies = {
            batch: entry_of([row for row in rows if row.batch == batch], name).accuracy
            for batch in batches
            if any(r.batch == batch and r.optimizer_title == name and r.accuracies() for r in rows)
        }
        if len(accuracies) > 1 and batches[0] in accuracies:
            found[name] = span(accuracies, batches)
    phrases = list(dict.fromkeys(found.values()))
    if len(phrases) == 1 and len(found) > 1:
        subject = "both" if len(found) == 2 else "all"
        return f"{subject} {phrases[0].replace('stays', 'stay', 1).replace('loses', 'lose', 1)}"
    if len(found) == 1 and len({row.optimizer for row in rows}) == 1:
        return f"it {phrases[0]}"
    return ", ".join(f"{name} {phrase}" for name, phrase in found.items())


def span(accuracies: Mapping[int, float], batches: Sequence[int]) -> str:
    """Return as text up to which batch an optimizer stays within one point of the smallest.

    Args:
        accuracies: mean accuracy in % by batch.
        batches: all batches of the group, smallest first.

    """
    last = batches[0]
    for batch in batches[1:]:
        if batch not in accuracies:
            break
        if accuracies[batch] < accuracies[batches[0]] - POINTS:
            if last == batches[0]:
                return f"loses more than 1 point between batch {last} and {batch}"
            break
        last = batch
    if last == batches[-1]:
        return f"stays within 1 point of batch {batches[0]} at every batch"
    return f"stays within 1 point of batch {batches[0]} up to batch {last}"
