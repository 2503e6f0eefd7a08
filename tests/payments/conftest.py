"""A world for each test."""

from collections.abc import Iterator

import pytest
import redis

from tests.conftest import Database
from tests.payments.world import World, make_world


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation with org 1, without money or card."""
    with make_world(database.engine, redis_client) as made:
        yield made
