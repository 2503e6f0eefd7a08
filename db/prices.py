"""Tiers and the prices that are in force from a date on."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, insert, select, text
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.orm import Session

from db.models import Tier, TierPrice
from metering.rules.pricing import Price, PriceBook

LEAD_TIME: Final = timedelta(seconds=60)
"""How far ahead a later price must start, so that every meter knows it by then (CONTRACT.md section 2, rule 4)."""

_PRICES_LOCK: Final = 5_147_392_086_410_227_413
"""One writer at a time: so a price with a higher id is never committed before one with a lower id."""


class PriceError(Exception):
    """A price that can't be set. The text names what is wrong, and the remedy."""


@dataclass(frozen=True, slots=True)
class SetPrice:
    """What `set_price` did. `changed` is False where the tier's newest price says the same already."""

    price: Price
    changed: bool


def load_price_book(connection: Connection) -> PriceBook:
    """Every price there is. The book's version is the highest id."""
    rows = Session(connection).scalars(select(TierPrice)).all()
    return PriceBook(max((row.id for row in rows), default=0), [_price(row) for row in rows])


def list_prices(connection: Connection) -> list[Price]:
    """Every price there is, by tier, then by date."""
    by_tier = select(TierPrice).order_by(TierPrice.tier, TierPrice.in_force_from.nulls_first())
    return [_price(row) for row in Session(connection).scalars(by_tier)]


def set_price(connection: Connection, price: Price, now: datetime) -> SetPrice:
    """Set a tier's price, in the caller's transaction; make the tier if it is new.

    A tier's first price is in force since ever. A later one starts at `price.in_force_from`, at least 60 s after `now`, which is
    also what None means. Setting what the tier's newest price says already changes nothing, unless another time is asked for.

    Raises PriceError if the price can't start when it is asked to.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PRICES_LOCK})
    connection.execute(
        insert_unless_there(Tier).values(name=price.tier, created_at=now).on_conflict_do_nothing()
    )
    asked = price.in_force_from
    newest = Session(connection).scalar(
        select(TierPrice)
        .where(TierPrice.tier == price.tier)
        .order_by(TierPrice.in_force_from.desc().nulls_last())
        .limit(1)
    )
    if newest is None:
        if asked is not None:
            raise PriceError(
                f"from: the first price of tier {price.tier} is in force since ever; leave the time out."
            )
        in_force_from = None
    else:
        if _terms(_price(newest)) == _terms(price) and asked in (None, newest.in_force_from):
            return SetPrice(_price(newest), changed=False)
        in_force_from = now + LEAD_TIME if asked is None else asked
        if in_force_from < now + LEAD_TIME:
            raise PriceError(
                f"from: a later price starts at least {LEAD_TIME.total_seconds():.0f} s ahead, so that every meter knows it;"
                f" ask for a time from {now + LEAD_TIME:%Y-%m-%dT%H:%M:%S}Z on."
            )
        taken = select(TierPrice.id).where(
            TierPrice.tier == price.tier, TierPrice.in_force_from == in_force_from
        )
        if connection.scalar(taken) is not None:
            raise PriceError(
                f"from: tier {price.tier} has another price from that moment on; ask for another time."
            )
    connection.execute(
        insert(TierPrice).values(
            tier=price.tier,
            in_force_from=in_force_from,
            rate_microusd_per_minute=price.rate_microusd_per_minute,
            increment_first_s=price.increment_first_s,
            increment_next_s=price.increment_next_s,
            minimum_s=price.minimum_s,
            connect_fee_microusd=price.connect_fee_microusd,
            created_at=now,
        )
    )
    return SetPrice(Price(price.tier, in_force_from, *_terms(price)), changed=True)


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
