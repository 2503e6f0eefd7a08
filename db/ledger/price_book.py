"""The price book as meters and the gate hold it: loaded once, then brought up to date by what has changed since."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, or_, select, text

from db.models import TierPrice
from metering.rules.pricing import Price, PriceBook, PriceEnd
from metering.rules.steps import unpack_steps

# A version that the table no longer holds was cancelled since, or belongs to what a restored database has forgotten.
_VERSION: Final = text("""
    SELECT version, EXISTS (SELECT FROM prices WHERE prices.version = :known) AS known FROM price_book
""")
_CHANGED_OWNERS: Final = text("SELECT DISTINCT tier, org_id FROM prices WHERE version > :known")
_CANCELLED_STEPS: Final = text("""
    SELECT DISTINCT tier, org_id FROM prices WHERE version > :known AND cancelled_at IS NOT NULL AND steps IS NOT NULL
""")
_BEFORE_ALL: Final = -1
MOST_OWNERS: Final = 500
"""Of more that have changed, each would be named to Postgres in vain: to read every price takes no longer."""

# Plain columns: an ORM object for each of 100,000 prices takes ten times as long.
COLUMNS: Final = (
    TierPrice.tier,
    TierPrice.org_id,
    TierPrice.in_force_from,
    TierPrice.rate_microusd_per_minute,
    TierPrice.increment_first_s,
    TierPrice.increment_next_s,
    TierPrice.minimum_s,
    TierPrice.connect_fee_microusd,
    TierPrice.steps,
)


def load_price_book(connection: Connection) -> PriceBook:
    """All that counts. The version is read first: so the book may be newer than it says, and is then found stale."""
    version = connection.execute(text("SELECT version FROM price_book")).scalar_one()
    return PriceBook(version, _read(connection), _cancelled_steps(connection, _BEFORE_ALL))


def refresh_price_book(connection: Connection, book: PriceBook) -> PriceBook:
    """The book of now, given one that was read before: the same one if nothing has changed.

    Reads only the prices of tiers and orgs that have changed. Reads everything where those are many, and where `book` holds what
    this database doesn't know: it was restored to an earlier time.
    """
    version, known = connection.execute(_VERSION, {"known": book.version}).one()
    if version == book.version and (known or version == 0):
        return book
    if not known or version < book.version:
        return load_price_book(connection)
    owners = [(row.tier, row.org_id) for row in connection.execute(_CHANGED_OWNERS, {"known": book.version})]
    if len(owners) > MOST_OWNERS:
        return load_price_book(connection)
    changed = or_(*(_of(tier, org_id) for tier, org_id in owners))
    return book.changed(
        version, _read(connection, changed), owners, _cancelled_steps(connection, book.version)
    )


def load_prices_of(connection: Connection, tier: str | None, org_id: int) -> PriceBook:
    """What counts for one org: its own prices and the tiers', or those of `tier` alone. For commands that look at one org."""
    version = connection.execute(text("SELECT version FROM price_book")).scalar_one()
    wanted = or_(TierPrice.org_id.is_(None), TierPrice.org_id == org_id)
    return PriceBook(
        version, _read(connection, wanted if tier is None else wanted & (TierPrice.tier == tier))
    )


def _cancelled_steps(connection: Connection, known: int) -> list[tuple[str, int | None]]:
    """Whose price with steps was cancelled after a version."""
    return [(row.tier, row.org_id) for row in connection.execute(_CANCELLED_STEPS, {"known": known})]


def _of(tier: str, org_id: int | None) -> ColumnElement[bool]:
    return (TierPrice.tier == tier) & (
        TierPrice.org_id.is_(None) if org_id is None else TierPrice.org_id == org_id
    )


def _read(connection: Connection, wanted: ColumnElement[bool] | None = None) -> Iterable[Price | PriceEnd]:
    counting = select(*COLUMNS).where(TierPrice.cancelled_at.is_(None))
    rows = connection.execute(counting if wanted is None else counting.where(wanted))
    return [price_of_row(row) for row in rows]


def price_of_row(row: Sequence[Any]) -> Price | PriceEnd:
    """A row of `COLUMNS`."""
    tier, org_id, in_force_from, rate, first_s, next_s, minimum_s, connect_fee, steps = row
    if rate is None:
        return PriceEnd(tier, org_id, in_force_from)
    return Price(
        tier, in_force_from, rate, first_s, next_s, minimum_s, connect_fee, org_id, unpack_steps(steps or ())
    )
