"""Fill the figures of Markdown pages from published results: `python -m scripts.figures`.

The pages are README.md, results/README.md and docs/*.md. A figure stands between two marks. The
first one says where it comes from:

    <!-- figure: ladder-resnet8 optimizer=lars batch=4096 -->64.4<!-- /figure -->

Its words are a group (results/GROUP/runs.jsonl), choices that name one row of it by the keys of
train.py (optimizer, model and data stand for their names), and these:

    show=      accuracy, deviation, both (mean ± deviation), least, most, training (accuracy),
               steps or peak_lr                                              [accuracy]
    minus=     another row's figure is subtracted: 'GROUP key=value …'; the words of the first row
               hold for it, too
    setting=   common: the row without a setting, or with what most rows share
    seed=      the run of one seed in place of the mean
    digits=    decimals                                                      [1]

A figure of scripts.bench is a cell of a table of results/bench:

    <!-- figure: bench=cpu part=lars table='ResNet-50, groups' row=timm column='median, ms' -->

A table has a line for each column and row. A cell is the figure with the words of both, or empty if
no run fits:

    <!-- table
    corner Batch
    column SGD = ladder-resnet8 optimizer=sgd
    row 128 = batch=128
    -->
    <!-- /table -->
"""

import contextlib
import functools
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.cli import exit_status, read_arguments
from engine.config.schema import default_choices
from engine.errors import UserError, closest
from engine.report.rows import Row, make_rows
from engine.report.titles import COMMON
from engine.runs.records import RESULTS, Record, published_runs
from engine.system.files import write_text_atomically

FIGURE = re.compile(r"(<!-- figure: ([^>]+?) -->)(.*?)(<!-- /figure -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table\n([^>]+?)\n-->\n)(.*?)(<!-- /table -->)", re.DOTALL)
SHOWN: dict[str, Callable[[Row], float | None]] = {
    "accuracy": Row.accuracy,
    "deviation": Row.spread,
    "least": lambda row: min(row.accuracies(), default=None),
    "most": lambda row: max(row.accuracies(), default=None),
    "training": Row.train_accuracy,
    "steps": lambda row: row.first("steps"),
    "peak_lr": lambda row: row.first("peak_lr"),
}


@dataclass(frozen=True)
class Arguments:
    """No arguments."""


def pages() -> list[Path]:
    """Return the pages that may have figures, relative to the checkout."""
    return [Path("README.md"), RESULTS / "README.md", *sorted(Path("docs").glob("*.md"))]


def fill(text: str) -> str:
    """Return a page's text with every figure and table filled in.

    Raises UserError if a mark names something that does not exist, or more than one row.
    """
    text = TABLE.sub(lambda mark: mark[1] + table_of(mark[2]) + mark[4], text)
    return FIGURE.sub(lambda mark: mark[1] + _required(mark[2]) + mark[4], text)


def table_of(description: str) -> str:
    """Return the Markdown table that the lines of a mark describe."""
    entries: dict[str, list[tuple[str, str]]] = {"corner": [], "column": [], "row": []}
    for line in description.splitlines():
        kind, _, rest = line.strip().partition(" ")
        title, _, words = rest.partition(" = ")
        if kind not in entries:
            raise UserError(f"{line.strip()}: must begin with corner, column or row")
        entries[kind].append((title, words))
    columns = entries["column"]
    lines = [[*(title for title, _ in entries["corner"] + columns)], ["---"] * (len(columns) + 1)]
    for title, words in entries["row"]:
        lines.append([title, *(figure(f"{column} {words}") or "" for _, column in columns)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def figure(words: str) -> str | None:
    """Return the figure that a mark's words name; None if no run fits.

    Raises UserError if the words are wrong or fit several rows.
    """
    group, options = _read(words)
    if "bench" in options:
        return _bench_figure(words, options)
    shown, digits = options.pop("show", "accuracy"), int(options.pop("digits", "1"))
    minus = options.pop("minus", None)
    if shown not in {*SHOWN, "both"}:
        raise UserError(f"{words}: show={shown}: must be one of {', '.join([*SHOWN, 'both'])}")
    row = find_row(words, group, options)
    if row is None:
        return None
    if shown == "both":
        mean, deviation = row.accuracy(), row.spread()
        text = None if mean is None else f"{mean:.{digits}f}"
        return text if deviation is None else f"{text} ± {deviation:.{digits}f}"
    value = SHOWN[shown](row)
    if value is None:
        return None
    if minus is not None:
        other_group, others = _read(minus)
        other = find_row(words, other_group or group, options | others)
        less = SHOWN[shown](other) if other else None
        if less is None:
            raise UserError(f"{words}: minus={minus!r}: no published run fits")
        value -= less
    return f"{value:,.{0 if shown == 'steps' else digits}f}"


def find_row(words: str, group: str, options: dict[str, str]) -> Row | None:
    """Return the one row of a group that has these choices; None if there is none."""
    seed, rows = options.get("seed"), _rows(group)
    known = {"setting", "seed", *(_full(key, row) for row in rows for key in _choices(row))}
    for key in options:
        if not any(_full(key, row) in known for row in rows):
            raise UserError(f"{words}: {key}: unknown key; {closest(key, known)}")
    fitting = [row for row in rows if _fits(row, options)]
    if len(fitting) > 1:
        titles = "; ".join(f"{row.optimizer_title} {row.title}" for row in fitting)
        raise UserError(f"{words}: must name one row, not {len(fitting)}: {titles}")
    if not fitting or seed is None:
        return fitting[0] if fitting else None
    own = [r for r in fitting[0].records if r.choices["seed"] == int(seed)]
    return replace(fitting[0], records=own) if own else None


@functools.cache
def _rows(group: str) -> list[Row]:
    # Runs on this disk are left out: a published page shows published runs.
    lines = published_runs(group)
    if not lines:
        raise UserError(f"{group}: must be a group with runs in results/{group}/runs.jsonl")
    return make_rows([Record(line, line["history"]) for line in lines.values()])


def _choices(row: Row) -> dict[str, Any]:
    """Return a row's choices; a key that its version did not have has its default."""
    return {**default_choices(row.choices), **row.choices}


def _full(key: str, row: Row) -> str:
    return f"{key}.name" if f"{key}.name" in row.choices else key


def _fits(row: Row, options: dict[str, str]) -> bool:
    choices = _choices(row)
    for key, text in options.items():
        if key == "setting":
            if row.setting not in ("", COMMON):
                return False
        elif key != "seed":
            key, value = _full(key, row), text
            with contextlib.suppress(ValueError):
                value = json.loads(text)
            if key not in choices or choices[key] != value:
                return False
    return True


def _read(words: str) -> tuple[str, dict[str, str]]:
    """Return the group and the options that a mark's words name."""
    try:
        parts = [word.partition("=") for word in shlex.split(words)]
    except ValueError as error:
        raise UserError(f"{words}: a quote is not closed; close it") from error
    groups = [word for word, equals, _ in parts if not equals]
    options = {key: value for key, equals, value in parts if equals}
    if len(groups) > 1 or len(options) + len(groups) != len(parts):
        raise UserError(f"{words}: must be one group, and key=value once for each key")
    for key in ("digits", "seed"):
        if not options.get(key, "0").isdecimal():
            raise UserError(f"{words}: {key}={options[key]}: must be a whole number")
    if options.get("setting", "common") != "common":
        raise UserError(f"{words}: setting={options['setting']}: must be common")
    return "".join(groups), options


def _required(words: str) -> str:
    value = figure(words)
    if value is None:
        raise UserError(f"{words}: no published run fits; see python -m scripts.figures --help")
    return value


def _bench_figure(words: str, options: dict[str, str]) -> str:
    path = RESULTS / "bench" / f"{options['bench']}.json"
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))[options["part"]]["tables"]
        (table,) = (table for table in tables if table["title"] == options["table"])
        column = options["column"]
        cells: list[Any] = [r[column] for r in table["rows"] if options["row"] in r.values()]
        (value,) = cells
        return f"{value:,.{int(options.get('digits', '1'))}f}"
    except (OSError, KeyError, ValueError) as error:
        allowed = "must name one number by bench=FILE part= table= row= column="
        raise UserError(f"{words}: {allowed} ({error})") from error


def main() -> int:
    """Write the pages whose figures changed; return the exit status."""
    read_arguments(sys.argv[1:], Arguments, __doc__)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (made := fill(text)) != text:
            write_text_atomically(page, made)
            print(f"written   {page}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
