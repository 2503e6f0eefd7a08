"""Holds: starting, renewing, cancelling, by the functions and by the product's own programs."""

import hashlib
import threading
from collections.abc import Iterator

import pytest
import redis

from metering.runtime.names import (
    ALL_HOLDS,
    HOLD_COUNTS,
    HOLDING_ORGS,
    HOLDS_REFUSED,
    hold_ends_key,
    holds_key,
)
from metering.runtime.redis_connection import connect_redis
from metering.signals.hold_library import CODE, LIBRARY, load_hold_library, loaded_version, version_of
from metering.signals.holds import MAX_CENTS, MAX_TTL_S, HoldOutcome, Holds, RefusedHold
from tests.signals.holding import (
    CLOCK,
    DAY_MS,
    START_MS,
    Telephony,
    holds_on_test_clock,
    load_on_test_clock,
    set_gate,
)

BIG = 2**63 - 1


@pytest.fixture
def telephony(redis_client: redis.Redis) -> Iterator[Telephony]:
    load_hold_library(redis_client)
    yield Telephony(redis_client)
    redis_client.function_flush()


@pytest.fixture
def clock(redis_client: redis.Redis) -> Iterator[redis.Redis]:
    load_on_test_clock(redis_client)
    yield redis_client
    redis_client.function_flush()


def test_a_call_takes_what_it_may_cost(telephony: Telephony, redis_client: redis.Redis) -> None:
    set_gate(redis_client, 42, balance_cents=100)
    assert telephony.call("call_start", 42, 7, 60, 720) == ["granted", 40, 60, 1]
    assert telephony.call("call_start", 42, 8, 60, 720) == ["insufficient", 40, 60, 1]
    assert telephony.call("call_start", 42, 7, 99, 720) == ["granted", 40, 60, 1]  # changes nothing
    assert telephony.call("call_renew", 42, 7, 100, 720) == ["granted", 0, 100, 1]
    assert telephony.call("call_renew", 42, 7, 101, 720) == ["insufficient", 0, 100, 1]
    assert telephony.call("call_renew", 42, 7, 30, 720) == ["granted", 70, 30, 1]
    assert telephony.call("call_renew", 42, 8, 70, 720) == ["granted", 0, 100, 2]  # not known: made anew
    assert telephony.call("call_cancel", 42, 7) == ["ended", 30, 70, 1]
    assert telephony.call("call_cancel", 42, 7) == ["ended", 30, 70, 1]
    assert telephony.call("call_start", 42, 7, 30, 720) == ["granted", 0, 100, 2]
    assert redis_client.hgetall(HOLD_COUNTS) == {b"started": b"3", b"insufficient": b"2"}
    assert redis_client.smembers(HOLDING_ORGS) == {b"42"}


@pytest.mark.parametrize(
    ("state", "starts", "renews_unknown", "renews_known"),
    [
        ("open", "granted", "granted", "granted"),
        ("exhausted", "exhausted", "granted", "granted"),
        ("suspended", "suspended", "suspended", "granted"),
        ("what", "exhausted", "granted", "granted"),
        (None, "exhausted", "exhausted", "insufficient"),
    ],
)
def test_only_an_open_gate_lets_a_call_start(
    telephony: Telephony,
    redis_client: redis.Redis,
    state: str | None,
    starts: str,
    renews_unknown: str,
    renews_known: str,
) -> None:
    set_gate(redis_client, 1)
    assert telephony.call("call_start", 1, 1, 10, 60)[0] == "granted"
    redis_client.delete("gate:1")
    if state is not None:
        set_gate(redis_client, 1, state)
    assert telephony.call("call_start", 1, 2, 10, 60)[0] == starts
    assert telephony.call("call_renew", 1, 3, 10, 60)[0] == renews_unknown
    assert telephony.call("call_renew", 1, 1, 20, 60)[0] == renews_known
    assert telephony.call("call_renew", 1, 1, 10, 60)[0] == "granted"  # it takes nothing


def test_an_org_runs_no_more_calls_than_it_may(clock: redis.Redis) -> None:
    telephony = Telephony(clock)
    set_gate(clock, 1, most=2)
    assert [telephony.call("call_start", 1, call, 1, 60)[0] for call in (1, 2, 3)] == [
        "granted",
        "granted",
        "too_many_calls",
    ]
    assert telephony.call("call_renew", 1, 3, 1, 120)[0] == "granted"  # it runs already
    clock.set(CLOCK, START_MS + 60_000)  # the first two are lapsed, and still held
    assert telephony.call("call_start", 1, 4, 1, 60) == ["granted", 996, 4, 2]
    set_gate(clock, 1, most=0)
    assert telephony.call("call_start", 1, 5, 1, 60)[0] == "too_many_calls"


def test_a_lapsed_hold_counts_for_a_day(clock: redis.Redis) -> None:
    telephony, holds = Telephony(clock), holds_on_test_clock(clock)
    set_gate(clock, 1)
    telephony.call("call_start", 1, 1, 10, 60)
    telephony.call("call_start", 1, 2, 20, 60)
    clock.set(CLOCK, START_MS + 60_000)
    assert telephony.call("call_renew", 1, 3, 0, 90_000) == ["granted", 970, 30, 1]
    assert telephony.call("call_renew", 1, 2, 25, 90_000) == ["granted", 965, 35, 2]  # it runs after all
    clock.set(CLOCK, START_MS + 60_000 + DAY_MS - 1)
    [totals] = holds.totals([1])
    assert (totals.held_cents, totals.running_calls, totals.lapsed_calls) == (35, 2, 1)
    clock.set(CLOCK, START_MS + 60_000 + DAY_MS)
    assert [hold.call_id for hold in holds.calls(1).holds] == [2, 3]
    assert holds.find(1, 1) is None
    [totals] = holds.totals([1])
    assert (totals.held_cents, totals.running_calls, totals.lapsed_calls) == (25, 2, 0)
    assert clock.hget(holds_key(1), 1) is None


def test_more_than_one_call_forgets_are_gone_all_the_same(clock: redis.Redis) -> None:
    telephony = Telephony(clock)
    set_gate(clock, 1, balance_cents=1_000)
    for call in range(1, 251):
        telephony.call("call_start", 1, call, 1, 60)
    clock.set(CLOCK, START_MS + 60_000 + DAY_MS)
    assert telephony.call("call_renew", 1, 250, 5, 60)[0] == "granted"
    assert telephony.call("call_start", 1, 251, 0, 60)[0] == "granted"
    assert telephony.call("call_start", 1, 252, 0, 60) == ["granted", 995, 5, 3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("0", "1", "60"), "CALL_ID must be an integer from 1 to"),
        (("007", "1", "60"), "CALL_ID"),
        (("-1", "1", "60"), "CALL_ID"),
        (("1.0", "1", "60"), "CALL_ID"),
        ((str(2**63), "1", "60"), "CALL_ID"),
        (("9" * 20, "1", "60"), "CALL_ID"),
        (("1", "-1", "60"), "CENTS must be an integer from 0 to 9007199254740991"),
        (("1", "1.5", "60"), "CENTS"),
        (("1", "1e3", "60"), "CENTS"),
        (("1", str(2**53), "60"), "CENTS"),
        (("1", "9" * 17, "60"), "CENTS"),
        (("1", "1", "0"), "TTL_SECONDS must be an integer from 1 to 691200"),
        (("1", "1", str(MAX_TTL_S + 1)), "TTL_SECONDS"),
        (("1", "1", "inf"), "TTL_SECONDS"),
        (("1", "1"), "the arguments must be CALL_ID CENTS TTL_SECONDS"),
        (("1", "1", "60", "more"), "the arguments must be"),
    ],
)
def test_what_no_hold_can_be_is_refused(
    telephony: Telephony, redis_client: redis.Redis, arguments: tuple[str, ...], said: str
) -> None:
    set_gate(redis_client, 1)
    for function in ("call_start", "call_renew"):
        with pytest.raises(redis.ResponseError, match=said):
            telephony.call(function, 1, *arguments)
    assert redis_client.keys(ALL_HOLDS) == []


@pytest.mark.parametrize(
    "keys",
    [
        ["holds:1"],
        ["holds:1", "holds:2:ends"],
        ["holds:0", "holds:0:ends"],
        ["holds:x", "holds:x:ends"],
        ["gate:1", "gate:1:ends"],
        ["threshold:1", "threshold:1:ends"],
        ["holds:1", "holds:1:ends", "holds:3"],
    ],
)
def test_only_an_orgs_keys_are_taken(
    telephony: Telephony, redis_client: redis.Redis, keys: list[str]
) -> None:
    with pytest.raises(redis.ResponseError, match="the keys must be 2 holds:ORG_ID holds:ORG_ID:ends"):
        redis_client.fcall("call_start", len(keys), *keys, "1", "1", "60")
    with pytest.raises(redis.ResponseError, match="the argument must be CALL_ID"):
        redis_client.fcall("call_cancel", 2, "holds:1", "holds:1:ends")


def test_a_cells_keys_stay_together(telephony: Telephony, redis_client: redis.Redis) -> None:
    redis_client.hset("{c3}:gate:7", mapping={"state": "open", "balance_cents": 5})
    for call in (1, 2):
        redis_client.fcall("call_start", 2, "{c3}:holds:7", "{c3}:holds:7:ends", str(call), "5", "60")
    assert redis_client.dbsize() == len(redis_client.keys("{c3}:*"))
    assert redis_client.hget("{c3}:holds:refused", "7") is not None


def test_numbers_are_exact(telephony: Telephony, redis_client: redis.Redis) -> None:
    set_gate(redis_client, BIG, balance_cents=MAX_CENTS)
    assert telephony.call("call_start", BIG, BIG, MAX_CENTS - 1, 60) == ["granted", 1, MAX_CENTS - 1, 1]
    assert telephony.call("call_start", BIG, BIG - 1, 1, 60) == ["granted", 0, MAX_CENTS, 2]
    assert telephony.call("call_start", BIG, BIG - 2, 1, 60)[0] == "insufficient"
    assert telephony.call("call_cancel", BIG, BIG) == ["ended", MAX_CENTS - 1, 1, 1]
    assert {hold.call_id for hold in Holds(redis_client).calls(BIG).holds} == {BIG - 1}
    set_gate(redis_client, BIG, balance_cents=BIG)  # counts as the most that is exact
    assert telephony.call("call_start", BIG, 1, MAX_CENTS, 60)[0] == "insufficient"
    set_gate(redis_client, BIG, "exhausted", balance_cents=-BIG)
    assert telephony.call("call_renew", BIG, 1, 1, 60)[0] == "insufficient"


def test_a_refusal_for_want_of_money_is_left_for_the_jobs(
    telephony: Telephony, redis_client: redis.Redis
) -> None:
    holds = Holds(redis_client)
    set_gate(redis_client, 1, balance_cents=7)
    assert holds.refused() == []
    telephony.call("call_start", 1, 1, 8, 60)
    telephony.call("call_start", 1, 2, 9, 60)
    [note] = holds.refused()
    assert (note.org_id, note.call_id, note.cents) == (1, 1, 8)
    holds.forget_refused([RefusedHold(1, 1, 8, note.at_ms - 1)])  # another note
    assert holds.refused() == [note]
    holds.forget_refused([note])
    assert holds.refused() == []
    telephony.call("call_renew", 1, 3, 10, 60)
    assert [each.call_id for each in holds.refused()] == [3]
    for field, text in {
        "x": "1 2 3",
        "2": "nothing",
        "3": f"1 {2**63} 3",
        "0": "1 2 3",
        str(2**63): "1 2 3",
        "9" * 5_000: "1 2 3",
    }.items():
        redis_client.hset(HOLDS_REFUSED, field, text)
    assert [each.org_id for each in holds.refused()] == [1]
    assert redis_client.hkeys(HOLDS_REFUSED) == [b"1"]  # what is none would stand before others for ever
    assert holds.start(5, 1, 1, 60).outcome is HoldOutcome.EXHAUSTED
    set_gate(redis_client, 5, balance_cents=1)
    assert holds.start(5, 1, 2, 60).outcome is HoldOutcome.INSUFFICIENT
    assert [each.org_id for each in holds.refused()] == [1]  # who asks by a program of ours writes his own


def test_the_products_programs_keep_terms_with_a_hold(redis_client: redis.Redis) -> None:
    holds = Holds(redis_client)
    set_gate(redis_client, 1, balance_cents=100)
    first = holds.start(1, 7, 60, 720, '{"tier": "bolt"}')
    assert (first.outcome, first.available_cents, first.held_cents, first.running_calls) == (
        "granted",
        40,
        60,
        1,
    )
    assert first.is_new
    assert first.hold is not None
    assert first.hold.terms == '{"tier": "bolt"}'
    assert first.hold.ends_ms == first.now_ms + 720_000
    assert first.hold.since_ms == first.now_ms
    again = holds.start(1, 7, 10, 5, "other")
    assert again.outcome is HoldOutcome.GRANTED
    assert not again.is_new
    assert again.hold == first.hold == holds.find(1, 7)
    refused = holds.renew(1, 7, 101, 720, "more")
    assert refused.outcome is HoldOutcome.INSUFFICIENT
    assert refused.hold == first.hold
    renewed = holds.renew(1, 7, 100, 900, "more")
    assert renewed.hold is not None
    assert (renewed.hold.terms, renewed.hold.cents, renewed.hold.since_ms) == (
        "more",
        100,
        first.hold.since_ms,
    )
    assert holds.calls(1).holds == [renewed.hold]
    assert holds.dismiss(1, 7) is None  # it runs
    assert list(holds.org_ids()) == [[1]]
    cancelled = holds.cancel(1, 7)
    assert (cancelled.outcome, cancelled.hold, cancelled.available_cents) == (HoldOutcome.ENDED, None, 100)
    assert holds.calls(1).holds == []
    with pytest.raises(redis.ResponseError, match="CENTS"):
        holds.start(1, 8, -1, 60)


def test_only_a_lapsed_hold_is_dismissed(clock: redis.Redis) -> None:
    holds = holds_on_test_clock(clock)
    set_gate(clock, 1)
    hold = holds.start(1, 7, 60, 720, "x").hold
    assert holds.dismiss(1, 7) is None
    clock.set(CLOCK, START_MS + 720_000)
    assert hold is not None
    assert hold.lapsed(START_MS + 720_000)
    assert holds.dismiss(1, 7) == hold
    assert holds.dismiss(1, 7) is None
    assert holds.totals([1])[0].held_cents == 0


def test_keys_that_nothing_is_in_expire(telephony: Telephony, redis_client: redis.Redis) -> None:
    set_gate(redis_client, 1)
    telephony.call("call_start", 1, 1, 1, 600)
    for key in (holds_key(1), hold_ends_key(1)):
        assert 86_400 + 600 < redis_client.ttl(key) <= 86_400 + 600 + 3_600
    telephony.call("call_start", 1, 2, 1, 600)
    telephony.call("call_start", 1, 3, 1, MAX_TTL_S)
    for key in (holds_key(1), hold_ends_key(1)):
        assert redis_client.ttl(key) > 86_400 + MAX_TTL_S - 5


def test_the_library_is_replaced_by_a_newer_one_only(redis_client: redis.Redis) -> None:
    redis_client.function_flush()
    newer = CODE.replace(f"local VERSION = {version_of(CODE)}\n", "local VERSION = 1000\n")
    assert loaded_version(redis_client) is None
    assert load_hold_library(redis_client)
    assert not load_hold_library(redis_client)
    assert load_hold_library(redis_client, newer)
    assert loaded_version(redis_client) == 1_000
    assert not load_hold_library(redis_client)
    assert loaded_version(redis_client) == 1_000
    redis_client.function_flush()
    redis_client.function_load(f"#!lua name={LIBRARY}\nredis.register_function('other', function() end)")
    assert load_hold_library(redis_client)
    redis_client.function_flush()
    redis_client.function_load("#!lua name=stranger\nredis.register_function('call_start', function() end)")
    with pytest.raises(redis.ResponseError, match="call_start"):
        load_hold_library(redis_client)
    redis_client.function_flush()


def test_a_library_that_has_changed_has_a_higher_version() -> None:
    """Or servers would keep the one before. Whoever changes it raises VERSION in holds_library.lua, and writes both here."""
    assert (version_of(CODE), hashlib.sha256(CODE.encode()).hexdigest()) == (
        2,
        "a7f23088ebe2229826133cd295a6ce4505b43d927bf539f6363f4e66f460f998",
    )


def test_thirty_calls_at_once_on_money_for_one(redis_url: str, telephony: Telephony) -> None:
    """Each on a connection of its own: one is granted. On money for ten and a bit: ten."""
    with connect_redis(redis_url) as client:
        set_gate(client, 1, balance_cents=8)
        set_gate(client, 2, balance_cents=87)
    outcomes: dict[int, list[str]] = {1: [], 2: []}
    ready = threading.Barrier(30)

    def start(call_id: int) -> None:
        with connect_redis(redis_url) as client:
            client.ping()
            for org_id, found in outcomes.items():
                ready.wait(30)
                found.append(Telephony(client).call("call_start", org_id, call_id, 8, 60)[0])

    threads = [threading.Thread(target=start, args=(call_id,)) for call_id in range(1, 31)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes[1]) == ["granted"] + ["insufficient"] * 29
    assert sorted(outcomes[2]) == ["granted"] * 10 + ["insufficient"] * 20


def test_without_memory_calls_end_and_none_starts(telephony: Telephony, redis_client: redis.Redis) -> None:
    set_gate(redis_client, 1)
    telephony.call("call_start", 1, 1, 10, 60)
    telephony.call("call_start", 1, 2, 10, 60)
    limit = redis_client.config_get("maxmemory")["maxmemory"]
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            telephony.call("call_start", 1, 3, 10, 60)
        assert telephony.call("call_cancel", 1, 1) == ["ended", 990, 10, 1]
        assert Holds(redis_client).cancel(1, 2).held_cents == 0
    finally:
        redis_client.config_set("maxmemory", limit or "0")
