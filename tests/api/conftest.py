"""A served API for each test, or one for many that change nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import stripe

from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import Servers
from tests.api.site import Site, make_site
from tests.conftest import _make_database
from tests.payments.world import make_world


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats what failed at once, where it would wait half a second."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)


@pytest.fixture
def site(standing_site: Site, redis_url: str) -> Site:
    """An API with org 1, which has neither money nor a card, and nothing else."""
    standing_site.empty()
    return standing_site


@pytest.fixture(scope="session")
def standing_site(servers: Servers, template_database: str) -> Iterator[Site]:
    """One server for all tests of the API, as the last one left it."""
    with (
        contextmanager(_make_database)(servers, template_database) as database,
        connect_redis(servers.redis_url) as client,
        make_world(database, client) as world,
        make_site(database, servers.redis_url, world) as made,
    ):
        yield made
