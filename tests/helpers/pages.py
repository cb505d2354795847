"""Read the project's Markdown pages: code blocks, commands, headings and links."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import PROJECT

# Pages that show commands, and those whose links are checked as well.
SHOWING = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
PAGES = [
    *SHOWING, PROJECT / "results" / "README.md", PROJECT / "CONTRIBUTING.md",
    PROJECT / "CHANGELOG.md",
]  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Indented by four spaces, after an empty line.
INDENTED = re.compile(r"(?:\A|\n\n)((?:    .*(?:\n|\Z)(?:\n(?=    ))*)+)")
# Lines of a code block that show output or a list, or set a shell variable or a Slurm option.
SHOWN = re.compile(r"(\S+ {2,}\S| {4,}|epoch \d|\||#SBATCH |\w+=\$\()")


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and content of each code block, fenced or indented."""
    for language, content in FENCE.findall(text):
        yield language, content
    for content in INDENTED.findall(FENCE.sub("", text)):
        yield "", "".join(line[4:] or "\n" for line in content.splitlines(keepends=True))


def commands(text: str) -> Iterator[str]:
    """Yield each command in the shell blocks of a page, without its comment, on one line."""
    for language, content in code_blocks(text):
        if language in ("python", "text"):
            continue
        for line in re.sub(r" *\\\n *", " ", content).splitlines():
            command = re.sub(r"(^|\s+)#(?!SBATCH).*", "", line)
            if command and not SHOWN.match(command):
                yield command


def prose(text: str) -> str:
    """Return a page without code blocks, code in lines, and comments."""
    text = INDENTED.sub("\n\n", FENCE.sub("", text))
    return re.sub(r"`[^`\n]*(\n[^`\n]+)?`|<!--.*?-->", "", text, flags=re.DOTALL)


def links(text: str) -> list[str]:
    """Return the targets of a page's links and images."""
    return re.findall(r"\]\(([^()\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        repeats = [slug, *(f"{slug}-{count}" for count in range(1, 99))]
        found.add(next(one for one in repeats if one not in found))
    return found
