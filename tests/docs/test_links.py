"""The links of the project's pages lead somewhere."""

import pytest

from tests.helpers.pages import PAGES, PROJECT, anchors, links, name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_resolve(page):
    lost = []
    for link in links(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if target.is_dir():
            target /= "README.md"
        # A page that only this machine has is no page.
        inside = target.resolve().is_relative_to(PROJECT.resolve())
        found = inside and "runs" not in target.parts and target.exists()
        if not found or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            lost.append(link)
    assert not lost, f"{name(page)}: these links lead nowhere: {lost}"


def test_links_and_anchors_are_found():
    text = (
        "# A `b`, c!\n\n[x\ny](z.md#a) ![p](q.png) `[no](no.md)`\n\n    [no](no.md)\n\n## A b c\n"
    )
    assert links(text) == ["z.md#a", "q.png"]
    assert anchors(text) == {"a-b-c", "a-b-c-1"}


def test_the_pages_have_links():
    assert sum(len(links(page.read_text(encoding="utf-8"))) for page in PAGES) > 60


def test_the_index_names_every_page():
    docs = PROJECT / "docs"
    listed = links((docs / "README.md").read_text(encoding="utf-8"))
    assert {path.name for path in docs.glob("*.md")} - {"README.md"} <= set(listed)
