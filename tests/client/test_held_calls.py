"""Holding what a call may cost, by the client."""

import signal
from collections.abc import Iterator

import pytest
import redis

from metering.client import HeldCall, InvalidField, MeteringClient, Refused, Unreachable
from metering.client.held_call import MAX_CENTS, MAX_TTL_SECONDS
from metering.client.keys import HOLD_ENDS_SUFFIX, HOLDS_PREFIX
from metering.runtime.names import hold_ends_key, holds_key
from metering.signals import holds
from metering.signals.hold_library import load_hold_library
from tests.client.conftest import OwnValkey, scripted_redis
from tests.signals.holding import set_gate

GRANTED = b"*4\r\n$7\r\ngranted\r\n:40\r\n:60\r\n:1"


@pytest.fixture
def client(redis_url: str, redis_client: redis.Redis) -> Iterator[MeteringClient]:
    load_hold_library(redis_client)
    set_gate(redis_client, 42, balance_cents=100)
    with MeteringClient(redis_url, tries=2) as made:
        yield made
    redis_client.function_flush()


def test_the_keys_and_limits_are_the_products_own() -> None:
    assert holds_key(42) == HOLDS_PREFIX + "42"
    assert hold_ends_key(42) == HOLDS_PREFIX + "42" + HOLD_ENDS_SUFFIX
    assert (MAX_CENTS, MAX_TTL_SECONDS) == (holds.MAX_CENTS, holds.MAX_TTL_S)


@pytest.mark.parametrize("decoding", [False, True])
def test_a_call_is_held_renewed_and_cancelled(client: MeteringClient, redis_url: str, decoding: bool) -> None:
    if decoding:
        client = MeteringClient(redis.Redis.from_url(redis_url, decode_responses=True))
    assert client.start_call(42, 7, cents=60, ttl_seconds=720) == HeldCall(42, 7, "granted", 40, 60, 1)
    assert client.start_call(42, 8, cents=60, ttl_seconds=720) == HeldCall(42, 8, "insufficient", 40, 60, 1)
    assert client.renew_call(42, 7, cents=100, ttl_seconds=720).granted
    assert not client.renew_call(42, 7, cents=101, ttl_seconds=720).granted
    assert client.cancel_call(42, 7) == HeldCall(42, 7, "ended", 100, 0, 0)
    assert client.start_call(43, 7, cents=0, ttl_seconds=1).outcome == "exhausted"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"org_id": 0}, "org_id"),
        ({"call_id": 2**63}, "call_id"),
        ({"cents": -1}, "cents"),
        ({"cents": 1.5}, "cents"),
        ({"cents": True}, "cents"),
        ({"cents": MAX_CENTS + 1}, "cents"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": MAX_TTL_SECONDS + 1}, "ttl_seconds"),
    ],
)
def test_what_no_hold_can_be_is_not_sent(fields: dict[str, int], named: str) -> None:
    asked = {"org_id": 42, "call_id": 7, "cents": 60, "ttl_seconds": 720} | fields
    with scripted_redis() as server, MeteringClient(server.url) as client:
        for ask in (client.start_call, client.renew_call):
            with pytest.raises(InvalidField) as raised:
                ask(asked["org_id"], asked["call_id"], cents=asked["cents"], ttl_seconds=asked["ttl_seconds"])
            assert raised.value.field == named
    assert server.commands == []


@pytest.mark.parametrize(
    "trouble",
    [
        None,
        b"-READONLY You can't write against a read only replica.",
        b"-LOADING Redis is loading the dataset in memory",
        b"-ERR Function not found",
        b"-OOM command not allowed when used memory > 'maxmemory'.",
    ],
)
def test_what_passes_by_itself_is_tried_again(trouble: bytes | None) -> None:
    with scripted_redis(trouble, GRANTED) as server, MeteringClient(server.url, tries=2) as client:
        assert client.start_call(42, 7, cents=60, ttl_seconds=720) == HeldCall(42, 7, "granted", 40, 60, 1)
    assert server.commands == 2 * [
        [b"FCALL", b"call_start", b"2", b"holds:42", b"holds:42:ends", b"7", b"60", b"720"]
    ]
    with (
        scripted_redis(trouble, trouble) as server,
        MeteringClient(server.url, tries=2) as client,
        pytest.raises(Unreachable),
    ):
        client.start_call(42, 7, cents=60, ttl_seconds=720)


def test_what_no_waiting_ends_is_told_at_once() -> None:
    said = b"-NOPERM User x has no permissions to run the 'fcall' command"
    with (
        scripted_redis(said) as server,
        MeteringClient(server.url) as client,
        pytest.raises(Refused, match="permissions"),
    ):
        client.renew_call(42, 7, cents=60, ttl_seconds=720)
    assert len(server.commands) == 1


def test_what_redis_loses_renewals_bring_back(own_valkey: OwnValkey) -> None:
    """Killed and started again it has what was on its disk; emptied it has nothing, until the jobs and the calls come by."""
    with MeteringClient(own_valkey.url, tries=2) as client, own_valkey.connect() as jobs:
        load_hold_library(jobs)
        set_gate(jobs, 42, balance_cents=100)
        assert client.start_call(42, 7, cents=60, ttl_seconds=720).granted
        assert jobs.waitaof(1, 0, 20_000) == [1, 0]
        own_valkey.end(signal.SIGKILL)
        own_valkey.start()
        assert client.start_call(42, 8, cents=60, ttl_seconds=720).outcome == "insufficient"
        jobs.flushall()
        assert client.renew_call(42, 7, cents=60, ttl_seconds=720).outcome == "exhausted"  # no gate yet
        jobs.function_flush()
        with pytest.raises(Unreachable, match="the jobs load them"):
            client.renew_call(42, 7, cents=60, ttl_seconds=720)
        load_hold_library(jobs)
        set_gate(jobs, 42, balance_cents=100)
        assert client.renew_call(42, 7, cents=60, ttl_seconds=720) == HeldCall(42, 7, "granted", 40, 60, 1)
