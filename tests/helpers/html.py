"""The content of report.html as a browser reads it."""

import json

from engine.report.html_data import page_data
from engine.report.rows import make_rows, records_of

# Text that would run a script, change a font, be a formula, or be replaced by plotly.
HOSTILE = "</script><img src=x onerror=alert(1)><b>$x^2$ %{x}"


def data_of(*groups, **options):
    """Return the content of the page of these groups, or of group `g`."""
    rows = {group: make_rows(records_of(group)) for group in groups or ("g",)}
    return json.loads(json.dumps(page_data(rows, **options)))
