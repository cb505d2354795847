"""Compares new benchmark results with those in an earlier results file, without importing torch."""

import statistics
from pathlib import Path
from typing import Any

from engine.errors import UserError
from scripts.bench import report
from scripts.bench.report import Figure, Result, Row, Table


class Earlier:
    """The results in an earlier file, restricted to the parts that are measured now.

    A part may have an earlier name there. If its earlier measurement was stopped, its finished
    tables are used. Raises UserError if the file cannot be read, is not a results file, or lacks
    one of the parts.

    Args:
        path: path of the earlier results file.
        parts: names of the parts that are measured now.

    """

    def __init__(self, path: Path, parts: list[str]) -> None:
        self.path = path
        results = report.read(path, "--against=")
        self.results: dict[str, Result] = {}
        for part in parts:
            names = (part, report.EARLIER_NAMES.get(part, part))
            stored = [
                s for name in names for s in (name, report.partial_name(name)) if s in results
            ]
            if stored:
                self.results[part] = results[stored[0]]
        if missing := [part for part in parts if part not in self.results]:
            allowed = f"has no results of {', '.join(missing)}; it has {', '.join(results)}"
            raise UserError(f"--against={path}: {allowed}")
        try:
            for result in self.results.values():
                for table in result["tables"]:
                    list(map(quartiles, table["figures"].values()))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"--against={path}: has figures that are not numbers") from error

    def warning(self, facts: dict[str, Any]) -> str:
        """Return a line with the differences from this environment; empty if there are none."""
        found = dict.fromkeys(
            difference
            for result in self.results.values()
            for difference in differences(result["environment"], facts)
        )
        return f"warning: {self.path} differs in {'; '.join(found)}" if found else ""

    def compare(self, part: str, table: Table) -> str:
        """Return the comparison of a table as Markdown."""
        for old in self.results[part]["tables"]:
            if (old["title"], old["unit"]) == (table["title"], table["unit"]):
                break
        else:
            return f"{self.path} has no table `{table['title']}`."
        rows = compare_rows(old["figures"], table["figures"], table["unit"])
        lines = [f"### {table['title']}, compared with {self.path}", ""]
        for name, more, fewer in (("Only new", table, old), (f"Only in {self.path}", old, table)):
            if only := [figure for figure in more["figures"] if figure not in fewer["figures"]]:
                lines += [f"{name}: {', '.join(only)}.", ""]
        return "\n".join(lines + (report.markdown_table(rows) if rows else []))

    def left_out(self, part: str, result: Result) -> str:
        """Return which earlier tables of a part have no counterpart now; empty if all have one."""
        titles = [table["title"] for table in result["tables"]]
        left = [t["title"] for t in self.results[part]["tables"] if t["title"] not in titles]
        return f"Only in {self.path}: {'; '.join(left)}." if left else ""


def compare_rows(old: dict[str, Figure], new: dict[str, Figure], unit: str) -> list[Row]:
    """Return a table row for each figure in both results: medians, their ratio, and its spread.

    The spread is from the new lower quartile over the old upper one to the new upper quartile over
    the old lower one. If it contains 1, the difference is within the spread of the rounds.
    """
    rows = []
    for name in (name for name in new if name in old):
        old_low, old_median, old_high = quartiles(old[name])
        low, median, high = quartiles(new[name])
        # An operation that a profile did not see takes no time.
        ratios = (median / old_median, low / old_high, high / old_low) if old_low else ()
        texts = [f"{ratio:.3f}" for ratio in ratios]
        rows.append(
            {
                "figure": name,
                f"old, {unit}": f"{old_median:.4g}",
                f"new, {unit}": f"{median:.4g}",
                "new / old": texts[0] if texts else "",
                "spread": " to ".join(texts[1:]),
            }
        )
    return rows


def quartiles(figure: Figure) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of a figure."""
    if isinstance(figure, dict):
        return float(figure["q1"]), float(figure["median"]), float(figure["q3"])
    if len(figure) == 1:
        return (float(figure[0]),) * 3
    low, median, high = statistics.quantiles(figure, n=4, method="inclusive")
    return low, median, high


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the differences between two environments: machine, torch version, threads."""
    found = [
        ("machine", old["device_name"], new["device_name"]),
        ("torch", old["versions"].get("torch"), new["versions"].get("torch")),
        ("threads", old["threads"], new["threads"]),
    ]
    # Earlier files do not have them.
    if old["instruction_sets"] is not None:
        then, now = (", ".join(facts["instruction_sets"]) or "none" for facts in (old, new))
        found.insert(1, ("instruction sets", then, now))
    return [f"{name} ({then}, now {now})" for name, then, now in found if then != now]
