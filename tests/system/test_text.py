"""Names that others chose, shown on a line, in a table and in a file."""

import html
import json

import pytest
import yaml
from tensorboard.plugin_util import markdown_to_safe_html

from engine.errors import key_error, readable
from engine.system.text import cell, shown

# Each name, and how it is shown on a line.
NAMES = {
    "cat": "cat", "snow leopard": "snow leopard", "O'Brien": "O'Brien", "猫": "猫", "🐈": "🐈",
    "👨\u200d👩\u200d👧": "👨\u200d👩\u200d👧", "e\u0301": "e\u0301", "a|b": "a|b", "`x`": "`x`",
    "<b>x</b>": "<b>x</b>", "&amp;": "&amp;", "a\nb": r"a\nb", "a\r| b": r"a\r| b", "\t": r"\t",
    "\x1b[2J": r"\x1b[2J", "\u202egnp": r"\u202egnp", "a\u2028b": r"a\u2028b", "a\x00b": r"a\x00b",
    " lead": "' lead'", "trail ": "'trail '", "a  b": "'a  b'", "": "''", " ": "' '",
    "caf\udce9": r"caf\xe9", "\udcff\udcfe": r"\xff\xfe", "\ud800": r"\ud800", "a\\b": r"a\b",
    "**x** _y_ ~z~": "**x** _y_ ~z~", "[a](javascript:b)": "[a](javascript:b)", "#1": "#1",
    "![x](y)": "![x](y)", "http://x.y": "http://x.y", "$x$": "$x$", "{x}": "{x}", "---": "---",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_on_one_line(name):
    assert shown(name) == NAMES[name]
    assert len(shown(name).splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_plain_text_in_a_cell_of_a_markdown_table(name):
    # TensorBoard's text plugin renders a card with this function.
    table = f"| true | loss |\n|---|---|\n| {cell(name)} | 1.00 |\n| cat | 2.00 |"
    page = markdown_to_safe_html(table)
    cells = [part.split("</td>")[0] for part in page.split("<td>")[1:]]
    assert [html.unescape(text) for text in cells] == [NAMES[name], "1.00", "cat", "2.00"]
    # On GitHub a cell ends at any pipe, even inside code.
    assert "|" not in cell(name) and not set(cell(name)) & set("`<>[]*_~\\")


@pytest.mark.parametrize("name", NAMES)
def test_readable_text_can_be_written_anywhere(name):
    text = readable(name)
    assert json.loads(json.dumps(text, ensure_ascii=False).encode()) == text
    assert "\ud800" not in yaml.safe_dump(text, allow_unicode=True)
    assert (text == name) == all(not "\ud800" <= c <= "\udfff" for c in name)


def test_an_error_about_bytes_that_are_not_utf8_can_be_printed():
    error = key_error("data.root", "caf\udce9", "holds \udcff")
    assert str(error) == r"data.root=caf\xe9: holds \xff"
