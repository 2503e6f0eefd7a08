"""A Redis that would throw out or forget events, or doesn't know what we ask, is refused; so is one that refuses us."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from metering.runtime.health import HEALTH, REDIS
from metering.runtime.redis_checks import RedisAbout, UnfitRedisError, check_redis, read_about
from metering.runtime.redis_connection import connect_redis
from metering.runtime.redis_failures import refuses
from tests.external_servers.process import HOST
from tests.external_servers.valkeys import TcpServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TcpServer]:
    found = TcpServer(tmp_path / "valkey")
    found.start()
    yield found
    found.stop()


def test_the_embedded_one_will_do(redis_client: redis.Redis) -> None:
    about = check_redis(redis_client)
    assert (about.mode, about.maxmemory_policy, about.has_append_only_file) == (
        "standalone",
        "noeviction",
        True,
    )
    assert about.concerns == []


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("maxmemory-policy", "allkeys-lru", "set maxmemory-policy noeviction"),
        ("maxmemory-policy", "volatile-ttl", "set maxmemory-policy noeviction"),
        ("appendonly", "no", "set appendonly yes"),
    ],
)
def test_one_that_loses_events_is_refused(server: TcpServer, name: str, bad: str, said: str) -> None:
    server.client.config_set(name, bad)
    with connect_redis(server.url) as client, pytest.raises(UnfitRedisError, match=said):
        check_redis(client)


def test_cluster_mode_is_refused(tmp_path: Path) -> None:
    server = TcpServer(tmp_path / "valkey", {"cluster-enabled": "yes"})
    server.start()
    with connect_redis(server.url) as client, pytest.raises(UnfitRedisError, match="cluster mode"):
        check_redis(client)
    server.stop()


def test_an_old_version_is_refused_by_its_number() -> None:
    for version in ("2.8.0", "6.2.20"):
        assert "needs Redis 7.0" in str(RedisAbout(version, "standalone", None, None).problem)
    for version in ("7.0.0", "7.2.4", "8.1.9", "9.0.0", "10.1"):
        assert RedisAbout(version, "standalone", "noeviction", True).problem is None


def test_a_user_who_may_not_ask_is_told_of_it(server: TcpServer) -> None:
    server.client.acl_setuser(
        "meter", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-info"]
    )
    with connect_redis(f"redis://meter:pw@{HOST}:{server.port}/0") as client:
        about = check_redis(client)
        assert about.maxmemory_policy is None
        assert "+info" in about.concerns[0]
    assert HEALTH.refusals() == []  # that is no refusal of what it needs


def test_what_a_server_refuses_is_told_by_health(server: TcpServer) -> None:
    server.client.acl_setuser(
        "meter", enabled=True, passwords=["+pw"], keys=["calls:*"], commands=["+@all", "-xadd"]
    )
    with connect_redis(f"redis://meter:wrong@{HOST}:{server.port}/0") as client:
        with pytest.raises(redis.AuthenticationError) as raised:
            client.ping()
        assert refuses(raised.value)
        assert [each.server for each in HEALTH.refusals()] == [REDIS]
    with connect_redis(f"redis://meter:pw@{HOST}:{server.port}/0") as client:
        client.ping()
        assert HEALTH.refusals() == []
        with pytest.raises(redis.ResponseError) as refused:
            client.xadd("calls:completed", {"event": "{}"})
        assert refuses(refused.value)
        assert "NOPERM" in HEALTH.refusals()[0].reason or "no permissions" in HEALTH.refusals()[0].reason
    server.client.execute_command("CONFIG", "SET", "requirepass", "secret")  # type: ignore[no-untyped-call]
    HEALTH.forget()
    with connect_redis(server.url) as client, pytest.raises(redis.AuthenticationError) as noauth:
        read_about(client)
    assert refuses(noauth.value)
    assert HEALTH.refusals()
    server.client.execute_command("CONFIG", "SET", "requirepass", "")  # type: ignore[no-untyped-call]


def test_one_that_is_away_does_not_refuse() -> None:
    for error in (
        redis.ConnectionError("Connection refused"),
        redis.TimeoutError("Timeout reading from socket"),
        redis.exceptions.BusyLoadingError("loading"),
        redis.ResponseError("OOM command not allowed"),
        redis.ResponseError("NOGROUP no such key"),
    ):
        assert not refuses(error)
