"""The switch: gates decide what starts, everything that ended is pushed once, in order, and recorded as it goes in."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.runtime.redis_connection import connect_redis
from metering.sandbox.telephony.calls import Attempt, Push
from metering.sandbox.telephony.signal_history import last_position
from metering.sandbox.telephony.switch import PIPELINE_LIMIT, Switch
from metering.signals.gates import Gates
from tests.waiting import wait_until

LIMIT_S = 30


def call(
    number: int, *, org_id: int = 1, at_s: float = 0, lasts_s: float = 0, direction: str = "inbound"
) -> list[Attempt | Push]:
    """A call that wants to start, and its event."""
    ended_s = at_s + lasts_s
    return [
        Attempt(at_s, org_id, number, direction, ended_s),
        Push(ended_s, b"%d" % number, org_id, number, "bolt", 60_000_000),
    ]


def calls(*times_s: float) -> list[Attempt | Push]:
    return [item for number, at_s in enumerate(times_s) for item in call(number, at_s=at_s)]


def set_gate(client: redis.Redis, org_id: int, balance_cents: int, version: int) -> None:
    Gates(client).follow([Balance(org_id, balance_cents, version)], system_clock())


@pytest.fixture
def open_gate(redis_client: redis.Redis) -> redis.Redis:
    """Redis with an open gate for org 1."""
    set_gate(redis_client, 1, 100, 1)
    return redis_client


def ran(client: redis.Redis, schedule: list[Attempt | Push]) -> Switch:
    """A switch that has worked off a schedule."""
    switch = Switch(client, sorted(schedule, key=lambda item: item.at_s))
    switch.start()
    switch.join(LIMIT_S)
    assert not switch.is_alive()
    return switch


def in_the_stream(client: redis.Redis) -> list[tuple[str, bytes]]:
    entries: Any = client.xrange("calls:completed")
    return [(stream_id.decode(), fields[b"event"]) for stream_id, fields in entries]


def test_every_event_goes_in_once_in_order_and_is_recorded(open_gate: redis.Redis) -> None:
    number = 2 * PIPELINE_LIMIT + 1
    switch = ran(open_gate, calls(*[0] * number, 0.05, 0.05, 0.1))
    entries = in_the_stream(open_gate)
    assert [raw for _, raw in entries] == [b"%d" % index for index in range(number + 3)]
    assert switch.stream_ids == {stream_id for stream_id, _ in entries}
    assert switch.first_and_last == (entries[0][0], entries[-1][0])
    assert switch.record.pushed == switch.record.orgs[1].calls == number + 3
    assert switch.error is None
    assert 0.1 <= switch.took_s < LIMIT_S


def test_nothing_goes_in_before_it_is_due(open_gate: redis.Redis) -> None:
    began_s = time.time()
    ran(open_gate, calls(0, 0.2, 0.4))
    pushed_s = [int(stream_id.split("-")[0]) / 1000 - began_s for stream_id, _ in in_the_stream(open_gate)]
    assert pushed_s[1] >= 0.199  # the server's clock counts whole milliseconds
    assert pushed_s[2] >= 0.399


def test_only_an_open_gate_lets_a_call_start_inbound_and_outbound_alike(redis_client: redis.Redis) -> None:
    set_gate(redis_client, 1, 1, 1)
    set_gate(redis_client, 2, 0, 1)  # exhausted at exactly 0
    redis_client.hset("gate:4", "state", "ajar")
    schedule = [
        item
        for org_id in (1, 2, 3, 4)  # org 3 has no gate
        for number, direction in ((1, "inbound"), (2, "outbound"), (3, "outbound"))
        for item in call(10 * org_id + number, org_id=org_id, direction=direction)
    ]
    switch = ran(redis_client, schedule)
    assert {raw for _, raw in in_the_stream(redis_client)} == {b"11", b"12", b"13"}
    assert set(switch.admissions.calls) == {(1, 11), (1, 12), (1, 13)}
    assert switch.admissions.directions == {"inbound": 3, "outbound": 6}
    assert sorted(refused.org_id for refused in switch.admissions.refusals) == [2] * 3 + [3] * 3 + [4] * 3
    assert switch.admissions.unanswered == 0
    assert switch.record.pushed == 3


def test_a_call_that_runs_is_not_cut_when_its_gate_closes(open_gate: redis.Redis) -> None:
    switch = Switch(
        open_gate, sorted([*call(1, lasts_s=0.6), *call(2, at_s=0.5)], key=lambda item: item.at_s)
    )
    switch.start()
    wait_until(lambda: switch.running == 1, limit_s=LIMIT_S)
    set_gate(open_gate, 1, 0, 2)
    closed_at = last_position(open_gate)
    switch.join(LIMIT_S)
    assert [raw for _, raw in in_the_stream(open_gate)] == [b"1"]
    assert switch.running == 0
    assert switch.admissions.calls[1, 1].asked_at < closed_at
    assert [refused.asked_at for refused in switch.admissions.refusals] == [closed_at]


def test_where_no_gate_can_be_asked_every_call_is_refused_and_it_goes_on() -> None:
    with connect_redis("unix:///nowhere/valkey.sock") as client:
        switch = ran(client, calls(0, 0.1))
    assert switch.admissions.unanswered == 2
    assert isinstance(switch.admissions.error, redis.ConnectionError)
    assert switch.admissions.calls == {}
    assert switch.admissions.directions == {}
    assert switch.error is None
    assert switch.first_and_last is None


def test_a_key_that_is_no_gate_is_no_answer(open_gate: redis.Redis) -> None:
    open_gate.set("gate:2", "in the way")
    switch = ran(open_gate, [*call(1, org_id=2), *call(2, org_id=1)])
    assert [raw for _, raw in in_the_stream(open_gate)] == [b"2"]
    assert switch.admissions.unanswered == 1
    assert isinstance(switch.admissions.error, redis.ResponseError)


def test_a_stop_ends_it_and_the_record_holds_what_is_in_the_stream(open_gate: redis.Redis) -> None:
    def endless() -> Iterator[Attempt | Push]:
        for number in itertools.count():
            yield from call(number, at_s=number / 1000)

    switch = Switch(open_gate, endless())
    switch.start()
    wait_until(lambda: switch.record.pushed >= 50, limit_s=LIMIT_S)
    switch.stop()
    assert not switch.is_alive()
    assert switch.record.pushed == open_gate.xlen("calls:completed")


def test_what_was_late_goes_out_as_soon_as_it_can(open_gate: redis.Redis) -> None:
    ran(open_gate, calls(*(index / 100_000 for index in range(10_000))))
    assert open_gate.xlen("calls:completed") == 10_000


def test_a_refusal_to_take_an_event_ends_it_and_is_kept(open_gate: redis.Redis) -> None:
    open_gate.set("calls:completed", "in the way")
    switch = ran(open_gate, calls(0, 60))
    assert isinstance(switch.error, redis.ResponseError)
    assert switch.record.pushed == 0
