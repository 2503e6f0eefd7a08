"""A call that ends in the future is refused, to the millisecond and by Postgres's clock; what was billed stays a duplicate."""

from datetime import UTC, datetime, timedelta

import pytest
import redis

from tests.conftest import Database
from tests.database_clock import own_database_clock, set_database_clock
from tests.spine.billing import debits, event, prepare, price, push, rejections, run_meters

NOW = datetime(2026, 4, 20, 18, 30, tzinfo=UTC)
EDGE = NOW + timedelta(minutes=5)
BIT = timedelta(milliseconds=1)


@pytest.mark.parametrize("machines", [timedelta(), -timedelta(hours=1), timedelta(days=30)])
def test_a_call_may_end_five_minutes_ahead_and_no_more(
    database: Database, redis_client: redis.Redis, machines: timedelta
) -> None:
    prepare(database.engine, org_ids=[1], prices=[price("bolt", "0.08")])
    ends = {1: EDGE, 2: EDGE + BIT, 3: NOW - timedelta(days=400)}
    with own_database_clock(database.admin_url) as admin:
        set_database_clock(admin, NOW)
        # Of an org that isn't there too: the first reason that applies is the one that is given.
        events = [event(call_id=call_id, ended_at=at.isoformat()) for call_id, at in ends.items()]
        push(redis_client, [*events, event(org_id=9, call_id=4, ended_at=(EDGE + BIT).isoformat())])
        run_meters(database.engine, redis_client, clock=lambda: NOW + machines)
        assert {row.call_id: row.created_at for row in debits(database.engine)} == {1: NOW, 3: NOW}
        late = rejections(database.engine)
        assert [row.reason for row in late] == ["invalid_field"] * 2
        assert all(row.detail.startswith("ended_at must be") and row.received_at == NOW for row in late)

        set_database_clock(
            admin, NOW - timedelta(hours=1)
        )  # it was put back: by now call 1 lies in the future
        push(redis_client, [event(call_id=1, ended_at=EDGE.isoformat())])
        run_meters(database.engine, redis_client)
        assert (len(debits(database.engine)), len(rejections(database.engine))) == (2, 2)
