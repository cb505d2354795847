"""Write groups as one self-contained HTML page: results/<group>/report.html.

The page needs no network. It holds its content as JSON (html_data.py), plotly's script, report.css
and report.js. Every text that a user typed is in the JSON. report.js shows it as text, never as
HTML.
"""

import html
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from engine.errors import UserError
from engine.report.html_data import page_data
from engine.report.rows import make_rows, records_of
from engine.runs.records import RESULTS, cannot_write
from engine.system.files import plain, write_text_atomically

NO_PLOTLY = "report.html needs plotly; install it with: pip install 'plotly>=6'"

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<div id="answers"></div>
<p class="filter"><label>Show runs with <input id="filter" type="search" autocomplete="off"
placeholder="lars batch=4096"></label> <span id="count" class="note"></span></p>
<h2>Results by setting</h2>
<p class="note">A click on a heading sorts. The filter hides runs, and rows of which no run is left.
Figures of a row are those of all its runs.</p>
<div class="scroll"><table id="rows"></table></div>
<div id="plots"></div>
<h2>Runs</h2>
<p class="note">A click on a run shows its command and its choices.</p>
<div class="scroll"><table id="runs"></table></div>
<h2>Two runs side by side</h2>
<p id="hint">Mark two runs in the column Compare.</p>
<div id="compared" hidden>
<p><label><input id="differing" type="checkbox"> only keys that differ</label></p>
<div class="scroll"><table>
<thead><tr><th></th><th>Key</th><th id="first"></th><th id="second"></th></tr></thead>
<tbody id="comparison"></tbody></table></div>
</div>
</main>
<script type="application/json" id="data">$data</script>
<script>
$script</script>
<script>$plotly</script>
</body>
</html>
""")


def has_plotly() -> bool:
    """Return True if plotly is installed."""
    return importlib.util.find_spec("plotly") is not None


def write_html(groups: Sequence[str], target: float | None = None) -> Path:
    """Write the page of one or more groups; return its path.

    Raises UserError if plotly is missing, a group has no runs, or the file cannot be written.

    Args:
        groups: names of the groups.
        target: accuracy in % to which steps and times are measured; None is that of
            critical.json, else that of `target_of`.

    """
    if not has_plotly():
        raise UserError(NO_PLOTLY)
    data = page_data({group: make_rows(records_of(group)) for group in groups}, target)
    path = RESULTS / groups[0] / "report.html"
    if len(groups) > 1:
        path = RESULTS / f"{'+'.join(groups)}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, html_page(", ".join(groups), data))
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def html_page(title: str, data: Mapping[str, Any]) -> str:
    """Return the page as HTML; needs plotly."""
    from plotly.offline import get_plotlyjs

    here = Path(__file__).parent
    # A script ends at the first `</script`, even inside a string of JSON.
    text = json.dumps(plain(data), allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    return PAGE.substitute(
        title=html.escape(title),
        style=(here / "report.css").read_text(encoding="utf-8"),
        data=text,
        plotly=get_plotlyjs(),
        script=(here / "report.js").read_text(encoding="utf-8"),
    )
