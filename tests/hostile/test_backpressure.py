"""More than a meter can take: it takes a part at a time, loses nothing, and the rest shows as lag and age."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from db.postgres.engine import make_engine
from metering.client import InvalidField, MeteringClient
from metering.rules.events import MAX_EVENT_BYTES
from metering.runtime.names import STREAM
from metering.trials.chaos.memory import peak_kib
from tests.conftest import Database
from tests.spine.billing import rejections
from tests.workers.calls import assert_billed, encode, make_calls, prepare_ledger, read_all
from tests.workers.processes import Site, wait_until
from workers.meter import BATCH_LIMIT
from workers.metrics import BacklogCollector
from workers.stream import MAX_BATCH_BYTES, PART, CallStream, backlog

MIB = 1_048_576


@pytest.fixture
def site(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A database of the test's own, and this test process's Valkey."""
    with Site(database.url, redis_url, tmp_path) as made:
        prepare_ledger(made.engine)
        yield made


def told(client: redis.Redis) -> dict[str, float]:
    """What Prometheus is told of the stream."""
    return {
        sample.name.removeprefix("metering_stream_"): sample.value
        for metric in BacklogCollector(client).collect()
        for sample in metric.samples
    }


def peak_mib(pid: int) -> float:
    peak = peak_kib(pid)
    assert peak is not None
    return peak / 1_024


@pytest.mark.parametrize("size_bytes", [200, 16_000, 400_000])
def test_what_is_read_at_once_is_bounded_by_bytes(redis_client: redis.Redis, size_bytes: int) -> None:
    """From the first read on, and where small ones come before the large ones."""
    stream = CallStream(redis_client, "m")
    stream.join()
    with redis_client.pipeline(transaction=False) as pipeline:
        for number in range(PART + 120):
            pipeline.xadd(STREAM, {"event": b"{}" if number < PART else b"x" * size_bytes})
        pipeline.execute()
    taken = 0
    while entries := read_all(stream, limit=BATCH_LIMIT):
        taken += len(entries)
        assert sum(len(entry.raw) for entry in entries) < MAX_BATCH_BYTES + PART * size_bytes
    assert taken == PART + 120


@pytest.mark.long
def test_while_postgres_is_locked_a_meter_takes_a_part_and_the_rest_shows(site: Site) -> None:
    events = make_calls(20_000, seed=6, broken=False, conflicts=False)
    site.push(events[:100])
    meter = site.start("m")
    site.wait_until_drained()
    before_mib = peak_mib(meter.pid)
    stranger = make_engine(site.database_url, application_name="stranger")
    with stranger.begin() as holding:
        holding.execute(text("SELECT org_id FROM accounts ORDER BY org_id FOR UPDATE"))
        site.push(events[100:])
        wait_until(lambda: told(site.client)["oldest_event_seconds"] > 2, "waiting")
        seen = told(site.client)
        assert 0 < seen["pending_events"] <= 4 * BATCH_LIMIT
        assert seen["lag_events"] + seen["pending_events"] == len(events) - 100
        assert seen["lag_events"] > len(events) / 2
    stranger.dispose()
    site.wait_until_drained(limit_s=90)
    assert told(site.client) == {"lag_events": 0, "pending_events": 0, "oldest_event_seconds": 0}
    assert_billed(site.engine, site.client, events)
    assert peak_mib(meter.pid) - before_mib < 100


@pytest.mark.long
def test_a_backlog_of_huge_events_does_not_fill_a_meters_memory(site: Site) -> None:
    """Pushed past our own `push`, which refuses them: half a gigabyte, in the midst of calls, some left by a meter that died."""
    size_bytes, number = 900_000, 600
    calls = [encode(call_id=call_id) for call_id in range(1, 301)]
    site.push(calls[:100])
    meter = site.start("m")
    site.wait_until_drained()
    before_mib = peak_mib(meter.pid)
    meter.stop()
    for first in range(0, number, 20):
        site.push(calls[100 + first // 3 : 100 + (first + 20) // 3])
        site.push([b'{"x":"' + b"x" * size_bytes + b'%05d"}' % n for n in range(first, first + 20)])
    dead = CallStream(site.client, "dead")
    for _ in range(4):
        assert read_all(dead, limit=BATCH_LIMIT)
    meter = site.start("dead")  # has them again
    site.wait_until_drained(limit_s=100)
    grown_mib = peak_mib(meter.pid) - before_mib
    assert grown_mib < 300 < number * size_bytes / MIB
    kept = rejections(site.engine)
    assert {(row.reason, row.raw_length_bytes) for row in kept} == {("too_large", size_bytes + 13)}
    assert (len(kept), len({bytes(row.raw_sha256) for row in kept})) == (number, number)
    assert {len(row.raw) for row in kept} == {64 * 1_024}
    with site.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM transactions")) == len(calls)


def test_the_client_refuses_what_no_server_takes(redis_url: str) -> None:
    with MeteringClient(redis_url) as client:
        call = {
            "call_id": 1,
            "org_id": 1,
            "tier": "bolt",
            "direction": "outbound",
            "duration_seconds": 1,
            "ended_at": "2026-04-20T18:25:06.201Z",
        }
        client.push(call | {"metadata": {"x": "x" * (MAX_EVENT_BYTES + 1)}})  # for the meter to keep
        with pytest.raises(InvalidField, match=r"^event is 1000\d\d\d bytes long"):
            client.push(call | {"metadata": {"x": "x" * 1_000_000}})
    with redis.Redis.from_url(redis_url) as raw:
        assert raw.xlen(STREAM) == backlog(raw).length == 1
        with pytest.raises((redis.ResponseError, redis.ConnectionError)):
            raw.xadd(STREAM, {"event": b"x" * (MIB + 1)})
