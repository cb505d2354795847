"""The results of benchmarks: a JSON file for each kind of machine, and a page made from them.

A part that is still being measured, or was stopped, is stored under `<part> (partial)`, so that an
earlier result of the whole part stays until it is replaced. Does not import torch, so that
mistakes are found at once.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from engine.errors import UserError
from engine.system.files import plain, write_text_atomically

Row = dict[str, Any]
# The value of each round, or its quartiles as `summarise` returns them.
Figure = list[float] | dict[str, float]
PAGE = "README.md"
# The names that parts have in earlier files.
EARLIER_NAMES = {"optimizers": "lars"}
TITLE = "# Speed, by kind of machine"
INTRODUCTION = (
    "Made by `python -m scripts.bench` from the JSON files in this folder, newest first. "
    "Candidates and references take turns in the same run. Compare figures of the same machine, "
    "versions and load only."
)


class Table(TypedDict):
    """A table and the figures that it is made from.

    `figures` has each candidate's values in `unit`, where lower is faster.
    """

    title: str
    notes: list[str]
    unit: str
    figures: dict[str, Figure]
    rows: list[Row]


class Result(TypedDict):
    """A part's result. `rounds` is the most rounds of a candidate; `extra` has other figures."""

    environment: dict[str, Any]
    complete: bool
    rounds: int
    notes: list[str]
    extra: dict[str, Any]
    tables: list[Table]


def machine(facts: dict[str, Any]) -> str:
    """Return the kind of machine, from an environment: CPU, threads, instruction sets; or GPU."""
    if facts["device"] == "cuda":
        return str(facts["device_name"])
    sets = facts["instruction_sets"]
    known = "instruction sets not recorded" if sets is None else ", ".join(sets)
    return ", ".join(filter(None, [facts["device_name"], f"{facts['threads']} threads", known]))


def path_of(facts: dict[str, Any], folder: Path) -> Path:
    """Return the path of the results file of an environment's kind of machine."""
    name = re.sub(r"\((r|tm|c)\)", "", f"{facts['device']} {machine(facts)}".lower())
    return folder / f"{'-'.join(re.findall('[a-z0-9]+', name))}.json"


def read(path: Path, option: str = "") -> dict[str, Result]:
    """Read a results file; raise UserError if it is not one.

    Args:
        path: the file.
        option: text in front of the path in an error, such as `--against=`.

    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{option}{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{option}{path}: is not JSON") from error
    if not isinstance(found, dict) or not all(map(_is_result, found.values())):
        allowed = "must be a results file of this version of scripts.bench"
        raise UserError(f"{option}{path}: {allowed}")
    return found


def read_folder(folder: Path) -> dict[Path, dict[str, Result]]:
    """Read the results files of a folder, by path; raise UserError if one is invalid.

    Raises UserError also if the folder has a README.md that this program did not write.
    """
    page = folder / PAGE
    if page.exists() and not page.read_text("utf-8", "replace").startswith(TITLE):
        raise UserError(f"{page}: is not a page of scripts.bench; choose another --folder")
    return {path: read(path) for path in sorted(folder.glob("*.json"))}


def write(part: str, result: Result, folder: Path) -> Path:
    """Write a part's result and the folder's page; return the path of the results file.

    Other results stay, except a partial one of the part if the new one is complete.

    Args:
        part: name of the part.
        result: its result.
        folder: the directory, which is created if needed.

    """
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(result["environment"], folder)
    results = read(path) if path.exists() else {}
    partial = partial_name(part)
    results.pop(partial, None)
    results[part if result["complete"] else partial] = result
    text = json.dumps(plain(results), indent=1, allow_nan=False)
    write_text_atomically(path, f"{text}\n")
    write_text_atomically(folder / PAGE, page(read_folder(folder)))
    return path


def partial_name(part: str) -> str:
    """Return the name under which a part's result is stored until it is complete."""
    return f"{part} (partial)"


def page(files: dict[Path, dict[str, Result]]) -> str:
    """Return the page of a folder: a section for each kind of machine, newest first."""
    sections: dict[str, list[tuple[str, Path, str, Result]]] = {}
    for path, results in files.items():
        for name, result in results.items():
            facts = result["environment"]
            found = sections.setdefault(machine(facts), [])
            found.append((facts["date"], path, name, result))
    for found in sections.values():
        found.sort(key=lambda item: item[0], reverse=True)
    lines = [TITLE, "", INTRODUCTION]
    for title in sorted(sections, key=lambda title: sections[title][0][0], reverse=True):
        found = sections[title]
        names = dict.fromkeys(path.name for _, path, _, _ in found)
        lines += ["", f"## {title}", "", f"Figures: {_links(names)}."]
        for _, _, name, result in found:
            lines += ["", heading(name, result, "###")]
            lines += [f"\n{table_text(table, '####')}" for table in result["tables"]]
    return "\n".join(lines) + "\n"


def heading(part: str, result: Result, level: str = "##") -> str:
    """Return the text above a part's tables: its name, the environment, and the notes."""
    facts = result["environment"]
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in facts["versions"].items())
    state = [] if result["complete"] else ["Partial: only the tables below are measured."]
    lines = [
        f"{machine(facts)}; {versions}; commit {facts['commit']}; {facts['date']}; load average "
        f"{facts['load_average']:.1f}.",
        *state,
        *result["notes"],
    ]
    return f"{level} {part}\n\n" + "\n".join(lines)


def table_text(table: Table, level: str = "###") -> str:
    """Return a table as Markdown, with its title and notes."""
    notes = [*table["notes"], ""] if table["notes"] else []
    return "\n".join([f"{level} {table['title']}", "", *notes, *markdown_table(table["rows"])])


def markdown_table(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    columns = list(rows[0])
    lines = [_row(columns), _row(["---"] * len(columns))]
    return lines + [_row([_text(row[column]) for column in columns]) for row in rows]


def _is_result(found: Any) -> bool:
    if not isinstance(found, dict) or set(found) != set(Result.__annotations__):
        return False
    facts, tables = found["environment"], found["tables"]
    named = {"date", "device", "device_name", "instruction_sets", "threads", "versions", "commit",
             "load_average"}  # fmt: skip
    return (
        isinstance(facts, dict)
        and named <= set(facts)
        and isinstance(tables, list)
        and all(isinstance(t, dict) and set(t) == set(Table.__annotations__) for t in tables)
    )


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}]({name})" for name in names)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
