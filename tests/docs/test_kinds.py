"""What each kind of page keeps to: a short glossary in order, decisions of one page with their price."""

from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import DOCS, headings, page, rows

DECISIONS: Final = sorted((DOCS / "explanation" / "decisions").glob("[0-9]*.md"))
MAX_TERMS: Final = 45
MAX_LINES: Final = 50


def test_the_glossary_is_short_and_in_order() -> None:
    terms = [row[0] for row in rows(page("reference/glossary.md"))]
    assert 20 < len(terms) <= MAX_TERMS
    assert terms == sorted(terms)
    assert all(row[1] for row in rows(page("reference/glossary.md")))


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_one_page_with_its_price(decision: Path) -> None:
    text = decision.read_text(encoding="utf-8")
    title, *parts = headings(text)
    assert title.startswith(f"{int(decision.stem[:4])}. ")
    assert parts == ["Context", "Decision", "Price", "Where"]
    assert "\nStatus: " in text
    assert len(text.splitlines()) <= MAX_LINES


def test_every_decision_is_listed_once_in_order() -> None:
    listed = [row[0] for row in rows(page("explanation/decisions/index.md"))]
    assert listed == [str(int(decision.stem[:4])) for decision in DECISIONS]
    text = page("explanation/decisions/index.md")
    assert all(f"({decision.name})" in text for decision in DECISIONS)
