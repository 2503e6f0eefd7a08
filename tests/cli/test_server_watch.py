"""A role looks at its servers again while it runs, since another one may take over; and ends though one hangs."""

import threading
import time

import pytest
import redis

from metering.console import server_watch
from metering.console.server_watch import watching_servers
from metering.runtime.health import HEALTH
from tests.conftest import Database
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "EVERY_S", 0.05)


def test_health_tells_what_becomes_wrong_with_a_server_and_when_it_is_right(
    database: Database, redis_client: redis.Redis
) -> None:
    with watching_servers(database.engine, redis_client, threading.Event()):
        try:
            redis_client.config_set("maxmemory-policy", "allkeys-lru")
            wait_until(HEALTH.refusals, limit_s=30)
            (told,) = HEALTH.refusals()
            assert told.server == "redis"
            assert "set maxmemory-policy noeviction" in told.reason
        finally:
            redis_client.config_set("maxmemory-policy", "noeviction")
        wait_until(lambda: not HEALTH.refusals(), limit_s=30)


def test_a_server_that_hangs_does_not_keep_a_role_from_ending(
    database: Database, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, answers = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        looking.set()
        answers.wait(60)

    monkeypatch.setattr(server_watch, "_look_at_postgres", hang)
    with watching_servers(database.engine, redis_client, threading.Event()):
        assert looking.wait(30)
        told_s = time.monotonic()
    took_s = time.monotonic() - told_s
    answers.set()
    assert took_s < 10
