"""The client, and the roles' connections, find the primary by Sentinel, and its successor."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from metering.client import MeteringClient, Refused, Unreachable
from metering.client.sentinel import Sentinels, UnknownPrimary, read_sentinel_url
from metering.runtime.redis_connection import connect_redis, connect_redis_async
from metering.signals.hold_library import load_hold_library
from tests.external_servers.process import HOST, free_port
from tests.external_servers.valkeys import NAME, Watched, watched
from tests.signals.holding import set_gate
from tests.spine.billing import event
from tests.waiting import wait_until

LIMIT_S = 30.0


def test_a_url_says_who_watches_and_how_to_connect() -> None:
    said = read_sentinel_url(
        "rediss+sentinel://meter:p%40ss@one,two:26380,[::1]:26381/calls/3"
        "?ssl_ca_certs=/ca.pem&sentinel_username=watch&sentinel_password=s%2Fecret"
    )
    assert said.hosts == (("one", 26379), ("two", 26380), ("::1", 26381))
    assert said.name == "calls"
    assert (said.server["username"], said.server["password"]) == ("meter", "p@ss")
    assert (said.server["db"], said.server["ssl_ca_certs"]) == (3, "/ca.pem")
    assert (said.sentinel["username"], said.sentinel["password"]) == ("watch", "s/ecret")
    assert said.sentinel["ssl_ca_certs"] == "/ca.pem"
    assert said.server["connection_class"] is said.sentinel["connection_class"] is redis.SSLConnection
    assert "s/ecret" not in repr(said)
    assert "p@ss" not in repr(said)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+sentinel://one,two", "the primary that they watch"),
        ("redis+sentinel:///calls", "the primary that they watch"),
        ("redis+sentinel://one/calls/x", "not a number"),
        ("redis+sentinel://one:no/calls", "no host:port"),
        ("redis+sentinel://one:70000/calls", "no host:port"),
        ("redis+sentinel://secret@,two/calls", "no host:port"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_and_not_quoted(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        read_sentinel_url(url)
    assert "secret" not in str(raised.value)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("watched"), down_after_ms=500) as found:
        yield found


def test_everybody_finds_the_primary_and_its_successor(cluster: Watched) -> None:
    first = cluster.primary()
    with MeteringClient(cluster.url, timeout_s=2.0, tries=8) as client, connect_redis(cluster.url) as role:
        client.push(event(call_id=1, org_id=1))
        load_hold_library(role)
        set_gate(role, 1, balance_cents=100)
        assert client.start_call(1, 3, cents=60, ttl_seconds=600).granted
        role.set("said", "before")
        assert first.client.get("said") == b"before"
        cluster.switch_over()
        # Both try again by themselves. The functions and what is held have come along.
        assert client.renew_call(1, 3, cents=61, ttl_seconds=600).held_cents == 61
        client.push(event(call_id=2, org_id=1))

        def written() -> bool:
            try:
                role.set("said", "after")
            except redis.ConnectionError:
                return False
            return True

        wait_until(written, limit_s=LIMIT_S)
        assert cluster.primary() is not first
        assert cluster.primary().client.get("said") == b"after"
        assert cluster.primary().client.xlen("calls:completed") == 2


def test_an_event_loop_finds_it_too(cluster: Watched) -> None:
    async def ask() -> bytes:
        client = connect_redis_async(cluster.url, timeout_s=2.0, max_connections=4)
        try:
            await client.set("asked", "there")
            answer: Any = await client.get("asked")
            return bytes(answer)
        finally:
            await client.aclose()

    assert asyncio.run(ask()) == b"there"


def test_a_sentinel_that_is_away_is_passed_over(cluster: Watched) -> None:
    hosts = f"{HOST}:{free_port()},{HOST}:{cluster.sentinels[0].port}"
    with connect_redis(f"redis+sentinel://{hosts}/{NAME}") as client:
        for _ in range(4):
            client.ping()
            client.connection_pool.disconnect()


def test_a_name_that_nobody_watches_is_refused(cluster: Watched) -> None:
    url = cluster.url.replace(NAME, "nobody")
    with pytest.raises(UnknownPrimary, match="called nobody"):
        Sentinels(read_sentinel_url(url), 1.0).primary()
    with MeteringClient(url) as client, pytest.raises(Refused, match="called nobody"):
        client.gate(1)


def test_where_no_sentinel_answers_it_may_pass() -> None:
    with (
        MeteringClient(f"redis+sentinel://{HOST}:{free_port()}/{NAME}", tries=1) as client,
        pytest.raises(Unreachable, match="no Sentinel answers"),
    ):
        client.gate(1)
