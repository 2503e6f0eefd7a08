"""A world for each test."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
import stripe
import structlog

from metering.runtime.redis_connection import connect_redis
from metering.sandbox.servers.embedded import Servers
from tests.conftest import Database, _make_database
from tests.payments.reload_world import ReloadWorld, Site, make_site
from tests.payments.world import World, make_world


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats what failed at once, where it would wait half a second."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)


@pytest.fixture
def quiet() -> None:
    """A random walk logs thousands of warnings, and they are meant."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture
def own_world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """As `world`, with a database of its own, for tests that damage it."""
    with make_world(database, redis_client) as made:
        yield made


@pytest.fixture(scope="session")
def reload_database(servers: Servers, template_database: str) -> Iterator[Database]:
    """One database for all tests of payments: each empties it."""
    with contextmanager(_make_database)(servers, template_database) as made:
        yield made


@pytest.fixture(scope="session")
def site(reload_database: Database, servers: Servers) -> Iterator[Site]:
    """One stand-in for Stripe and one clock with it."""
    with connect_redis(servers.redis_url) as client, make_site(reload_database, client) as made:
        yield made


@pytest.fixture
def reloading(site: Site) -> ReloadWorld:
    """An installation with org 1, without money or card, and a tier to call with."""
    return site.fresh()


@pytest.fixture
def world(site: Site) -> World:
    """An installation with org 1, without money or card."""
    return site.fresh()
