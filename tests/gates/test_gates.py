"""Gates follow balances, never backwards, and every change of state is said once (CONTRACT.md section 4)."""

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
from metering.signals.gates import SIGNALS_CHANNEL, SIGNALS_LOG, Gates, Signal
from tests.gates.listening import EXHAUSTED, RESTORED, gate, listening, said_of, signals_log

AT = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)


@pytest.mark.parametrize(("balance_cents", "state"), [(1, "open"), (0, "exhausted"), (-1, "exhausted")])
def test_an_org_is_exhausted_at_zero_and_below(balance_cents: int, state: str) -> None:
    assert gate_state(balance_cents) == GateState(state)


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
        {"type": "balance.restored", "org_id": 42, "balance_cents": 5, "version": 16, "at": at},
        {"type": "balance.exhausted", "org_id": 42, "balance_cents": -3, "version": 17, "at": at},
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


def test_a_gate_is_removed_only_as_it_was_read(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    gates.follow([Balance(9, 5, 3)], AT)
    [read] = gates.read([9])
    gates.follow([Balance(9, 6, 4)], AT)
    assert not gates.remove(read, AT)
    assert gates.remove(gates.read([9])[0], AT)
    assert gate(redis_client, 9) == {}
    assert said_of(redis_client, 9) == [RESTORED, EXHAUSTED]


def test_reading_many_gates_keeps_their_order(redis_client: redis.Redis) -> None:
    gates = Gates(redis_client)
    org_ids = random.Random(1).sample(range(1, 10_000), 2_500)
    gates.follow([Balance(org_id, org_id, 1) for org_id in org_ids], AT)
    assert [held.balance_cents for held in gates.read(org_ids)] == org_ids
    found: list[Any] = [org_id for page in gates.org_ids() for org_id in page]
    assert sorted(set(found)) == sorted(org_ids)
    assert SIGNALS_CHANNEL not in {f"gate:{org_id}" for org_id in found}
