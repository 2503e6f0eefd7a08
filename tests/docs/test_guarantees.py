"""docs/explanation/guarantees.md: each promise has what keeps it, and a test."""

import re

from tests.docs.pages import page

TEXT = page("explanation/guarantees.md")
ROWS = [
    row
    for row in re.findall(r"^\| (?!---|promise).*\|$", TEXT.split("## What is not promised")[0], re.MULTILINE)
    if row.count("|") == 4
]


def test_every_promise_has_a_mechanism_and_a_test() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        _, promise, mechanism, tests, _ = (cell.strip() for cell in row.split("|"))
        assert promise
        assert mechanism
        assert "`tests/" in tests, promise
