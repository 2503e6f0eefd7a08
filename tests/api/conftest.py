"""A served API for each test."""

from collections.abc import Iterator

import pytest
import redis
import stripe

from tests.api.site import Site, make_site
from tests.conftest import Database
from tests.payments.world import make_world


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats what failed at once, where it would wait half a second."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)


@pytest.fixture
def site(database: Database, redis_url: str, redis_client: redis.Redis) -> Iterator[Site]:
    """An API with org 1, which has neither money nor a card."""
    with make_world(database.engine, redis_client) as world, make_site(database, redis_url, world) as made:
        yield made
