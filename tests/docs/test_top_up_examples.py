"""Every example of a top-up sends an `Idempotency-Key`: after no answer at all nothing else makes a repeat safe."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from fastapi import FastAPI

from metering.api.top_ups import post_top_up, router
from metering.console.first_steps import first_steps
from metering.console.stripe_access import StripeAccess
from tests.docs.pages import ROOT, pages

_BLOCK: Final = re.compile(r"^ *```[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INDENTED: Final = re.compile(r"^ {4,}.*$", re.MULTILINE)
_TOP_UP: Final = "billing/top-up"
ACCESSES: Final = (
    StripeAccess("sk_test_x", ("whsec_x",), None),
    StripeAccess("sk_test_x", ("whsec_x",), "http://127.0.0.1:1", stand_in=True),
)


def requests(text: str) -> list[str]:
    """The commands in `text` that top up, each in one line."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if _TOP_UP in line]


def examples(path: Path) -> Iterator[str]:
    """The top-ups in a page's code."""
    text = path.read_text(encoding="utf-8")
    blocks = _BLOCK.findall(text)
    for code in (*blocks, "\n".join(_INDENTED.findall(_BLOCK.sub("", text)))):
        yield from requests(code)


def test_pages() -> None:
    found = [(path.relative_to(ROOT), line) for path in pages() for line in examples(path)]
    assert {str(path) for path, _ in found} >= {
        "README.md",
        "docs/tutorials/first-hour.md",
        "docs/reference/http-api.md",
    }
    assert [each for each in found if "Idempotency-Key: " not in each[1]] == []


@pytest.mark.parametrize("access", ACCESSES, ids=["test key", "stand-in"])
def test_what_up_proposes(access: StripeAccess) -> None:
    found = requests("\n".join(first_steps(datetime(2026, 4, 20, tzinfo=UTC), "http://api", access)))
    assert found
    assert [line for line in found if "Idempotency-Key: " not in line] == []


def test_deployments_and_programs() -> None:
    """Shell in other files than pages; programs build their requests in Python, with a key of their own."""
    for path in (*ROOT.glob("deploy/**/*"), *ROOT.glob("*.yml"), ROOT / "Makefile"):
        if path.is_file():
            for line in requests(path.read_text(encoding="utf-8", errors="replace")):
                assert "Idempotency-Key" in line, path


def test_the_api_describes_it() -> None:
    said = " ".join((post_top_up.__doc__ or "").split())
    assert "No answer at all" in said
    assert "may be charged twice" in said
    app = FastAPI()
    app.include_router(router)
    parameters = app.openapi()["paths"]["/v1/billing/top-up"]["post"]["parameters"]
    assert [each["examples"] for each in parameters if each["name"] == "Idempotency-Key"]
