"""Every link leads to a page, a picture or an anchor that is there, and every page is in the site's navigation."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docs.pages import DOCS, FRONT, ROOT, anchors, links, pages

LINKS: Final = [
    pytest.param(page, path, name, id=f"{page.relative_to(ROOT)}:{path}#{name}")
    for page in pages()
    for path, name in sorted(set(links(page.read_text(encoding="utf-8"))))
]


@pytest.mark.parametrize(("page", "path", "name"), LINKS)
def test_a_link_leads_somewhere(page: Path, path: str, name: str) -> None:
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    if page not in FRONT:
        assert target.is_relative_to(DOCS)  # what isn't below docs/ isn't built
    if name:
        assert name in anchors(target.read_text(encoding="utf-8"))


def test_there_are_links() -> None:
    assert len(LINKS) > 50


def test_every_page_is_in_the_navigation_once() -> None:
    with (ROOT / "zensical.toml").open("rb") as file:
        navigation = tomllib.load(file)["project"]["nav"]
    assert sorted(_targets(navigation)) == sorted(str(each.relative_to(DOCS)) for each in DOCS.rglob("*.md"))


def _targets(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [target for part in parts for target in _targets(part)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_list_or_a_table_stands_apart_from_the_text_before_it(page: Path) -> None:
    """A forge shows it all the same; the builder of the pages takes it for text."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = text.split("\n")
    for before, line in pairwise(lines):
        begins = re.match(r"(?:[-*] |[0-9]+\. |\| )", line)
        inside = re.match(r"(?:\s*[-*] |\s*[0-9]+\. |\||\s*$| )", before)
        assert not begins or inside, f"{before}\n{line}"
