"""Write the meanings of all keys to docs/options.md and conf/: `python -m scripts.options`.

Each key is declared with its meaning in engine/config. Run this after you change one. It rewrites
the keys' comments in conf/ (except conf/experiment) and the tables of docs/options.md, and prints
the files that changed.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.cli import exit_status, read_arguments
from engine.config.compose import CONF
from engine.config.options import conf_files, list_options, markdown_table
from engine.config.schema import Config, EvaluationConfig
from engine.system.files import write_text_atomically

PAGE = CONF.parent / "docs" / "options.md"
TITLE = """\
# Every key

`python train.py key=value …` sets a key; `python train.py group=member` chooses an optimizer, a
schedule, a model or a data set, each with separate keys. A name in brackets means that only that
member has the key. Defaults are the values in conf/. `python -m scripts.options` writes this page
from the meanings in engine/config.
"""


@dataclass(frozen=True)
class Arguments:
    """No arguments."""


def render() -> dict[Path, str]:
    """Return the new text of each file that contains meanings, by path."""
    training, evaluation = list_options(Config, "train"), list_options(EvaluationConfig, "val")
    parts = [
        TITLE, "## train.py\n", markdown_table(training) + "\n", "## val.py\n",
        markdown_table(evaluation),
    ]  # fmt: skip
    files = {PAGE: "\n".join(parts) + "\n"}
    for path in conf_files():
        options = evaluation if path.stem == "val" else training
        group = "" if path.parent == CONF else f"{path.relative_to(CONF).parts[0]}."
        # A key that several members have may mean something else in each.
        meanings = {option.key: option.meaning for option in options} | {
            option.key: option.meaning for option in options if path.stem in option.defaults
        }
        files[path] = commented(path.read_text(encoding="utf-8"), meanings, group)
    return files


def commented(text: str, meanings: Mapping[str, str], group: str) -> str:
    """Return the text of a YAML file with each key's meaning as a comment after its value.

    Args:
        text: the YAML file's text.
        meanings: meanings by dotted key.
        group: prefix of the file's keys in `meanings`, such as `optimizer.`.

    >>> print(commented("batch: 128  # old\\nclip:\\n  norm: null\\n",
    ...                 {"batch": "examples", "clip.norm": "bound"}, ""), end="")
    batch: 128  # examples
    clip:
      norm: null  # bound
    """
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        match = re.fullmatch(r"( *)(\w+):( .*?)?(  # .*)?", line)
        if match is None:
            lines.append(line)
            continue
        indent, name, value = match[1], match[2], match[3] or ""
        section = section if indent else f"{name}."
        key = f"{section}{name}" if indent else name
        meaning = meanings.get(group + key)
        if meaning is None:
            lines.append(line)
            continue
        lines.append(f"{indent}{name}:{value}  # {meaning}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the files that changed; return the exit status."""
    read_arguments(sys.argv[1:], Arguments, __doc__)
    for path, text in render().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text_atomically(path, text)
            print(f"written   {path.relative_to(CONF.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
