"""docs/explanation/guarantees.md names only tests, files, settings and metrics that there are."""

import re

import pytest

from tests.docs.pages import ROOT, page

TEXT = page("explanation/guarantees.md")
CITED = sorted(set(re.findall(r"`((?:tests|db|deploy|docs|workers|metering)/[\w/.-]+(?:::\w+)?)`", TEXT)))
ROWS = [
    row
    for row in re.findall(r"^\| (?!---|promise).*\|$", TEXT.split("## What is not promised")[0], re.MULTILINE)
    if row.count("|") == 4
]


@pytest.mark.parametrize("cited", CITED)
def test_what_is_cited_is_there(cited: str) -> None:
    path, _, name = cited.partition("::")
    assert (ROOT / path).exists()
    if name:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_every_promise_has_a_mechanism_and_a_test() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        _, promise, mechanism, tests, _ = (cell.strip() for cell in row.split("|"))
        assert promise
        assert mechanism
        assert "`tests/" in tests, promise
