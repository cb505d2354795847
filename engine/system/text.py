"""Text that others chose, file and class names above all, made fit to be shown.

A name on Linux is bytes, and may hold line ends, escape sequences of terminals, or the marks of
Markdown and HTML. Shown, it is one line of plain text.
"""

import re

from engine.errors import readable

# What emoji and some scripts join letters with prints nothing of its own.
JOINERS = "\u200c\u200d"


def shown(text: str) -> str:
    r"""Return a name as one line for a terminal: what cannot be printed becomes `\n`, `\x1b`.

    A name that blanks begin, end or widen is put in quotes, as they would not be seen.
    """
    text = "".join(c if c.isprintable() or c in JOINERS else ascii(c)[1:-1] for c in readable(text))
    return text if text == " ".join(text.split()) and text else f"'{text}'"


def cell(text: str) -> str:
    """Return a name for a cell of a Markdown table, where it is text and no more.

    Each mark of Markdown or HTML becomes a numeric entity, which no reader of either takes for a
    mark; backslashes escape another set of marks in each dialect.
    """
    return re.sub(r"_|[^\w\s.,;'/-]", _entity, shown(text))


def _entity(match: re.Match[str]) -> str:
    # Letters of other scripts and emoji are no marks.
    return f"&#{ord(match[0])};" if match[0].isascii() else match[0]
