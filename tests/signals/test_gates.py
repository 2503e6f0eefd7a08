"""Gates follow balances, never backwards, and every change of state is said once (docs/reference/gate.md)."""

import json
import random
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from metering.rules.gates import Balance, GateState, SignalType, gate_state
from metering.runtime.names import SIGNALS_CHANNEL, SIGNALS_LOG
from metering.signals.gates import MAX_VERSION, Gate, Gates, Signal
from tests.signals.listening import EXHAUSTED, RESTORED, gate, listening, said_of, signals_log

AT = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)


@pytest.mark.parametrize(("balance_cents", "state"), [(1, "open"), (0, "exhausted"), (-1, "exhausted")])
def test_an_org_is_exhausted_at_zero_and_below(balance_cents: int, state: str) -> None:
    assert gate_state(balance_cents, suspended=False) == GateState(state)
    assert gate_state(balance_cents, suspended=True) == GateState.SUSPENDED


def test_a_gate_says_state_balance_and_version(redis_client: redis.Redis) -> None:
    Gates(redis_client).follow([Balance(42, -3, 17)], AT)
    assert gate(redis_client, 42) == {"state": "exhausted", "balance_cents": "-3", "version": "17"}


def test_a_change_of_state_is_said_on_the_channel_and_in_the_log(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    with listening(redis_client) as pubsub:
        assert gates.follow([Balance(42, 5, 16)], AT) == [Signal(42, SignalType.RESTORED)]
        assert gates.follow([Balance(42, -3, 17)], AT) == [Signal(42, SignalType.EXHAUSTED)]
        heard = []
        while (message := pubsub.get_message(timeout=0.2)) is not None:
            heard.append(json.loads(message["data"]))
    at = "2026-04-20T18:25:06.201Z"
    assert heard == signals_log(redis_client)
    assert heard == [
        {
            "type": "balance.restored",
            "org_id": 42,
            "state": "open",
            "balance_cents": 5,
            "version": 16,
            "at": at,
        },
        {
            "type": "balance.exhausted",
            "org_id": 42,
            "state": "exhausted",
            "balance_cents": -3,
            "version": 17,
            "at": at,
        },
    ]


def test_nothing_is_said_where_the_state_stays(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    assert gates.follow([Balance(1, 0, 1)], AT) == []  # a missing gate counts as exhausted
    assert gates.follow([Balance(1, -10, 2)], AT) == []
    assert gates.follow([Balance(1, 10, 3), Balance(2, 10, 1)], AT) != []
    assert gates.follow([Balance(1, 5, 4), Balance(2, 10, 1)], AT) == []
    assert said_of(redis_client, 1) == [RESTORED]


@given(versions=st.permutations(range(1, 8)))
def test_an_older_version_never_wins(redis_client: redis.Redis, versions: list[int]) -> None:
    redis_client.flushall()
    gates = Gates(redis_client)
    for version in versions:
        gates.follow([Balance(7, version - 4, version)], AT)
    assert gate(redis_client, 7) == {"state": "open", "balance_cents": "3", "version": "7"}
    said = signals_log(redis_client)
    assert [signal["version"] for signal in said] == sorted(signal["version"] for signal in said)
    assert all(first["type"] != then["type"] for first, then in pairwise(said))


def test_numbers_beyond_what_doubles_hold_stay_exact(redis_client: redis.Redis) -> None:
    Gates(redis_client).follow([Balance(2**63 - 1, 2**63 - 1, 2**53)], AT)
    assert gate(redis_client, 2**63 - 1)["balance_cents"] == str(2**63 - 1)
    assert signals_log(redis_client)[0]["org_id"] == 2**63 - 1
    assert signals_log(redis_client)[0]["balance_cents"] == 2**63 - 1


@pytest.mark.parametrize(
    "garbage", [("SET", "gate:1", "x"), ("HSET", "gate:1", "version", "x"), ("HSET", "gate:1", "state", "?")]
)
def test_garbage_in_a_gate_is_overwritten_and_spoils_no_batch(
    redis_client: redis.Redis, garbage: tuple[str, ...]
) -> None:
    redis_client.execute_command(*garbage)  # type: ignore[no-untyped-call]
    gates = Gates(redis_client)
    assert gates.read([1])[0].version is None
    gates.follow([Balance(1, 5, 3), Balance(2, 5, 3)], AT)
    assert (
        gate(redis_client, 1)
        == gate(redis_client, 2)
        == {"state": "open", "balance_cents": "5", "version": "3"}
    )


def test_the_log_is_capped(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metering.signals.gates.SIGNALS_LOG_LENGTH", 100)
    gates = Gates(redis_client)
    for version in range(1, 1001):
        gates.follow([Balance(1, version % 2, version)], AT)
    assert 100 <= redis_client.xlen(SIGNALS_LOG) < 300
    assert signals_log(redis_client)[-1]["version"] == 1000


@pytest.mark.parametrize(
    "version",
    [
        *(
            "nan",
            "inf",
            "1e999",
            "0x7fffffff",
            "17.5",
            "100000000000000000",
            "",
            "-1",
            "+5",
            " 5",
            "5\n",
            "1_000",
        ),
        *(str(MAX_VERSION + 1), str(2**63 - 1), "9" * 5_000, "\u0665"),
    ],
)
def test_a_version_that_does_not_count_is_as_good_as_missing(redis_client: redis.Redis, version: str) -> None:
    redis_client.hset("gate:1", mapping={"state": "exhausted", "balance_cents": "0", "version": version})
    gates = Gates(redis_client)
    assert gates.read([1])[0].version is None
    assert gates.follow([Balance(1, 5, 3)], AT) == [Signal(1, SignalType.RESTORED)]
    assert gate(redis_client, 1) == {"state": "open", "balance_cents": "5", "version": "3"}


@pytest.mark.parametrize(
    ("text", "version"), [("0", 0), (str(MAX_VERSION), MAX_VERSION), ("0017", 17), ("0" * 5_000 + "17", 17)]
)
def test_a_version_that_counts_does_so_in_lua_as_in_python(
    redis_client: redis.Redis, text: str, version: int
) -> None:
    redis_client.hset("gate:1", mapping={"state": "exhausted", "balance_cents": "0", "version": text})
    gates = Gates(redis_client)
    assert gates.read([1])[0].version == version
    assert gates.follow([Balance(1, 5, version)], AT) == []
    assert gate(redis_client, 1)["version"] == text
    assert gates.follow([Balance(1, 5, version + 1)], AT) != []
    assert gate(redis_client, 1)["version"] == str(version + 1)


def test_keys_that_no_org_can_have_are_no_gates(redis_client: redis.Redis) -> None:
    for spelling in (
        *("0", "-1", "+1", "007", " 7", "7 ", "1_0", "x", "", "1e3", "\u0667"),
        *(str(2**63), "9" * 20, "9" * 5_000),
        *("7", str(2**63 - 1)),
    ):
        redis_client.hset(f"gate:{spelling}", "state", "open")
    assert sorted(org_id for page in Gates(redis_client).org_ids() for org_id in page) == [7, 2**63 - 1]


def test_a_signal_that_the_log_did_not_take_is_said_later(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    gates.follow([Balance(1, 5, 1), Balance(2, 0, 1)], AT)
    redis_client.set(SIGNALS_LOG, "somebody else's")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        gates.follow([Balance(1, 0, 2), Balance(2, -5, 2)], AT)
    assert gate(redis_client, 1)["version"] == "1"
    assert gate(redis_client, 2)["version"] == "2"  # it had nothing to say
    redis_client.delete(SIGNALS_LOG)
    assert gates.follow([Balance(1, 0, 2), Balance(2, -5, 2)], AT) == [Signal(1, SignalType.EXHAUSTED)]
    assert said_of(redis_client, 1) == [EXHAUSTED]
    assert gate(redis_client, 1)["state"] == "exhausted"


def test_a_stray_whose_signal_the_log_did_not_take_is_closed_later(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    gates.follow([Balance(9, 5, 3)], AT)
    redis_client.set(SIGNALS_LOG, "somebody else's")
    done = gates.close_orphan(gates.read([9])[0], AT)
    assert (done.written, done.failed, done.signals) == (0, 1, [])
    assert "WRONGTYPE" in done.error
    redis_client.delete(SIGNALS_LOG)
    assert gates.close_orphan(gates.read([9])[0], AT).written == 1
    assert said_of(redis_client, 9) == [EXHAUSTED]


def test_gates_follow_where_the_channel_is_forbidden(redis_client: redis.Redis, redis_url: str) -> None:
    redis_client.execute_command(  # type: ignore[no-untyped-call]
        *("ACL", "SETUSER", "mute", "on", "nopass", "~*", "+@all", "resetchannels")
    )
    try:
        with redis.Redis.from_url(redis_url, username="mute", password="") as mute:
            assert len(Gates(mute).follow([Balance(1, 5, 1), Balance(2, 5, 1)], AT)) == 2
    finally:
        redis_client.execute_command("ACL", "DELUSER", "mute")  # type: ignore[no-untyped-call]
    assert [gate(redis_client, org_id)["state"] for org_id in (1, 2)] == ["open", "open"]
    assert [signal["org_id"] for signal in signals_log(redis_client)] == [1, 2]


def test_a_gate_that_fails_keeps_no_other_from_being_followed(redis_client: redis.Redis) -> None:
    redis_client.set("gate:2", "x")
    gates = Gates(redis_client)
    redis_client.config_set("maxmemory", 1)
    try:
        # Gate 1 is refused for want of memory. Removing what isn't a gate is not, nor what the same script writes after that.
        done = gates.try_to_follow([Balance(1, 5, 1), Balance(2, 5, 1), Balance(3, 5, 1)], AT)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert (done.written, done.failed, len(done.signals)) == (2, 1, 2)
    assert "OOM" in done.error
    assert gate(redis_client, 1) == {}
    assert [gate(redis_client, org_id)["state"] for org_id in (2, 3)] == ["open", "open"]


def test_what_was_written_is_counted_apart_from_what_was_said(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    done = gates.try_to_follow([Balance(1, 5, 2), Balance(2, 0, 2)], AT)
    assert (done.written, done.failed, done.error, len(done.signals)) == (2, 0, "", 1)
    done = gates.try_to_follow([Balance(1, 5, 1), Balance(2, 0, 2)], AT)
    assert (done.written, done.failed, done.signals) == (0, 0, [])


def test_a_stray_is_closed_only_as_it_was_read(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    gates.follow([Balance(9, 5, 3)], AT)
    [read] = gates.read([9])
    gates.follow([Balance(9, 6, 4)], AT)
    assert gates.close_orphan(read, AT).written == 0
    assert gates.close_orphan(Gate(9, None, None, None), AT).written == 0  # as if it had had no version
    done = gates.close_orphan(gates.read([9])[0], AT)
    assert (done.written, done.signals) == (1, [Signal(9, SignalType.EXHAUSTED)])
    assert gate(redis_client, 9) == {"state": "exhausted", "balance_cents": "0", "version": "5"}
    assert signals_log(redis_client)[-1] == {
        "type": EXHAUSTED,
        "org_id": 9,
        "state": "exhausted",
        "balance_cents": 0,
        "version": 5,
        "at": "2026-04-20T18:25:06.201Z",
    }
    assert gates.close_orphan(gates.read([9])[0], AT).written == 0


@pytest.mark.parametrize("version", [None, "nonsense", "1e999", str(2**63 - 1)])
def test_a_stray_without_a_version_is_closed_unless_it_gets_one(
    redis_client: redis.Redis, version: str | None
) -> None:
    redis_client.hset("gate:9", "state", "open")
    if version is not None:
        redis_client.hset("gate:9", "version", version)
    gates = Gates(redis_client)
    [read] = gates.read([9])
    redis_client.hset("gate:9", "version", 0)
    assert gates.close_orphan(read, AT).written == 0
    redis_client.hset("gate:9", "version", version or "")
    assert len(gates.close_orphan(read, AT).signals) == 1
    assert gate(redis_client, 9) == {"state": "exhausted", "balance_cents": "0", "version": "1"}


def test_a_stray_that_is_no_gate_at_all_is_closed_and_one_that_is_gone_stays_gone(
    redis_client: redis.Redis,
) -> None:
    redis_client.set("gate:9", "open")
    gates = Gates(redis_client)
    [read] = gates.read([9])
    assert gates.close_orphan(read, AT).written == 1
    assert gate(redis_client, 9) == {"state": "exhausted", "balance_cents": "0", "version": "1"}
    redis_client.delete("gate:9")
    assert gates.close_orphan(read, AT).written == 0
    assert gate(redis_client, 9) == {}


def test_the_highest_version_is_raised_exactly(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    gates.follow([Balance(9, 5, MAX_VERSION)], AT)
    assert gates.close_orphan(gates.read([9])[0], AT).written == 1
    assert gate(redis_client, 9)["version"] == str(MAX_VERSION + 1)


def test_reading_many_gates_keeps_their_order(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    org_ids = random.Random(1).sample(range(1, 10_000), 2_500)
    gates.follow([Balance(org_id, org_id, 1) for org_id in org_ids], AT)
    assert [held.balance_cents for held in gates.read(org_ids)] == org_ids
    found: list[Any] = [org_id for page in gates.org_ids() for org_id in page]
    assert sorted(set(found)) == sorted(org_ids)
    assert SIGNALS_CHANNEL not in {f"gate:{org_id}" for org_id in found}
