"""No link of a page is dead, be it to a file or to a heading, and every page can be reached."""

import pytest
import yaml
from documents import DOCS, PAGES, ROOT, anchors, links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        assert page.parent != ROOT / "docs" or target.parent == page.parent, (
            f"{link} leaves docs/, so the site lacks it"
        )
        assert not anchor or anchor in anchors(target.read_text()), f"{link}: no such heading"


def test_dead_links_are_noticed():
    assert links("[a](b.md#c), `[d](e)`\n```\n[f](g)\n```\n![h](i.png)") == ["b.md#c", "i.png"]
    assert anchors("# One line, and `code`\n## Two\n```\n# no heading\n```") == {"one-line-and-code", "two"}


def test_the_navigation_names_every_page():
    groups = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    sections = [pages for group in groups if isinstance(group, dict) for pages in group.values()]
    named = [group for group in groups if isinstance(group, str)] + [page for pages in sections for page in pages]
    assert sorted(named) == [page.name for page in DOCS]
