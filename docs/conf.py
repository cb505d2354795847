"""Build these pages, the README, the results and an API reference as one site with Sphinx.

`make docs` runs it. The pages stay plain Markdown for GitHub. This file copies the README and all
that its links lead to into docs/_build/source, in the same folders, so that every link works there
as it is. A broken link stays broken and fails the build.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

PROJECT = Path(__file__).resolve().parent.parent
SOURCE = PROJECT / "docs" / "_build" / "source"
LINK = re.compile(r"\]\(([^()\s#]+)[^()\s]*\)")
API = ("lars", "models", "schedulers")

sys.path.insert(0, str(PROJECT))
project = "lars-bench"
author = "the authors of lars-bench"
root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# In docstrings, a name between backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
html_copy_source = False


def copy_pages() -> None:
    """Copy the README and the files that links lead to, and add the list of pages to the README."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(PROJECT / "docs" / "api", SOURCE / "docs" / "api")
    # The list of pages begins as docs/README.md lists them.
    found, pending = [], [PROJECT / "docs" / "README.md", PROJECT / "README.md"]
    while pending:
        path = pending.pop(0)
        if path in found or not path.is_file() or not path.is_relative_to(PROJECT):
            continue
        found.append(path)
        copy = SOURCE / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if path.suffix == ".md":
            links = LINK.findall(path.read_text(encoding="utf-8"))
            pending += [(path.parent / link).resolve() for link in links]
    pages = [str(path.relative_to(PROJECT)) for path in found if path.suffix == ".md"]
    pages.remove("README.md")
    lists = {
        "Guides": [page for page in pages if page.startswith("docs/")],
        "API reference": [f"docs/api/{package}.rst" for package in API],
        "Results": sorted(page for page in pages if page.startswith("results/")),
        "Project": [page for page in pages if "/" not in page],
    }
    with open(SOURCE / "README.md", "a", encoding="utf-8") as readme:
        for caption, listed in lists.items():
            entries = "\n".join(listed)
            readme.write(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n")


def show_math(translator: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers show without a script or a network."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def copy_front_page(app: Any, error: Exception | None) -> None:
    """Make the README the page that a server shows for the site's address."""
    if error is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    """Connect this file's functions to Sphinx."""
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))
    app.connect("build-finished", copy_front_page)


copy_pages()
