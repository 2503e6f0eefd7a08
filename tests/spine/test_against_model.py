"""Whatever comes, in whatever order and however it is cut and shared out, the ledger says what a ten-line model says."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from db.postgres.engine import transaction
from tests.conftest import Database
from tests.spine.billing import (
    assert_sound,
    balances,
    debits,
    event,
    prepare,
    price,
    push,
    rejections,
    run_meters,
)

RATES = {"bolt": "0.08", "spark": "0.0125", "odd": "0.333333"}
ORGS = (1, 2, 3)


def model(events: Sequence[dict[str, Any]]) -> tuple[dict[int, int], int]:
    """Balances per org, and how many events contradict an earlier one."""
    billed: dict[tuple[int, int], dict[str, Any]] = {}
    cents = Counter(dict.fromkeys(ORGS, 0))
    conflicts = 0
    for call in events:
        first = billed.get((call["org_id"], call["call_id"]))
        if first is not None:
            conflicts += call != first
        elif call["duration_seconds"] > 0:
            billed[call["org_id"], call["call_id"]] = call
            minutes = ceil(Fraction(str(call["duration_seconds"])) / 60)
            cents[call["org_id"]] -= floor(minutes * Fraction(RATES[call["tier"]]) * 100 + Fraction(1, 2))
    return dict(cents), conflicts


calls = st.builds(
    event,
    call_id=st.integers(1, 6),
    org_id=st.sampled_from(ORGS),
    tier=st.sampled_from(sorted(RATES)),
    duration_seconds=st.sampled_from([0, 0.001, 1, 59.999999, 60, 60.000001, 75, 119.999, 3600]),
    direction=st.sampled_from(["inbound", "outbound"]),
)
same_call_same_content = st.lists(calls, max_size=60).map(
    lambda events: [
        {(e["org_id"], e["call_id"]): e for e in events}[each["org_id"], each["call_id"]] for each in events
    ]
)


@pytest.fixture
def ready(database: Database) -> Database:
    prepare(database.engine, org_ids=ORGS, prices=[price(tier, rate) for tier, rate in RATES.items()])
    return database


def start_again(database: Database) -> None:
    """Back to empty accounts between examples: only a superuser can, with the triggers off."""
    from db.postgres.engine import make_engine  # noqa: PLC0415

    admin = make_engine(database.admin_url, application_name="tests")
    with transaction(admin) as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("DELETE FROM transactions"))
        connection.execute(text("DELETE FROM rejected_events"))
        connection.execute(
            text(
                "UPDATE accounts SET balance_cents = 0, version = 0, transaction_count = 0, last_posted_at = NULL"
            )
        )
    admin.dispose()


@settings(max_examples=60)
@given(events=st.lists(calls, max_size=60), batch_limit=st.integers(1, 30))
def test_one_meter_bills_what_the_model_bills(
    ready: Database, redis_client: redis.Redis, events: list[dict[str, Any]], batch_limit: int
) -> None:
    start_again(ready)
    push(redis_client, events)
    run_meters(ready.engine, redis_client, batch_limit=batch_limit)
    expected, conflicts = model(events)
    assert balances(ready.engine) == expected
    assert [row.reason for row in rejections(ready.engine)] == ["conflicting_duplicate"] * conflicts
    assert_sound(ready.engine)


@settings(max_examples=40)
@given(events=same_call_same_content, batch_limit=st.integers(1, 10), meters=st.integers(2, 3))
def test_meters_side_by_side_bill_what_the_model_bills(
    ready: Database, redis_client: redis.Redis, events: list[dict[str, Any]], batch_limit: int, meters: int
) -> None:
    start_again(ready)
    push(redis_client, events)
    run_meters(ready.engine, redis_client, batch_limit=batch_limit, meters=meters)
    assert (balances(ready.engine), 0) == model(events)
    assert rejections(ready.engine) == []
    assert len(debits(ready.engine)) == len(
        {(e["org_id"], e["call_id"]) for e in events if e["duration_seconds"] > 0}
    )
    assert_sound(ready.engine)
