"""Setting, ending and cancelling the prices of tiers and of single orgs."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from db.ledger.price_book import COLUMNS, price_of_row
from db.models import Account, Tier, TierPrice
from db.models.errors import UnknownOrgError
from metering.rules.money import format_microusd
from metering.rules.pricing import Price, PriceEnd
from metering.rules.steps import pack_steps
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

UNUSUAL: Final = 10
"""So many times the price before, or less than one in so many of it: more likely a typo than meant."""

_PRICES_LOCK: Final = 5_147_392_086_410_227_413
"""One writer at a time: so a version is never committed before a lower one, and nobody decides on what is changing."""


# In id order, as whoever bills: it takes its orgs' locks, then asks for the book's version, then writes debits. So a debit that
# was priced without this price is there and seen, or comes after it and is priced anew.
_LOCK_ORGS: Final = text("""
    SELECT org_id FROM accounts WHERE CAST(:org_id AS bigint) IS NULL OR org_id = CAST(:org_id AS bigint)
    ORDER BY org_id FOR NO KEY UPDATE
""")
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
    WHERE CAST(:org_id AS bigint) IS NULL OR accounts.org_id = CAST(:org_id AS bigint)
    LIMIT 1
""")


class PriceError(Exception):
    """A price that can't be set or taken back. The text names what is wrong, and the remedy."""


@dataclass(frozen=True, slots=True)
class SetPrice:
    """What `set_price` or `clear_price` did.

    `changed` is False where `price` was set before; `replaced` was to be in force from the same time, and is cancelled;
    `followed_by` is what comes after it.
    """

    price: Price | PriceEnd
    changed: bool
    followed_by: Price | PriceEnd | None
    replaced: Price | PriceEnd | None = None


def list_prices(connection: Connection, *, org_id: int | None = None) -> list[Price | PriceEnd]:
    """All prices that count, by tier, then by date: the tiers' own, or with `org_id` that org's own."""
    of_whom = TierPrice.org_id.is_(None) if org_id is None else TierPrice.org_id == org_id
    return _listed(connection, of_whom)


def list_org_prices(connection: Connection) -> list[Price | PriceEnd]:
    """Those of all orgs, and their ends, by tier, then by org and date."""
    return _listed(connection, TierPrice.org_id.is_not(None))


def count_orgs_with_prices(connection: Connection) -> int:
    """How many orgs have prices of their own, or had."""
    whose = select(func.count(TierPrice.org_id.distinct())).where(TierPrice.cancelled_at.is_(None))
    return connection.execute(whose).scalar_one()


def set_price(
    connection: Connection,
    price: Price,
    clock: Clock,
    *,
    restored: bool = False,
    allow_unusual: bool = True,
) -> SetPrice:
    """Set a tier's price, or with `price.org_id` that org's own, in the caller's transaction; make the tier if it is new.

    A tier's first price is in force since ever. A later one, and each of an org's, starts at `price.in_force_from`, at least 60 s
    ahead; None means 60 s ahead, and changes nothing where the price in force by then says the same already, whatever may follow
    later. Nor does asking again for a price from the very time from which it is set. One with other terms from that time is
    replaced, until 60 s before.

    `restored`: the database was restored to a time before the price was set, and `price.in_force_from` says from when on it was
    in force. Then that may be in the past, as long as no call is billed that it would have priced otherwise.

    Raises PriceError if the price can't start when it is asked to, or is unusual beside the one before it and not allowed to be;
    UnknownOrgError.
    """
    now = _lock(connection, clock)
    _require_org(connection, price.org_id)
    connection.execute(
        insert_unless_there(Tier).values(name=price.tier, created_at=now).on_conflict_do_nothing()
    )
    history = _history(connection, price.tier, price.org_id)
    if price.org_id is None and not history:
        if price.in_force_from is not None:
            raise PriceError(
                f"from: the first price of tier {price.tier} is in force since ever; leave the time out."
            )
        _insert(connection, price, now)
        return SetPrice(price, changed=True, followed_by=None)
    if price.org_id is not None and not _history(connection, price.tier, None):
        raise PriceError(f"NAME: there is no tier {price.tier}; set its price for all orgs first.")
    return _add(connection, price, history, now, restored=restored, allow_unusual=allow_unusual)


def clear_price(
    connection: Connection,
    tier: str,
    org_id: int,
    start: datetime | None,
    clock: Clock,
    *,
    restored: bool = False,
) -> SetPrice:
    """End an org's own price of a tier: from `start` on, at least 60 s ahead, the tier's counts; None means 60 s ahead.

    Raises PriceError as `set_price`, and where the org has no price of its own by then; UnknownOrgError.
    """
    now = _lock(connection, clock)
    _require_org(connection, org_id)
    history = _history(connection, tier, org_id)
    at = now + LEAD_TIME if start is None else start
    before = _before(history, at, including=start is None)
    there = _from(history, at)
    if not isinstance(before, Price) and not isinstance(there, Price):
        if isinstance(before, PriceEnd) and start is None:
            return SetPrice(before, changed=False, followed_by=_after(history, at))
        if isinstance(there, PriceEnd):
            return SetPrice(there, changed=False, followed_by=_after(history, at))
        raise PriceError(
            f"org: org {org_id} has no price of its own for tier {tier} by then: nothing is to be ended."
        )
    return _add(connection, PriceEnd(tier, org_id, at), history, now, restored=restored, allow_unusual=True)


def cancel_price(
    connection: Connection, tier: str, org_id: int | None, start: datetime, clock: Clock
) -> Price | PriceEnd:
    """Take back what is to be in force from `start` on, an org's own price or its end with `org_id`; until 60 s before.

    Raises PriceError where there is none, or it is too late.
    """
    now = _lock(connection, clock)
    found = _from(_history(connection, tier, org_id), start)
    if found is None:
        whose = f"tier {tier}" if org_id is None else f"org {org_id}'s tier {tier}"
        again = "`metering tier list`" if org_id is None else f"`metering tier list --org {org_id}`"
        raise PriceError(
            f"from: nothing was set for {whose} from {format_time(start)}; {again} shows what was."
        )
    _cancel(connection, found, now)
    return found


def _lock(connection: Connection, clock: Clock) -> datetime:
    """Let nobody else change prices until the commit; give the time."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PRICES_LOCK})
    return clock()  # not before: waiting for the lock takes time, and 60 s ahead must be 60 s


def _require_org(connection: Connection, org_id: int | None) -> None:
    if (
        org_id is not None
        and connection.scalar(select(Account.org_id).where(Account.org_id == org_id)) is None
    ):
        raise UnknownOrgError(org_id)


def _add(
    connection: Connection,
    asked: Price | PriceEnd,
    history: list[Price | PriceEnd],
    now: datetime,
    *,
    restored: bool,
    allow_unusual: bool,
) -> SetPrice:
    earliest = now + LEAD_TIME
    start = asked.in_force_from or earliest
    new = replace(asked, in_force_from=start)
    following = _after(history, start)
    there = _before(history, start, including=True)
    if there is not None and asked.in_force_from in (None, there.in_force_from) and _same(there, new):
        return SetPrice(there, changed=False, followed_by=following)
    if start < earliest and not restored:
        raise PriceError(
            f"from: {'a later price' if isinstance(new, Price) else 'the end'} starts at least {LEAD_TIME.total_seconds():.0f} s"
            f" ahead, so that every meter knows it; ask for {earliest + TIME_TO_ASK:%Y-%m-%dT%H:%M:%S}Z or later, or leave the"
            " time out."
        )
    if isinstance(new, Price) and not allow_unusual:
        _require_usual(connection, new, _before(history, start, including=False))
    replaced = _from(history, start)
    if replaced is not None:
        _cancel(connection, replaced, now)
    if start < earliest:
        until = None if following is None else following.in_force_from
        _require_unbilled(connection, new, start, until)
    _insert(connection, new, now)
    return SetPrice(new, changed=True, followed_by=following, replaced=replaced)


def _before(history: list[Price | PriceEnd], at: datetime, *, including: bool) -> Price | PriceEnd | None:
    """What is in force just before `at`, or at it."""
    earlier = [
        each
        for each in history
        if each.in_force_from is None or each.in_force_from < at or (including and each.in_force_from == at)
    ]
    return earlier[-1] if earlier else None


def _from(history: list[Price | PriceEnd], at: datetime) -> Price | PriceEnd | None:
    """What starts at that very time."""
    return next((each for each in history if each.in_force_from == at), None)


def _after(history: list[Price | PriceEnd], at: datetime) -> Price | PriceEnd | None:
    """What comes next."""
    return next(
        (each for each in history if each.in_force_from is not None and each.in_force_from > at), None
    )


def _same(one: Price | PriceEnd, other: Price | PriceEnd) -> bool:
    """Whether both charge the same."""
    if isinstance(one, Price) and isinstance(other, Price):
        return one.terms == other.terms
    return isinstance(one, PriceEnd) and isinstance(other, PriceEnd)


def _require_usual(connection: Connection, new: Price, before: Price | PriceEnd | None) -> None:
    """Raise PriceError where a rate or a fee is more than ten times or less than a tenth of what counted before."""
    if not isinstance(before, Price):  # of an org that has none of its own: the tier's
        start = new.in_force_from
        tiers = _history(connection, new.tier, None)
        before = None if start is None else _before(tiers, start, including=True)
    if not isinstance(before, Price):
        return
    # Of steps three are looked at: a slip in the dearest, in the cheapest that isn't included, or in the last, which has no end.
    for what, value, was in (
        ("USD_PER_MINUTE", new.dearest_rate, before.dearest_rate),
        ("USD_PER_MINUTE", new.lowest_rate, before.lowest_rate),
        ("USD_PER_MINUTE", new.rate_microusd_per_minute, before.rate_microusd_per_minute),
        ("connect-fee", new.connect_fee_microusd, before.connect_fee_microusd),
    ):
        # A fee that comes or goes is no typo of a digit; a rate that does, may be.
        if what == "connect-fee" and 0 in (value, was):
            continue
        if value > was * UNUSUAL or value * UNUSUAL < was:
            raise PriceError(
                f"{what}: ${format_microusd(value)} is {'more than ten times' if value > was else 'less than a tenth of'} the"
                f" ${format_microusd(was)} before it. Say --yes if that is meant."
            )


def _cancel(connection: Connection, found: Price | PriceEnd, now: datetime) -> None:
    """Raises PriceError where it is in force within 60 s."""
    start = found.in_force_from
    if start is None:
        raise PriceError(f"from: the first price of tier {found.tier} is in force since ever, and stays.")
    if start - LEAD_TIME < now:
        raise PriceError(
            f"from: what is in force from {format_time(start)} could be cancelled or replaced until"
            f" {LEAD_TIME.total_seconds():.0f} s before. Set another from a later time."
        )
    connection.execute(
        update(TierPrice)
        .where(
            TierPrice.tier == found.tier,
            TierPrice.org_id.is_not_distinct_from(found.org_id),
            TierPrice.in_force_from == start,
            TierPrice.cancelled_at.is_(None),
        )
        .values(cancelled_at=now)
    )


def _insert(connection: Connection, new: Price | PriceEnd, now: datetime) -> None:
    terms = (
        {
            "rate_microusd_per_minute": new.rate_microusd_per_minute,
            "increment_first_s": new.increment_first_s,
            "increment_next_s": new.increment_next_s,
            "minimum_s": new.minimum_s,
            "connect_fee_microusd": new.connect_fee_microusd,
            "steps": pack_steps(new.steps) or None,
        }
        if isinstance(new, Price)
        else {}
    )
    connection.execute(
        insert(TierPrice).values(
            tier=new.tier, org_id=new.org_id, in_force_from=new.in_force_from, created_at=now, **terms
        )
    )


def _require_unbilled(
    connection: Connection, new: Price | PriceEnd, start: datetime, until: datetime | None
) -> None:
    """Lock the orgs whose calls it prices until it is committed, and see that none of that tier and time is billed.

    Raises PriceError.
    """
    connection.execute(_LOCK_ORGS, {"org_id": new.org_id})
    billed = connection.execute(
        _BILLED,
        {
            "tier": new.tier,
            "org_id": new.org_id,
            "start": start,
            "until": until,
            "since": start - CLOCKS_APART,
        },
    ).one_or_none()
    if billed is not None:
        raise PriceError(
            f"from: call {billed.call_id} of org {billed.org_id} started at {format_time(billed.started_at)} and is billed"
            f" already, at another price of tier {new.tier}. Set restored prices before the calls are pushed again."
        )


def _history(connection: Connection, tier: str, org_id: int | None) -> list[Price | PriceEnd]:
    """A tier's own prices, or an org's, by date."""
    return _listed(connection, (TierPrice.tier == tier) & TierPrice.org_id.is_not_distinct_from(org_id))


def _listed(connection: Connection, wanted: ColumnElement[bool]) -> list[Price | PriceEnd]:
    by_tier = (
        select(*COLUMNS)
        .where(TierPrice.cancelled_at.is_(None), wanted)
        .order_by(TierPrice.tier, TierPrice.org_id, TierPrice.in_force_from.nulls_first())
    )
    return [price_of_row(row) for row in connection.execute(by_tier)]
