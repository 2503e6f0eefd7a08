"""Simulated telephony: repeatable, in the shares it promises, and with a record that can be trusted."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.rules.events import CallEvent, parse_event, same_call
from metering.rules.pricing import Price, billable_seconds
from metering.rules.rejections import Reason, Rejection
from metering.sandbox.telephony.call_record import CallRecord, OrgRecord
from metering.sandbox.telephony.calls import (
    LONGEST_DURATION_MS,
    RATES_CENTS_PER_MINUTE,
    TIME_FACTOR,
    Attempt,
    Push,
)
from metering.sandbox.telephony.malformed_events import BROKEN_WAYS, MalformedEvent, malformed_events
from metering.sandbox.telephony.simulation import LATEST_S, TYPICAL_CHARGE_CENTS, Telephony
from tests.judging import judge_event

START = datetime(2026, 4, 20, 18, 25, 6, 201_000, UTC)
ORG_IDS = range(1, 37)


def telephony(*, seed: int = 1, duration_s: float = 30, rate: float = 500, orgs: int = 36) -> Telephony:
    return Telephony(range(1, orgs + 1), start=START, seed=seed, duration_s=duration_s, rate=rate)


def pushes_of(schedule: Iterable[Attempt | Push]) -> list[Push]:
    return [item for item in schedule if isinstance(item, Push)]


def recorded(pushes: Iterable[Push]) -> CallRecord:
    record = CallRecord()
    for push in pushes:
        record.add(push)
    return record


def parsed(push: Push) -> CallEvent | Rejection:
    return judge_event(push.payload, START + timedelta(seconds=push.at_s))


@pytest.fixture(scope="module")
def schedule() -> list[Attempt | Push]:
    """What a demo does."""
    return list(telephony().schedule())


@pytest.fixture(scope="module")
def pushes(schedule: list[Attempt | Push]) -> list[Push]:
    """What it pushes if every call is let in."""
    return pushes_of(schedule)


def test_the_same_seed_gives_the_same_pushes_and_balances() -> None:
    assert list(telephony(seed=7).schedule()) == list(telephony(seed=7).schedule())
    assert telephony(seed=7).operator_credits() == telephony(seed=7).operator_credits()
    assert telephony(seed=7).starting_balances_cents() == telephony(seed=7).starting_balances_cents()


def test_another_seed_gives_others() -> None:
    one, other = (telephony(seed=seed) for seed in (7, 8))
    assert list(one.schedule()) != list(other.schedule())
    assert one.starting_balances_cents() != other.starting_balances_cents()
    assert one.operator_credits() != other.operator_credits()


def test_the_schedule_is_in_order_and_ends_in_time(schedule: list[Attempt | Push]) -> None:
    times = [item.at_s for item in schedule]
    assert times == sorted(times)
    assert times[0] >= 0
    assert max(item.at_s for item in schedule if isinstance(item, Attempt)) < 30
    assert times[-1] <= 30 + LONGEST_DURATION_MS / 1000 / TIME_FACTOR + 2 * LATEST_S


def test_a_call_is_pushed_after_it_ended_and_ends_after_it_started(schedule: list[Attempt | Push]) -> None:
    attempts: dict[tuple[int, int], Attempt] = {}
    for item in schedule:
        key = (item.org_id, item.call_id)
        if isinstance(item, Attempt):
            assert key not in attempts
            assert item.ended_s >= item.at_s
            attempts[key] = item
        else:
            assert attempts[key].ended_s <= item.at_s  # a KeyError: pushed before it was asked for
    assert {(item.org_id, item.call_id) for item in pushes_of(schedule)} == set(attempts)


def test_time_is_compressed_by_the_factor_that_is_told(schedule: list[Attempt | Push]) -> None:
    attempts = {(item.org_id, item.call_id): item for item in schedule if isinstance(item, Attempt)}
    for push in pushes_of(schedule):
        event = parsed(push)
        if push.reason is None and isinstance(event, CallEvent):
            attempt = attempts[push.org_id, push.call_id]
            assert attempt.ended_s - attempt.at_s == pytest.approx(push.duration_us / 1e6 / TIME_FACTOR)
            assert event.direction == attempt.direction
            assert (event.ended_at - START).total_seconds() == pytest.approx(attempt.ended_s, abs=0.002)


def test_several_calls_of_an_org_run_at_once(schedule: list[Attempt | Push]) -> None:
    at_15_s = Counter(
        item.org_id for item in schedule if isinstance(item, Attempt) and item.at_s <= 15 < item.ended_s
    )
    assert at_15_s[1] > 10
    assert sum(number > 3 for number in at_15_s.values()) > 30


def test_starts_are_a_poisson_process(schedule: list[Attempt | Push]) -> None:
    # In counts of a Poisson process the variance equals the mean.
    counts = Counter(int(item.at_s * 10) for item in schedule if isinstance(item, Attempt))
    per_tenth = [counts[tenth] for tenth in range(300)]
    mean = sum(per_tenth) / 300
    variance = sum((count - mean) ** 2 for count in per_tenth) / 300
    assert 0.7 < variance / mean < 1.3


@pytest.mark.parametrize("seed", range(5))
def test_rate_and_shares_are_as_promised(seed: int) -> None:
    record = recorded(pushes_of(telephony(seed=seed).schedule()))
    calls = sum(org.calls for org in record.orgs.values()) + record.free
    assert calls == pytest.approx(15_000, rel=0.05)
    assert record.duplicates / record.pushed == pytest.approx(0.05, abs=0.01)
    assert record.rejections.total() / record.pushed == pytest.approx(0.01, abs=0.004)
    assert record.free / record.pushed == pytest.approx(0.02, abs=0.006)
    assert len(record.orgs) == 36


def test_some_events_come_out_of_order(pushes: list[Push]) -> None:
    ends = [event.ended_at for push in pushes if isinstance(event := parsed(push), CallEvent)]
    overtaken = sum(later < earlier for earlier, later in itertools.pairwise(ends))
    assert 0.05 < overtaken / len(ends) < 0.4


def test_the_median_call_is_as_promised_and_durations_are_skewed(pushes: list[Push]) -> None:
    durations_s = sorted(push.duration_us / 1e6 for push in pushes if push.duration_us)
    median_s = durations_s[len(durations_s) // 2]
    assert median_s == pytest.approx(70, rel=0.1)
    assert sum(durations_s) / len(durations_s) > 1.4 * median_s


def test_a_call_costs_about_what_the_starting_balances_assume(pushes: list[Push]) -> None:
    orgs = recorded(pushes).orgs.values()
    mean_cents = sum(org.cents for org in orgs) / sum(org.calls for org in orgs)
    assert mean_cents == pytest.approx(TYPICAL_CHARGE_CENTS, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_good_part_of_the_orgs_begins_with_less_than_their_calls_cost(seed: int) -> None:
    balances = telephony(seed=seed).starting_balances_cents()
    spent = {
        org_id: org.cents for org_id, org in recorded(pushes_of(telephony(seed=seed).schedule())).orgs.items()
    }
    short = sum(balances[org_id] <= spent[org_id] for org_id in ORG_IDS)
    assert 12 <= short <= 28
    assert all(balance > 0 for balance in balances.values())


def test_some_orgs_are_refilled_once_or_twice_and_some_never() -> None:
    operator_credits = telephony().operator_credits()
    assert set(operator_credits) == set(ORG_IDS)
    numbers = Counter(map(len, operator_credits.values()))
    assert all(numbers[number] >= 5 for number in (0, 1, 2))
    for refill in (refill for each in operator_credits.values() for refill in each):
        assert 2 <= refill.after_s <= 4
        assert refill.amount_cents > 0
        assert refill.amount_cents % 100 == 0


def test_every_reason_occurs_even_in_a_short_demo() -> None:
    reasons = set(recorded(pushes_of(telephony(duration_s=4).schedule())).rejections)
    assert reasons == set(Reason) - {Reason.UNPROCESSABLE}


def test_every_way_of_breaking_an_event_takes_its_turn() -> None:
    longest = max(map(len, BROKEN_WAYS.values()))
    turns = list(itertools.islice(malformed_events(), longest * (len(Reason) - 1)))
    taken = {turn.of for turn in turns if isinstance(turn, MalformedEvent)}
    assert taken == {way for ways in BROKEN_WAYS.values() for way in ways.values()}


def test_a_demo_is_long_enough_for_every_way_of_breaking_an_event(pushes: list[Push]) -> None:
    rejections = recorded(pushes).rejections
    assert all(rejections[reason] >= len(ways) for reason, ways in BROKEN_WAYS.items())


@pytest.mark.parametrize(
    ("reason", "way"), [(reason, way) for reason, ways in BROKEN_WAYS.items() for way in ways]
)
def test_every_way_of_breaking_an_event_is_rejected_for_its_reason(reason: Reason, way: str) -> None:
    fine = next(
        push for push in pushes_of(telephony().schedule()) if b"metadata" in push.payload and not push.reason
    )
    broken = BROKEN_WAYS[reason][way](json.loads(fine.payload))
    assert isinstance(parse_event(fine.payload), CallEvent)
    outcome = judge_event(broken, START)
    assert isinstance(outcome, Rejection)
    assert outcome.reason is reason


def test_what_the_bytes_say_is_what_the_push_says(pushes: list[Push]) -> None:
    for push in pushes:
        event = parsed(push)
        if isinstance(event, Rejection):
            assert event.reason is push.reason
        elif push.reason is None:
            assert (event.org_id, event.tier, event.duration_us) == (push.org_id, push.tier, push.duration_us)
        else:
            assert push.reason in {Reason.UNKNOWN_ORG, Reason.UNKNOWN_TIER, Reason.CONFLICTING_DUPLICATE}


def test_missing_orgs_and_tiers_are_missing_and_another_start_misses_others() -> None:
    one = telephony()
    for push in pushes_of(one.schedule()):
        if push.reason in {Reason.UNKNOWN_ORG, Reason.UNKNOWN_TIER}:
            event = parsed(push)
            assert isinstance(event, CallEvent)
            assert (event.org_id not in ORG_IDS) == (push.reason is Reason.UNKNOWN_ORG)
            assert (event.tier not in RATES_CENTS_PER_MINUTE) == (push.reason is Reason.UNKNOWN_TIER)
    another = Telephony(ORG_IDS, start=START + timedelta(seconds=1), seed=1, duration_s=1, rate=1)
    assert one.missing_org_id != another.missing_org_id
    assert one.missing_tier != another.missing_tier


def test_a_conflict_differs_from_its_call_but_costs_the_same(pushes: list[Push]) -> None:
    """Two meters may bill either of the two first, and the record must be right all the same."""
    originals: dict[tuple[int, int], CallEvent] = {}
    repeated: set[tuple[int, int]] = set()
    conflicts = 0
    for push in pushes:
        event = parsed(push)
        if not isinstance(event, CallEvent) or push.reason not in {None, Reason.CONFLICTING_DUPLICATE}:
            continue
        key = (event.org_id, event.call_id)
        if push.reason is None:
            assert (key in originals) == push.repeated
            assert same_call(originals.setdefault(key, event), event)
            if push.repeated:
                repeated.add(key)
        else:
            conflicts += 1
            original = originals[key]
            price = Price(event.tier, None, 0, 60, 60, 0, 0)
            assert not same_call(original, event)
            assert event.tier == original.tier
            assert billable_seconds(event.duration_us, price) == billable_seconds(original.duration_us, price)
            assert original.duration_us > 0
            assert key not in repeated  # or it would depend on the order how many are rejected
    assert conflicts > 10


def test_some_duplicates_are_spelled_differently(pushes: list[Push]) -> None:
    seen: dict[tuple[int, int], bytes] = {}
    same = Counter[bool]()
    for push in pushes:
        if push.reason is None:
            call = json.loads(push.payload)
            key = (call["org_id"], call["call_id"])
            if push.repeated:
                same[seen[key] == push.payload] += 1
            seen[key] = push.payload
    assert same[True] > 200
    assert same[False] > 200


def test_call_ids_repeat_between_orgs_but_not_between_starts(pushes: list[Push]) -> None:
    calls = [json.loads(push.payload) for push in pushes if push.reason is None and not push.repeated]
    assert len({call["call_id"] for call in calls}) < len(calls) / 2
    later = Telephony(ORG_IDS, start=START + timedelta(seconds=1), seed=1, duration_s=30, rate=500)
    later_ids = {
        json.loads(push.payload)["call_id"] for push in pushes_of(later.schedule()) if push.reason is None
    }
    assert later_ids.isdisjoint(call["call_id"] for call in calls)


def naive_bill(calls: Iterable[dict[str, Any]]) -> dict[int, OrgRecord]:
    """What the calls cost, worked out minute by minute, in decimals of a dollar."""
    usd_per_minute = {
        "spark": Decimal("0.05"),
        "bolt": Decimal("0.08"),
        "storm-base": Decimal("0.10"),
        "storm-extra": Decimal("0.14"),
    }
    orgs: dict[int, OrgRecord] = {}
    billed = set()
    for call in calls:
        left_s, key = Decimal(str(call["duration_seconds"])), (call["org_id"], call["call_id"])
        if key in billed or left_s == 0:
            continue
        billed.add(key)
        org = orgs.setdefault(call["org_id"], OrgRecord())
        org.calls += 1
        while left_s > 0:
            left_s -= 60
            org.minutes += 1
            org.cents += int(usd_per_minute[call["tier"]] * 100)
    return orgs


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(1, 400),
    duration_s=st.floats(0.1, 3),
    orgs=st.integers(1, 40),
    part=st.floats(0, 1),
)
def test_the_record_agrees_with_a_naive_computation_wherever_the_pushing_ends(
    seed: int, rate: float, duration_s: float, orgs: int, part: float
) -> None:
    every = pushes_of(telephony(seed=seed, rate=rate, duration_s=duration_s, orgs=orgs).schedule())
    pushed = every[: int(len(every) * part)]
    record = recorded(pushed)
    fine = [json.loads(push.payload) for push in pushed if push.reason is None]
    assert record.orgs == naive_bill(fine)
    free = sum(call["duration_seconds"] == 0 for call in fine)
    assert record.free == free
    assert record.duplicates == len(fine) - free - sum(org.calls for org in record.orgs.values())
    assert record.rejections == Counter(push.reason for push in pushed if push.reason)
    assert record.pushed == len(pushed)


@pytest.mark.parametrize("wrong", [{"orgs": 0}, {"duration_s": 0}, {"rate": 0}])
def test_it_refuses_to_simulate_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        telephony(**wrong)
