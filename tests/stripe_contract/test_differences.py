"""The table of differences names tests that exist."""

from pathlib import Path

from tests.stripe_contract.differences import DIFFERENCES


def test_every_difference_is_tested() -> None:
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in DIFFERENCES if f"def {name}(" not in sources] == []
