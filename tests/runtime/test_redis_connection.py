"""Connections leave a Valkey that is no longer the primary: every kind of command, on real servers that change places."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from metering.client import MeteringClient, Unreachable, limits
from metering.rules.gates import Balance
from metering.runtime import redis_connection
from metering.runtime.clock import system_clock
from metering.runtime.names import STREAM
from metering.runtime.redis_connection import NotPrimaryError, connect_redis, connect_redis_async
from metering.sandbox.servers.replicated_valkey import ReplicatedValkey
from metering.signals.gate_reader import GateReader
from metering.signals.gates import Gates
from metering.trials.chaos.links import HOST, Links
from tests.client.conftest import scripted_redis
from tests.spine.billing import event
from tests.waiting import wait_until
from workers.stream import GROUP, CallStream

ROLE_CHECK_S = 0.3
"""Instead of two seconds, so that a test needn't wait for those."""
LIMIT_S = 20.0
LINK = "valkey"
OPEN: dict[Any, Any] = {"state": "open", "balance_cents": 500, "version": 1}
CLOSED: dict[Any, Any] = {"state": "exhausted", "balance_cents": -3, "version": 2}


class Moved:
    """Two Valkeys, and the address of the primary, which moves when a test says so."""

    def __init__(self, servers: ReplicatedValkey, links: Links) -> None:
        self.servers = servers
        self.links = links
        self.url = f"redis://{HOST}:{links.port(LINK)}/0"

    def demote(self) -> None:
        """The two change places. Connections stay where they are, and so does the address."""
        self.servers.demote()

    def move(self) -> None:
        """The address leads to the primary from now on."""
        self.links.move(LINK, self.servers.primary.socket_path)

    def cut_off(self) -> None:
        """The demoted one hears no more of the primary, so that what it answers is old."""
        self.servers.replica.client.replicaof(HOST, "1")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicatedValkey]:
    with ReplicatedValkey(tmp_path_factory.mktemp("replicated")) as started:
        yield started


@pytest.fixture
def moved(servers: ReplicatedValkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moved]:
    monkeypatch.setattr(redis_connection, "ROLE_CHECK_S", ROLE_CHECK_S)
    monkeypatch.setattr(limits, "ROLE_CHECK_S", ROLE_CHECK_S)
    with Links() as links:
        servers.replica.client.replicaof(HOST, str(servers.primary.port))
        servers.primary.client.flushall()
        servers.wait_for_sync()
        links.add(LINK, servers.primary.socket_path)
        yield Moved(servers, links)


@pytest.fixture
def client(moved: Moved) -> Iterator[redis.Redis]:
    with connect_redis(moved.url) as made:
        yield made


def test_a_refused_write_closes_the_connection_and_the_next_try_finds_the_primary(
    moved: Moved, client: redis.Redis
) -> None:
    client.set("key", 1)
    moved.demote()
    with pytest.raises(NotPrimaryError, match="read only replica"):
        client.set("key", 2)
    wait_until(lambda: moved.servers.replica.connections("metering") == 0, limit_s=LIMIT_S)
    with pytest.raises(NotPrimaryError, match="says that it is a replica"):
        client.get("key")  # the address hasn't moved yet
    moved.move()
    client.set("key", 3)
    assert moved.servers.primary.client.get("key") == b"3"


def test_one_connections_finding_closes_the_others_before_they_are_used(
    moved: Moved, client: redis.Redis
) -> None:
    at_once = threading.Barrier(8)

    def ask(_: int) -> bytes | None:
        with client.pipeline(transaction=False) as pipeline:  # holds its connection until all hold one
            pipeline.get("key")
            connection = client.connection_pool.get_connection()
            at_once.wait(LIMIT_S)
            client.connection_pool.release(connection)
            found: bytes | None = pipeline.execute()[0]
            return found

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(8))) == {None}
        wait_until(lambda: moved.servers.primary.connections("metering") == 8, limit_s=LIMIT_S)
        moved.demote()
        moved.move()
        moved.cut_off()
        moved.servers.primary.client.set("key", "new")
        with pytest.raises(NotPrimaryError):
            client.set("other", 1)
        assert set(threads.map(ask, range(8))) == {b"new"}
    wait_until(lambda: moved.servers.replica.connections("metering") == 0, limit_s=LIMIT_S)


def test_a_demoted_server_is_read_from_only_until_the_next_check(moved: Moved, client: redis.Redis) -> None:
    client.hset("gate:42", mapping=OPEN)
    assert client.hget("gate:42", "state") == b"open"
    moved.demote()
    moved.cut_off()
    moved.move()
    moved.servers.primary.client.hset("gate:42", mapping=CLOSED)
    demoted_s = time.monotonic()

    def ask_on() -> None:
        while time.monotonic() < demoted_s + LIMIT_S:
            assert client.hget("gate:42", "state") == b"open"

    with pytest.raises(NotPrimaryError):  # the server answers everything: only its role tells
        ask_on()
    assert time.monotonic() < demoted_s + 2 * ROLE_CHECK_S + 1
    assert client.hget("gate:42", "state") == b"exhausted"
    # Idle for longer than that, it isn't believed even once.
    moved.servers.replica.client.replicaof(HOST, str(moved.servers.primary.port))
    moved.demote()
    moved.cut_off()
    time.sleep(ROLE_CHECK_S)
    with pytest.raises(NotPrimaryError):
        client.hget("gate:42", "state")


@pytest.mark.parametrize("command", ["XREADGROUP", "XREAD"])
def test_who_waits_for_entries_is_sent_on(moved: Moved, client: redis.Redis, command: str) -> None:
    CallStream(client, "meter-1").join()
    group = ["GROUP", GROUP, "meter-1"] if command == "XREADGROUP" else []
    after = ">" if command == "XREADGROUP" else "$"

    def wait_for_entries() -> object:
        return client.execute_command(command, *group, "BLOCK", 4_000, "STREAMS", STREAM, after)  # type: ignore[no-untyped-call]

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_for_entries)
        wait_until(
            lambda: moved.servers.primary.client.info("clients")["blocked_clients"] == 1, limit_s=LIMIT_S
        )
        moved.demote()
        with pytest.raises(NotPrimaryError, match="UNBLOCKED"):
            waiting.result(timeout=LIMIT_S)


def test_the_streams_reader_goes_on_at_the_new_primary(moved: Moved, client: redis.Redis) -> None:
    stream = CallStream(client, "meter-1")
    stream.join()
    client.xadd(STREAM, {"event": b"1"})
    parts = stream.parts(limit=100, block_ms=None)
    (first,) = next(parts)
    moved.demote()
    parts.close()
    with pytest.raises(NotPrimaryError):
        stream.ack([first.stream_id])
    moved.move()
    stream.ack([first.stream_id])
    moved.servers.primary.client.xadd(STREAM, {"event": b"2"})
    assert [entry.raw for part in stream.parts(limit=100, block_ms=None) for entry in part] == [b"2"]
    assert moved.servers.primary.client.xlen(STREAM) == 1


def test_a_transaction_begun_before_is_given_up(moved: Moved, client: redis.Redis) -> None:
    connection = client.connection_pool.get_connection()
    for words in (["MULTI"], ["XADD", STREAM, "*", "event", "1"]):
        connection.send_command(*words)  # type: ignore[no-untyped-call]
        connection.read_response()
    moved.demote()
    connection.send_command("EXEC")  # type: ignore[no-untyped-call]
    with pytest.raises(NotPrimaryError, match="Transaction discarded"):
        connection.read_response()
    assert not connection.is_connected
    client.connection_pool.release(connection)


def test_a_script_that_catches_errors_fails_as_a_whole(moved: Moved, client: redis.Redis) -> None:
    """The script for gates passes over a gate that can't be written; where none can be, the client must hear of it."""
    gates = Gates(client)
    assert len(gates.follow([Balance(42, 500, 1)], system_clock())) == 1
    moved.demote()
    with pytest.raises(NotPrimaryError):
        gates.try_to_follow([Balance(42, -3, 2)], system_clock())
    moved.move()
    moved.servers.primary.client.script_flush()  # the new primary may not know the script
    assert gates.try_to_follow([Balance(42, -3, 2)], system_clock()).written == 1
    assert moved.servers.primary.client.hget("gate:42", "state") == b"exhausted"


def test_a_primary_that_has_lost_its_replicas_is_left_too(moved: Moved, client: redis.Redis) -> None:
    client.set("key", 1)
    primary = moved.servers.primary.client
    primary.config_set("min-replicas-to-write", 2)
    try:
        with pytest.raises(NotPrimaryError, match="NOREPLICAS"):
            client.set("key", 2)
        wait_until(lambda: moved.servers.primary.connections("metering") == 0, limit_s=LIMIT_S)
        with pytest.raises(NotPrimaryError, match="NOREPLICAS"):
            Gates(client).try_to_follow([Balance(42, -3, 2)], system_clock())
    finally:
        primary.config_set("min-replicas-to-write", 0)
    client.set("key", 3)


def test_the_apis_gates_come_from_the_primary_and_it_says_when_it_cannot_write(moved: Moved) -> None:
    async def ask() -> None:
        reader = GateReader(connect_redis_async(moved.url, timeout_s=5, max_connections=4))
        moved.servers.primary.client.hset("gate:42", mapping=OPEN)
        gate = await reader.read(42)
        assert gate is not None
        assert gate.state == "open"
        assert await reader.takes_writes()
        moved.demote()
        moved.cut_off()
        moved.servers.primary.client.hset("gate:42", mapping=CLOSED)
        await asyncio.sleep(ROLE_CHECK_S)
        assert await reader.read(42) is None  # so Postgres is asked
        assert not await reader.takes_writes()
        moved.move()
        assert await reader.takes_writes()
        deadline_s = time.monotonic() + LIMIT_S
        while (gate := await reader.read(42)) is None:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)
        assert gate.state == "exhausted"
        await reader.close()

    asyncio.run(ask())


def test_a_server_that_cannot_write_its_file_takes_no_writes(moved: Moved) -> None:
    async def ask() -> None:
        reader = GateReader(connect_redis_async(moved.url, timeout_s=5, max_connections=4))
        primary = moved.servers.primary.client
        primary.config_set("min-replicas-to-write", 2)
        try:
            assert not await reader.takes_writes()
        finally:
            primary.config_set("min-replicas-to-write", 0)
        assert await reader.takes_writes()
        await reader.close()

    asyncio.run(ask())


def test_the_role_is_asked_along_with_a_command_and_rarely() -> None:
    with scripted_redis(*[b"$4\r\nopen"] * 100) as server, connect_redis(server.url) as client:
        began_s = time.monotonic()
        for _ in range(100):
            assert client.hget("gate:42", "state") == b"open"
        due = 1 + (time.monotonic() - began_s) // redis_connection.ROLE_CHECK_S
        assert 1 <= server.roles_asked <= due


def test_a_server_that_knows_no_hello_is_believed() -> None:
    with (
        scripted_redis(b"$4\r\nopen", b"$4\r\nopen", role=b"-ERR unknown command 'HELLO'") as server,
        connect_redis(server.url) as client,
    ):
        assert [client.hget("gate:42", "state") for _ in range(2)] == [b"open"] * 2
        assert server.roles_asked == 1


def telephony(url: str, kind: str) -> MeteringClient:
    return MeteringClient(url if kind == "own" else redis.Redis.from_url(url))


@pytest.mark.parametrize("kind", ["own", "given"])
def test_telephonys_pushes_go_to_the_new_primary(moved: Moved, kind: str) -> None:
    with telephony(moved.url, kind) as client:
        client.push(event(call_id=1))
        moved.demote()
        with pytest.raises(Unreachable):  # the address leads to the replica still
            client.push(event(call_id=2))
        with ThreadPoolExecutor(1) as threads:
            pushing = threads.submit(client.push, event(call_id=2))
            moved.move()
            pushing.result(timeout=LIMIT_S)
        client.push_many([event(call_id=call_id) for call_id in (3, 4, 5)])
    assert moved.servers.primary.client.xlen(STREAM) == 5


@pytest.mark.parametrize("kind", ["own", "given"])
def test_telephonys_gate_comes_from_the_primary(moved: Moved, kind: str) -> None:
    moved.servers.primary.client.hset("gate:42", mapping=OPEN)
    with telephony(moved.url, kind) as client:
        assert client.gate(42).open
        moved.demote()
        moved.cut_off()
        moved.servers.primary.client.hset("gate:42", mapping=CLOSED)
        time.sleep(ROLE_CHECK_S)
        with pytest.raises(Unreachable, match="says that it is a replica"):
            client.gate(42)
        moved.move()
        assert not client.gate(42).open
        # Once the address has moved nobody hears of it at all.
        moved.servers.replica.client.replicaof(HOST, str(moved.servers.primary.port))
        moved.demote()
        moved.move()
        time.sleep(ROLE_CHECK_S)
        assert client.gate(42).version == CLOSED["version"]


@pytest.mark.parametrize("kind", ["own", "given"])
def test_telephonys_signals_go_on_at_the_new_primary(moved: Moved, kind: str) -> None:
    gates = Gates(moved.servers.primary.client)
    with telephony(moved.url, kind) as client, client.signals() as signals, ThreadPoolExecutor(1) as threads:
        gates.follow([Balance(1, 500, 1)], system_clock())
        assert next(signals).org_id == 1
        hearing = threads.submit(next, signals)
        wait_until(
            lambda: moved.servers.primary.client.info("clients")["blocked_clients"] >= 1, limit_s=LIMIT_S
        )
        moved.demote()
        moved.cut_off()
        moved.move()
        Gates(moved.servers.primary.client).follow([Balance(2, 500, 1)], system_clock())
        assert hearing.result(timeout=LIMIT_S).org_id == 2
        # And where it wasn't waiting: the log that it asks has ended, and nothing says so but the role.
        moved.servers.replica.client.replicaof(HOST, str(moved.servers.primary.port))
        moved.demote()
        moved.cut_off()
        moved.move()
        Gates(moved.servers.primary.client).follow([Balance(3, 500, 1)], system_clock())
        assert threads.submit(next, signals).result(timeout=LIMIT_S).org_id == 3


def test_what_was_pushed_before_the_refusal_is_known() -> None:
    answers = [b"$3\r\n1-0", b"-READONLY You can't write against a read only replica."]
    with scripted_redis(*answers) as server, MeteringClient(server.url, tries=1) as client:
        with pytest.raises(Unreachable) as raised:
            client.push_many([event(call_id=1), event(call_id=2)])
        assert raised.value.pushed == 1


@pytest.mark.parametrize("health_check_interval", ["1", "30"])
def test_health_checks_that_the_url_asks_for_are_not_taken_for_the_role(
    moved: Moved, health_check_interval: str
) -> None:
    """redis-py sends a PING of its own before a command, and reads its answer at once: with 1 s, between two asked here."""
    url = f"{moved.url}?health_check_interval={health_check_interval}"

    async def ask_twice() -> None:
        async with connect_redis_async(url, timeout_s=LIMIT_S, max_connections=1) as awaited:
            assert await awaited.set("asked", 1)
            await asyncio.sleep(1.1)  # longer than the interval
            assert await awaited.get("asked") == b"1"

    with connect_redis(url) as made:
        assert made.set("asked", 1)
        with MeteringClient(url, tries=1) as client:
            client.push(event(call_id=1))
            asyncio.run(ask_twice())
            client.push(event(call_id=2))
        assert made.get("asked") == b"1"
