"""The stream's oddities: entries that vanish, entries without an event, a stream that begins anew."""

from typing import Any

import redis

from metering.rules.events import MAX_EVENT_BYTES
from metering.rules.rejections import Reason
from metering.runtime.names import STREAM
from tests.spine.billing import rejections
from tests.workers.calls import assert_billed, encode, make_calls, read_all
from tests.workers.processes import Site, wait_until
from workers.stream import GROUP, PART, Backlog, CallStream, backlog


def read_by(client: redis.Redis, name: str, limit: int = 1_000) -> tuple[CallStream, list[str]]:
    """A consumer, and the ids of what it has just read."""
    stream = CallStream(client, name)
    stream.join()
    return stream, [entry.stream_id for entry in read_all(stream, limit=limit)]


def test_who_stops_reading_leaves_what_was_on_its_way_pending(redis_client: redis.Redis) -> None:
    """And nobody is given an answer that was meant for him."""
    stream = CallStream(redis_client, "m")
    stream.join()
    for number in range(3 * PART):
        redis_client.xadd(STREAM, {"event": str(number)})
    parts = stream.parts(limit=3 * PART, block_ms=None)
    assert len(next(parts)) == PART
    wait_until(lambda: backlog(redis_client).pending == 2 * PART, "the second part")
    parts.close()
    assert redis_client.ping() is True
    assert [entry.raw for entry in read_all(stream, limit=1_000)] == [
        str(number).encode() for number in range(2 * PART, 3 * PART)
    ]


def test_told_not_to_go_on_it_asks_for_no_more(redis_client: redis.Redis) -> None:
    stream = CallStream(redis_client, "m")
    stream.join()
    for number in range(2 * PART):
        redis_client.xadd(STREAM, {"event": str(number)})
    [part] = stream.parts(limit=2 * PART, block_ms=None, goes_on=lambda: False)
    assert len(part) == backlog(redis_client).pending == PART


def test_entries_deleted_while_pending_leave_the_group(site: Site) -> None:
    events = make_calls(30, seed=61)
    site.push(events)
    _, stream_ids = read_by(site.client, "m")
    site.client.xdel(STREAM, *stream_ids[:10])
    site.push(events[:10])
    site.drain("m")
    assert_billed(site.engine, site.client, events)


def test_entries_deleted_while_pending_to_a_dead_meter_leave_the_group(site: Site) -> None:
    site.push(make_calls(30, seed=62))
    _, stream_ids = read_by(site.client, "dead")
    site.client.xdel(STREAM, *stream_ids)
    events = make_calls(30, seed=63)
    with site.meters("m", abandoned_after_ms=1):
        site.push(events)
        site.wait_until_drained()
    assert_billed(site.engine, site.client, events)


def test_entries_without_an_event_are_kept(site: Site) -> None:
    oddities: list[dict[Any, Any]] = [
        {b"evnt": encode()},
        {b"a": b"1", b"b": b"\x00\xff"},
        {b"": b""},
        {b"huge": b"x" * 1_000_000},
    ]
    for fields in oddities:
        site.client.xadd(STREAM, fields)
    events = make_calls(10, seed=64, broken=False)
    site.push(events)
    site.drain("m")
    kept = rejections(site.engine)
    assert [(row.reason, bytes(row.raw)) for row in kept] == [
        (Reason.INVALID_FIELD, b"evnt=" + encode()),
        (Reason.INVALID_FIELD, b"a=1\nb=\x00\xff"),
        (Reason.INVALID_FIELD, b"="),
        (Reason.TOO_LARGE, (b"huge=" + b"x" * 1_000_000)[: 64 * 1024]),
    ]
    assert kept[-1].raw_length_bytes == 1_000_005 > MAX_EVENT_BYTES
    assert backlog(site.client) == Backlog(0, 0)


def test_an_ack_spares_the_entries_of_a_stream_that_began_anew(redis_client: redis.Redis) -> None:
    """After FLUSHALL ids begin again within the same millisecond: an old batch's may be a new entry's."""
    redis_client.xadd(STREAM, {"event": b"old"}, id="1-0")
    old, stream_ids = read_by(redis_client, "old")
    redis_client.flushall()
    redis_client.xadd(STREAM, {"event": b"new"}, id="1-0")
    new = CallStream(redis_client, "new")
    new.join()
    old.ack(stream_ids)
    assert [entry.raw for entry in read_all(new, limit=10)] == [b"new"]


def test_an_ack_without_a_group_takes_nothing_out(redis_client: redis.Redis) -> None:
    """Nobody knows then whether an entry is the one that was read: it is read again, and found billed."""
    redis_client.xadd(STREAM, {"event": b"one"})
    stream, stream_ids = read_by(redis_client, "m")
    redis_client.xgroup_destroy(STREAM, GROUP)
    stream.ack(stream_ids)
    assert backlog(redis_client).length == 1


def test_an_ack_takes_out_what_is_pending_and_leaves_the_rest(redis_client: redis.Redis) -> None:
    for number in range(10):
        redis_client.xadd(STREAM, {"event": b"%d" % number})
    stream, stream_ids = read_by(redis_client, "m", limit=6)
    stream.ack(stream_ids[:2])
    stream.ack(stream_ids[1:4])  # some were acked before, by whoever took them over
    assert backlog(redis_client) == Backlog(length=6, pending=2)
    stream.ack(stream_ids)
    assert backlog(redis_client) == Backlog(length=4, pending=0)


def test_an_ack_takes_out_thousands(redis_client: redis.Redis) -> None:
    with redis_client.pipeline() as pipeline:
        for number in range(2_600):
            pipeline.xadd(STREAM, {"event": b"%d" % number})
        pipeline.execute()
    stream, stream_ids = read_by(redis_client, "m", limit=2_500)
    stream.ack(stream_ids[1_500:1_510])
    stream.ack(stream_ids)
    assert backlog(redis_client) == Backlog(length=100, pending=0)


def test_an_ack_of_what_was_read_and_of_what_begins_anew_takes_out_the_former(
    redis_client: redis.Redis,
) -> None:
    for stream_id in ("5-1", "5-9"):
        redis_client.xadd(STREAM, {"event": b"old"}, id=stream_id)
    old, stream_ids = read_by(redis_client, "old")
    redis_client.flushall()
    for stream_id in ("5-1", "5-9", "5-10"):
        redis_client.xadd(STREAM, {"event": b"new"}, id=stream_id)
    new, _ = read_by(redis_client, "new", limit=1)
    old.ack(stream_ids)
    assert [entry.stream_id for entry in read_all(new, limit=10)] == ["5-9", "5-10"]


def test_only_idle_consumers_that_hold_nothing_are_deleted(redis_client: redis.Redis) -> None:
    redis_client.xadd(STREAM, {"event": b"held"})
    read_by(redis_client, "holds")
    gone, _ = read_by(redis_client, "gone")
    leaving, _ = read_by(redis_client, "leaving")
    assert leaving.delete_idle_consumers(idle_ms=3_600_000) == 0
    assert leaving.delete_idle_consumers(idle_ms=3_600_000, leave=True) == 1
    assert gone.delete_idle_consumers(idle_ms=-1) == 1
    assert {consumer["name"] for consumer in redis_client.xinfo_consumers(STREAM, GROUP)} == {b"holds"}


def test_consumers_may_have_any_name(site: Site) -> None:
    site.push([encode()])
    CallStream(site.client, "dead").join()
    site.client.execute_command(  # type: ignore[no-untyped-call]
        "XREADGROUP", "GROUP", GROUP, b"\xff\xfe", "STREAMS", STREAM, ">"
    )
    with site.meters("m", abandoned_after_ms=1):
        site.wait_until_drained()
    assert_billed(site.engine, site.client, [encode()])
