"""What the tests of the API share; the served API itself is in tests/conftest.py."""

import pytest
import stripe


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats what failed at once, where it would wait half a second."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
