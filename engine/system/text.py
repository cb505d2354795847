"""Safe display of names that others chose, such as file and class names.

A name on Linux is bytes. It may contain newlines, terminal escape sequences, Markdown or HTML. Here
it becomes one line of plain text.
"""

import re

from engine.errors import readable

# Emoji and some scripts join characters with these. They are not printable by themselves.
JOINERS = "\u200c\u200d"


def shown(text: str) -> str:
    r"""Return a name as one line for a terminal, with escapes for unprintable characters (`\x1b`).

    A name that is empty, or has leading, trailing or repeated spaces, is put in quotes.
    """
    text = "".join(c if c.isprintable() or c in JOINERS else ascii(c)[1:-1] for c in readable(text))
    return text if text == " ".join(text.split()) and text else f"'{text}'"


def cell(text: str) -> str:
    """Return a name escaped for a cell of a Markdown table.

    Each special character of Markdown or HTML becomes a numeric entity, which every renderer shows
    as text. Which characters a backslash escapes differs between Markdown dialects.
    """
    return re.sub(r"_|[^\w\s.,;'/-]", _entity, shown(text))


def _entity(match: re.Match[str]) -> str:
    # Characters outside of ASCII, such as emoji, are never special.
    return f"&#{ord(match[0])};" if match[0].isascii() else match[0]
