"""One batch is read ahead of the one that is billed, and nothing of it is lost or billed as new twice."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from threading import Event
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import text

import workers.current_prices
from metering.rules.pricing import PriceBook
from metering.runtime.names import STREAM
from tests.workers.calls import ORG_IDS, assert_billed, encode, make_calls
from tests.workers.processes import Site, wait_until, waits_for_lock
from workers import prefetch
from workers.batch import parse_entries
from workers.current_prices import CurrentPrices
from workers.prefetch import Prefetch, ReaderEndedError
from workers.stream import GROUP, MAX_BATCH_BYTES, PART, CallStream, Entry

BOOK = PriceBook(1, [])


@pytest.fixture
def reader(redis_client: redis.Redis) -> Iterator[Prefetch]:
    stream = CallStream(redis_client, "m")
    stream.join()
    made = Prefetch(stream, book=lambda: BOOK, batch_limit=10, block_ms=5)
    yield made
    made.close()


def push(client: redis.Redis, entries: int, raw: bytes = b"{}") -> None:
    with client.pipeline() as pipeline:
        for _ in range(entries):
            pipeline.xadd(STREAM, {"event": raw})
        pipeline.execute()


def in_hand(client: redis.Redis) -> int:
    pending = client.xpending(STREAM, GROUP)
    assert isinstance(pending, dict)
    return int(pending["pending"])


def test_one_batch_is_read_ahead_and_no_more(redis_client: redis.Redis, reader: Prefetch) -> None:
    push(redis_client, 45)
    assert len(reader.take().parsed) == 10
    wait_until(lambda: in_hand(redis_client) == 20, "reading ahead")
    assert len(reader.drain().parsed) == 10
    assert reader.drain().parsed == []
    assert in_hand(redis_client) == 20, "after draining nothing is read before it is asked for"
    assert [len(reader.take().parsed) for _ in range(4)] == [10, 10, 5, 0]


def test_what_comes_while_a_batch_waits_is_in_it(redis_client: redis.Redis, reader: Prefetch) -> None:
    push(redis_client, 1)
    assert len(reader.take().parsed) == 1
    push(redis_client, 2)
    wait_until(lambda: in_hand(redis_client) == 3, "reading ahead")
    push(redis_client, 3)
    wait_until(lambda: len(reader._read.parsed) == 5, "looking again")
    assert len(reader.take().parsed) == 5


def test_a_part_is_handed_over_while_the_next_one_is_parsed(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latency would else be that of all there is."""
    go_on, parsed = Event(), count(1)

    def parse_slowly(*arguments: Any) -> Any:
        assert next(parsed) == 1 or go_on.wait(timeout=40)
        return parse_entries(*arguments)

    monkeypatch.setattr("workers.prefetch.parse_entries", parse_slowly)
    stream = CallStream(redis_client, "m")
    stream.join()
    push(redis_client, 3 * PART)
    reader = Prefetch(stream, book=lambda: BOOK, batch_limit=1_000, block_ms=5)
    assert len(reader.take().parsed) == PART
    wait_until(
        lambda: in_hand(redis_client) == 3 * PART, "asking for the last part while the second one is parsed"
    )
    go_on.set()
    reader.drain()
    reader.close()


def test_in_a_backlog_batches_are_full(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones cost more for each event."""
    monkeypatch.setattr(prefetch, "BATCH_EVERY_S", 0.0)  # who takes is quicker than who reads
    limit = 4 * PART
    stream = CallStream(redis_client, "m")
    stream.join()
    push(redis_client, 10 * limit)
    reader = Prefetch(stream, book=lambda: BOOK, batch_limit=limit, block_ms=5)
    sizes = []
    while batch := reader.take().parsed:
        sizes.append(len(batch))
    reader.close()
    ends = list(accumulate(sizes))
    assert ends[-1] == 10 * limit
    # A backlog is known as such after as many; the last one is what is left.
    later = [size for size, end in zip(sizes, ends, strict=True) if end - size >= limit]
    assert set(later[:-1]) == {limit}


def test_a_batch_that_comes_too_soon_waits_and_is_looked_for_again(
    redis_client: redis.Redis, reader: Prefetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came while it waited is in it, whenever the reader looked last."""
    monkeypatch.setattr(prefetch, "POLL_EVERY_S", 3_600.0)
    monkeypatch.setattr(prefetch, "POLL_AT_LEAST_EVERY_S", 3_600.0)
    monkeypatch.setattr(prefetch, "BATCH_EVERY_S", 3_600.0)
    push(redis_client, 1)
    assert len(reader.take().parsed) == 1
    push(redis_client, 1)
    wait_until(lambda: len(reader._read.parsed) == 1, "reading ahead")
    push(redis_client, 3)
    monkeypatch.setattr("workers.prefetch.time.sleep", lambda _: None)  # the distance is over at once
    assert len(reader.take().parsed) == 4


def test_parts_of_different_price_books_are_left_to_be_priced_at_once(redis_client: redis.Redis) -> None:
    stream, versions = CallStream(redis_client, "m"), count(1)
    stream.join()
    reader = Prefetch(
        stream,
        book=lambda: PriceBook(next(versions), []),
        batch_limit=10,
        block_ms=5,
    )
    push(redis_client, 1)
    first = reader.take()
    push(redis_client, 1)
    wait_until(lambda: in_hand(redis_client) == 2, "reading ahead")
    push(redis_client, 1)
    wait_until(lambda: in_hand(redis_client) == 3, "looking again")
    second = reader.drain()
    reader.close()
    assert first.priced is not None
    assert first.priced.book_version == 1
    assert len(second.parsed) == 2
    assert second.priced is None


def test_where_nothing_comes_it_says_so_and_can_be_drained(reader: Prefetch) -> None:
    assert [len(reader.take().parsed) for _ in range(3)] == [0, 0, 0]
    assert reader.drain().parsed == []


def test_batches_don_t_follow_each_other_at_once_unless_they_are_full(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs as much as many events: so what comes one by one is gathered, but for what comes alone."""
    monkeypatch.setattr(prefetch, "BATCH_EVERY_S", 3_600.0)
    waits_s: list[float] = []
    monkeypatch.setattr(
        "workers.prefetch.time.sleep", waits_s.append
    )  # how long it would wait is what is looked at
    stream = CallStream(redis_client, "m")
    stream.join()
    reader = Prefetch(stream, book=lambda: BOOK, batch_limit=10, block_ms=5, monotonic=lambda: 7_200.0)
    push(redis_client, 1)
    assert len(reader.take().parsed) == 1
    assert not any(waits_s), "it came alone"
    push(redis_client, 1)
    assert len(reader.take().parsed) == 1
    assert [wait_s for wait_s in waits_s if wait_s] == [3_600.0]
    push(redis_client, 10)
    assert len(reader.take().parsed) == 10
    assert len([wait_s for wait_s in waits_s if wait_s]) == 1, "it is full"
    reader.close()


def test_what_was_read_before_redis_went_away_is_given_and_the_error_comes_next(
    redis_client: redis.Redis, reader: Prefetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsaid, what that read may have taken would be found late."""
    read, away, failed = CallStream.parts, Event(), Event()

    def read_or_fail(stream: CallStream, **limits: Any) -> Iterator[list[Entry]]:
        if away.is_set():
            failed.set()
            raise redis.ConnectionError("away for a moment")
        return read(stream, **limits)

    monkeypatch.setattr(CallStream, "parts", read_or_fail)
    assert reader.take().parsed == []
    push(redis_client, 1)
    wait_until(lambda: in_hand(redis_client) == 1, "reading ahead")
    away.set()
    assert failed.wait(timeout=10)
    away.clear()
    assert len(reader.take().parsed) == 1
    with pytest.raises(redis.ConnectionError, match="away"):
        reader.take()
    push(redis_client, 1)
    assert len(reader.take().parsed) == 1


def test_what_keeps_it_from_reading_is_raised_and_the_next_call_tries_again(
    redis_client: redis.Redis, reader: Prefetch
) -> None:
    push(redis_client, 3)
    redis_client.xgroup_destroy(STREAM, GROUP)
    with pytest.raises(redis.ResponseError, match="NOGROUP"):
        reader.take()
    CallStream(redis_client, "m").join()
    assert len(reader.take().parsed) == 3


def test_a_reader_that_fails_unforeseen_keeps_nobody_waiting(
    redis_client: redis.Redis, reader: Prefetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Prefetch, "_end_reading", fail)
    push(redis_client, 1)
    assert len(reader.take().parsed) == 1
    for give in (reader.take, reader.drain, reader.take):
        with pytest.raises(ReaderEndedError) as raised:
            give()
        assert isinstance(raised.value.__cause__, MemoryError)


def test_batches_of_large_events_are_small(redis_client: redis.Redis) -> None:
    """A backlog of them must not fill a meter's memory; small ones after them make large batches again."""
    size_bytes = 16_000
    push(redis_client, 1_500, b"x" * size_bytes)
    push(redis_client, 2_000)
    stream = CallStream(redis_client, "m")
    stream.join()
    reader = Prefetch(stream, book=lambda: BOOK, batch_limit=1_000, block_ms=5)
    sizes = []
    while batch := reader.take().parsed:
        sizes.append(len(batch))
    reader.close()
    small = -(-MAX_BATCH_BYTES // size_bytes // PART) * PART
    ends = list(accumulate(sizes))
    assert (
        max(size for size, end in zip(sizes, ends, strict=True) if end <= 1_500) <= small
    )  # from the first on
    assert max(sizes[-2:]) > 500
    assert sum(sizes) == 3_500


def test_an_error_while_a_batch_is_read_ahead_has_it_billed_not_found_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str] = []
    loads = 0
    claim, load = CallStream.claim, CurrentPrices.load

    def note(stream: CallStream, stream_ids: Sequence[str], *, min_idle_ms: int) -> list[Entry]:
        claimed.extend(stream_ids)
        return claim(stream, stream_ids, min_idle_ms=min_idle_ms)

    def load_or_fail(prices: CurrentPrices) -> None:
        nonlocal loads
        loads += 1  # once at the start, and once each turn: the first turn looks for what others left, the second bills
        if loads == 4:
            wait_until(lambda: site.in_hand() == {"m": 30}, "the first batch's ack, the second's reading")
            raise psycopg.OperationalError("away for a moment")
        load(prices)

    monkeypatch.setattr(CallStream, "claim", note)
    monkeypatch.setattr(CurrentPrices, "load", load_or_fail)
    monkeypatch.setattr(workers.current_prices, "PRICES_EVERY_S", 0.0)
    events = make_calls(60, seed=92)
    site.push_at_once(events)
    site.drain("m", batch_limit=30)
    assert loads > 4
    assert claimed == []
    assert_billed(site.engine, site.client, events)


def test_a_group_that_goes_while_a_batch_is_read_ahead_costs_no_call(site: Site) -> None:
    events = make_calls(60, seed=91, broken=False, conflicts=False)
    with site.meters("m", batch_limit=30):
        with site.engine.begin() as connection:
            lock = text("SELECT FROM accounts WHERE org_id = ANY(:org_ids) FOR NO KEY UPDATE")
            connection.execute(lock, {"org_ids": list(ORG_IDS)})
            site.push_at_once(events)
            wait_until(lambda: waits_for_lock(site.engine), "waiting for the orgs")
            wait_until(lambda: sum(site.in_hand().values()) == 60, "reading ahead")
            site.client.xgroup_destroy(STREAM, GROUP)
        site.push([encode(call_id=1_000_000)])
        site.wait_until_drained()
    assert_billed(site.engine, site.client, [*events, encode(call_id=1_000_000)])
