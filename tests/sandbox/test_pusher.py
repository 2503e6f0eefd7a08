"""Pushing on schedule: everything once, in order, recorded as it goes in."""

import itertools
import time
from typing import Any

import redis

from metering.runtime.redis_connection import connect_redis
from metering.sandbox.pusher import PIPELINE_LIMIT, Pusher
from metering.sandbox.telephony import Push

LIMIT_S = 30


def pushes(*times_s: float) -> list[Push]:
    return [Push(at_s, b"%d" % number, 1, "bolt", 60_000_000) for number, at_s in enumerate(times_s)]


def in_the_stream(client: redis.Redis) -> list[tuple[str, bytes]]:
    entries: Any = client.xrange("calls:completed")
    return [(stream_id.decode(), fields[b"event"]) for stream_id, fields in entries]


def test_every_event_goes_in_once_in_order_and_is_recorded(redis_client: redis.Redis) -> None:
    number = 2 * PIPELINE_LIMIT + 1
    pusher = Pusher(redis_client, pushes(*[0] * number, 0.05, 0.05, 0.1))
    pusher.start()
    pusher.join(LIMIT_S)
    entries = in_the_stream(redis_client)
    assert [raw for _, raw in entries] == [b"%d" % index for index in range(number + 3)]
    assert pusher.stream_ids == {stream_id for stream_id, _ in entries}
    assert pusher.first_and_last == (entries[0][0], entries[-1][0])
    assert pusher.record.pushed == pusher.record.orgs[1].calls == number + 3
    assert pusher.error is None
    assert 0.1 <= pusher.took_s < LIMIT_S


def test_nothing_goes_in_before_it_is_due(redis_client: redis.Redis) -> None:
    began_s = time.time()
    pusher = Pusher(redis_client, pushes(0, 0.2, 0.4))
    pusher.start()
    pusher.join(LIMIT_S)
    pushed_s = [int(stream_id.split("-")[0]) / 1000 - began_s for stream_id, _ in in_the_stream(redis_client)]
    assert pushed_s[1] >= 0.199  # the server's clock counts whole milliseconds
    assert pushed_s[2] >= 0.399


def test_a_stop_ends_it_and_the_record_holds_what_is_in_the_stream(redis_client: redis.Redis) -> None:
    endless = (Push(number / 1000, b"%d" % number, 1, "bolt", 60_000_000) for number in itertools.count())
    pusher = Pusher(redis_client, endless)
    pusher.start()
    deadline_s = time.monotonic() + LIMIT_S
    while pusher.record.pushed < 50:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    pusher.stop()
    assert not pusher.is_alive()
    assert pusher.record.pushed == redis_client.xlen("calls:completed")


def test_what_was_late_goes_out_as_soon_as_it_can(redis_client: redis.Redis) -> None:
    pusher = Pusher(redis_client, pushes(*(index / 100_000 for index in range(20_000))))
    pusher.start()
    pusher.join(LIMIT_S)
    assert not pusher.is_alive()
    assert redis_client.xlen("calls:completed") == 20_000


def test_a_refusal_ends_it_and_is_kept(redis_client: redis.Redis) -> None:
    redis_client.set("calls:completed", "in the way")
    pusher = Pusher(redis_client, pushes(0, 60))
    pusher.start()
    pusher.join(LIMIT_S)
    assert isinstance(pusher.error, redis.ResponseError)
    assert pusher.record.pushed == 0


def test_a_lost_connection_ends_it_and_is_kept() -> None:
    with connect_redis("unix:///nowhere/valkey.sock") as client:
        pusher = Pusher(client, pushes(0))
        pusher.start()
        pusher.join(LIMIT_S)
    assert isinstance(pusher.error, redis.ConnectionError)
    assert pusher.first_and_last is None
