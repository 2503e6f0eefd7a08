"""After a restore a price is set again with its date: only where no call of that tier and time is billed yet."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import redis
from sqlalchemy import Engine

from db.ledger.prices import PriceError, SetPrice, list_prices, set_price
from db.postgres.engine import transaction
from metering.rules.pricing import Price, PriceEnd
from tests.conftest import Database
from tests.payments.together import together
from tests.spine.billing import assert_sound, debits, event, prepare, price, push, run_meters

FROM = datetime(2026, 4, 1, tzinfo=UTC)


def again(engine: Engine, new: Price, *, restored: bool = True) -> SetPrice:
    with transaction(engine) as connection:
        return set_price(connection, new, lambda: datetime.now(UTC), restored=restored)


def dated(start: datetime, usd_per_minute: str = "0.10", tier: str = "bolt") -> Price:
    return replace(price(tier, usd_per_minute), in_force_from=start)


@pytest.fixture
def engine(database: Database) -> Engine:
    prepare(database.engine, org_ids=(1, 2), prices=[price("bolt", "0.08"), price("reef", "0.05")])
    return database.engine


def call(call_id: int, started_at: datetime, duration_s: int = 60, **fields: object) -> dict[str, object]:
    ended_at = started_at + timedelta(seconds=duration_s)
    return event(call_id=call_id, duration_seconds=duration_s, ended_at=ended_at.isoformat(), **fields)


def test_calls_are_priced_as_they_were_before_the_restore(engine: Engine, redis_client: redis.Redis) -> None:
    with pytest.raises(PriceError, match="at least 60 s ahead"):
        again(engine, dated(FROM), restored=False)
    assert again(engine, dated(FROM)).changed
    assert not again(engine, dated(FROM)).changed
    push(
        redis_client,
        [call(1, FROM - timedelta(milliseconds=1)), call(2, FROM), call(3, FROM + timedelta(days=20))],
    )
    run_meters(engine, redis_client)
    assert [row.amount_cents for row in debits(engine)] == [-8, -10, -10]
    assert_sound(engine)


@pytest.mark.parametrize(
    ("started_at", "duration_s", "refused"),
    [
        (FROM, 60, True),
        (FROM + timedelta(days=30), 0.000001, True),
        (FROM - timedelta(milliseconds=1), 604_800, False),
    ],
)
def test_what_is_billed_is_never_priced_otherwise(
    engine: Engine, redis_client: redis.Redis, started_at: datetime, duration_s: float, refused: bool
) -> None:
    ended_at = started_at + timedelta(seconds=duration_s)
    push(
        redis_client, [event(org_id=2, call_id=7, duration_seconds=duration_s, ended_at=ended_at.isoformat())]
    )
    run_meters(engine, redis_client)
    if refused:
        with pytest.raises(PriceError, match=r"call 7 of org 2 .* is billed already"):
            again(engine, dated(FROM))
        assert len(list_prices_of(engine, "bolt")) == 1
    else:
        assert again(engine, dated(FROM)).changed
    assert again(engine, dated(FROM, tier="reef")).changed  # another tier's calls are nothing to it
    assert_sound(engine)


def list_prices_of(engine: Engine, tier: str) -> list[Price | PriceEnd]:
    with transaction(engine) as connection:
        return [each for each in list_prices(connection) if each.tier == tier]


def test_only_the_time_until_the_next_price_counts(engine: Engine, redis_client: redis.Redis) -> None:
    later = FROM + timedelta(days=10)
    assert again(engine, dated(later, "0.12")).changed
    push(redis_client, [call(1, later)])
    run_meters(engine, redis_client)
    assert again(engine, dated(FROM)).changed
    push(redis_client, [call(2, later - timedelta(seconds=1)), call(3, FROM - timedelta(seconds=1))])
    run_meters(engine, redis_client)
    with pytest.raises(PriceError, match=r"call 2 of org 1 .* is billed already"):
        again(engine, dated(FROM + timedelta(days=9), "0.11"))
    assert {row.call_id: row.amount_cents for row in debits(engine)} == {1: -12, 2: -10, 3: -8}
    assert_sound(engine)


def test_with_meters_at_work_a_call_is_billed_at_the_price_or_the_price_refused(
    engine: Engine, redis_client: redis.Redis
) -> None:
    """Whoever comes first: never a call at the old price beside the restored one."""
    for number in range(8):
        tier = f"tier-{number}"
        prepare(engine, org_ids=(), prices=[price(tier, "0.08")])
        ids = range(number * 100, number * 100 + 20)
        push(redis_client, [call(each + 1, FROM, tier=tier) for each in ids])
        _, done = together(
            lambda: run_meters(engine, redis_client), partial(again, engine, dated(FROM, tier=tier))
        )
        assert isinstance(done, SetPrice | PriceError), done
        billed = {row.amount_cents for row in debits(engine) if row.tier == tier}
        assert billed == ({-10} if isinstance(done, SetPrice) else {-8}), done
    assert_sound(engine)
