"""Tiers and the prices that are in force from a date on."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, insert, select, text
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.orm import Session

from db.models import Tier, TierPrice
from metering.rules.pricing import Price, PriceBook
from metering.rules.times import format_time
from metering.runtime.clock import Clock

LEAD_TIME: Final = timedelta(seconds=60)
"""How far ahead a later price must start, so that every meter knows it by then.

See docs/reference/money-rules.md#which-price-counts.
"""
TIME_TO_ASK: Final = timedelta(seconds=30)
"""How much later still is the time that a refusal proposes: it must not be refused in its turn."""

CLOCKS_APART: Final = timedelta(days=1)
"""How long before a call's start its debit may have been posted at most, whatever the clocks of meters and producers said."""

_PRICES_LOCK: Final = 5_147_392_086_410_227_413
"""One writer at a time: so a price with a higher id is never committed before one with a lower id."""


# In id order, as whoever bills: it takes its orgs' locks, then asks for the book's version, then writes debits. So a debit that
# was priced without this price is there and seen, or comes after it and is priced anew.
_LOCK_ORGS: Final = text("SELECT org_id FROM accounts ORDER BY org_id FOR NO KEY UPDATE")
_BILLED: Final = text("""
    SELECT org_id, call_id, started_at
    FROM accounts
    CROSS JOIN LATERAL (
        SELECT call_id, ended_at - duration_us * interval '1 microsecond' AS started_at
        FROM transactions
        WHERE transactions.org_id = accounts.org_id AND kind = 'debit' AND tier = :tier
            AND id >= first_transaction_since(accounts.org_id, CAST(:since AS timestamptz))
            AND ended_at - duration_us * interval '1 microsecond' >= CAST(:start AS timestamptz)
            AND (CAST(:until AS timestamptz) IS NULL
                OR ended_at - duration_us * interval '1 microsecond' < CAST(:until AS timestamptz))
        LIMIT 1
    ) AS billed
    LIMIT 1
""")


class PriceError(Exception):
    """A price that can't be set. The text names what is wrong, and the remedy."""


@dataclass(frozen=True, slots=True)
class SetPrice:
    """What `set_price` did. `changed` is False where `price` was set before; `followed_by` is the tier's next one after it."""

    price: Price
    changed: bool
    followed_by: Price | None


def load_price_book(connection: Connection) -> PriceBook:
    """Every price there is. The book's version is the highest id."""
    rows = Session(connection).scalars(select(TierPrice)).all()
    return PriceBook(max((row.id for row in rows), default=0), [_price(row) for row in rows])


def list_prices(connection: Connection) -> list[Price]:
    """Every price there is, by tier, then by date."""
    by_tier = select(TierPrice).order_by(TierPrice.tier, TierPrice.in_force_from.nulls_first())
    return [_price(row) for row in Session(connection).scalars(by_tier)]


def set_price(connection: Connection, price: Price, clock: Clock, *, restored: bool = False) -> SetPrice:
    """Set a tier's price, in the caller's transaction; make the tier if it is new.

    A tier's first price is in force since ever. A later one starts at `price.in_force_from`, at least 60 s ahead; None means
    60 s ahead, and changes nothing where the price in force by then says the same already, whatever may follow later. Nor does
    asking again for a price from the very time from which the tier has it.

    `restored`: the database was restored to a time before the price was set, and `price.in_force_from` says from when on it was
    in force. Then that may be in the past, as long as no call is billed that it would have priced otherwise.

    Raises PriceError if the price can't start when it is asked to.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PRICES_LOCK})
    now = clock()  # not before: waiting for the lock takes time, and 60 s ahead must be 60 s
    connection.execute(
        insert_unless_there(Tier).values(name=price.tier, created_at=now).on_conflict_do_nothing()
    )
    asked, history = price.in_force_from, _history(connection, price.tier)
    start, following = None, None
    if history:
        earliest = now + LEAD_TIME
        start = earliest if asked is None else asked
        by_then = [each for each in history if each.in_force_from is None or each.in_force_from <= start]
        following = next(iter(history[len(by_then) :]), None)
        there = by_then[-1]  # the first is in force since ever
        if _terms(there) == _terms(price) and asked in (None, there.in_force_from):
            return SetPrice(there, changed=False, followed_by=following)
        if start < earliest and not restored:
            raise PriceError(
                f"from: a later price starts at least {LEAD_TIME.total_seconds():.0f} s ahead, so that every meter knows it;"
                f" ask for {earliest + TIME_TO_ASK:%Y-%m-%dT%H:%M:%S}Z or later, or leave the time out."
            )
        if there.in_force_from == start:
            raise PriceError(
                f"from: tier {price.tier} has another price from that moment on; ask for another time."
            )
        if start < earliest:
            _require_unbilled(
                connection, price.tier, start, None if following is None else following.in_force_from
            )
    elif asked is not None:
        raise PriceError(
            f"from: the first price of tier {price.tier} is in force since ever; leave the time out."
        )
    connection.execute(
        insert(TierPrice).values(
            tier=price.tier,
            in_force_from=start,
            rate_microusd_per_minute=price.rate_microusd_per_minute,
            increment_first_s=price.increment_first_s,
            increment_next_s=price.increment_next_s,
            minimum_s=price.minimum_s,
            connect_fee_microusd=price.connect_fee_microusd,
            created_at=now,
        )
    )
    return SetPrice(replace(price, in_force_from=start), changed=True, followed_by=following)


def _require_unbilled(connection: Connection, tier: str, start: datetime, until: datetime | None) -> None:
    """Lock every org until the price is committed, and see that no call of that tier and time is billed. Raises PriceError."""
    connection.execute(_LOCK_ORGS)
    billed = connection.execute(
        _BILLED, {"tier": tier, "start": start, "until": until, "since": start - CLOCKS_APART}
    ).one_or_none()
    if billed is not None:
        raise PriceError(
            f"from: call {billed.call_id} of org {billed.org_id} started at {format_time(billed.started_at)} and is billed"
            f" already, at another price of tier {tier}. Set restored prices before the calls are pushed again."
        )


def _history(connection: Connection, tier: str) -> list[Price]:
    """A tier's prices, by date."""
    of_tier = select(TierPrice).where(TierPrice.tier == tier)
    rows = Session(connection).scalars(of_tier.order_by(TierPrice.in_force_from.nulls_first()))
    return [_price(row) for row in rows]


def _terms(price: Price) -> tuple[int, int, int, int, int]:
    return (
        price.rate_microusd_per_minute,
        price.increment_first_s,
        price.increment_next_s,
        price.minimum_s,
        price.connect_fee_microusd,
    )


def _price(row: TierPrice) -> Price:
    return Price(
        tier=row.tier,
        in_force_from=row.in_force_from,
        rate_microusd_per_minute=row.rate_microusd_per_minute,
        increment_first_s=row.increment_first_s,
        increment_next_s=row.increment_next_s,
        minimum_s=row.minimum_s,
        connect_fee_microusd=row.connect_fee_microusd,
    )
