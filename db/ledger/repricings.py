"""Re-pricings that were applied, or are being: their terms, the orgs that they have seen to, the calls that they cover."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, insert, select, text
from sqlalchemy.orm import Session

from db.ledger.repriced_calls import AppliedTerms, reprice_calls
from db.models import Account, RepricedOrg, Repricing, Tier, Transaction
from db.models.errors import UnknownOrgError
from db.operators.log import Actor, log_action
from metering.rules.repricing import RepricingTerms, describe
from metering.rules.steps import pack_steps, unpack_steps

COMMAND: Final = "reprice"
ADJUSTMENT_KEY_PREFIX: Final = "reprice:"
"""Of the source keys of its adjustments: `metering adjust` takes no key that begins so."""
ROWS_AT_ONCE: Final = 2_000

BEFORE_ALL: Final = -(2**63)
"""Lower than any org's id."""

_LOCK: Final = 5_147_392_086_410_227_414
"""One beginning at a time: so no two whose times overlap are unfinished together."""


class RepricingError(Exception):
    """A re-pricing that can't be begun. The text names what is wrong, and the remedy."""


def begin_repricing(
    connection: Connection, terms: RepricingTerms, *, key: str, reason: str, actor: Actor
) -> Repricing:
    """Note that it is to be applied, in the caller's transaction; or give what was begun with the same key before.

    Raises RepricingError for a key that was used for other terms, a tier that isn't there, or while another one is unfinished
    whose time overlaps; UnknownOrgError.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    check_terms(connection, terms)
    found = find_repricing(connection, key)
    if found is not None:
        if (terms_of(found), found.reason) != (terms, reason):
            raise RepricingError(
                f"key: {key!r} was used before for another re-pricing, {describe(terms_of(found))}, {found.reason!r}; choose"
                " another key for another re-pricing."
            )
        return found
    for other in Session(connection).scalars(select(Repricing).where(Repricing.finished_at.is_(None))):
        if terms_of(other).overlaps(terms):
            raise RepricingError(
                f"The re-pricing with key {other.key!r} ({describe(terms_of(other))}, {other.reason!r}) has begun and has not"
                " seen to every org yet, and some calls are of both. Run it to its end first: the same command with the same"
                " key goes on where it ended."
            )
    first_s, next_s = terms.increment or (None, None)
    repricing_id = connection.scalar(
        insert(Repricing)
        .values(
            key=key,
            tier=terms.tier,
            from_at=terms.from_at,
            until_at=terms.until_at,
            org_id=terms.org_id,
            rate_microusd_per_minute=terms.rate_microusd_per_minute,
            steps=pack_steps(terms.steps) if terms.steps else None,
            increment_first_s=first_s,
            increment_next_s=next_s,
            minimum_s=terms.minimum_s,
            connect_fee_microusd=terms.connect_fee_microusd,
            reason=reason,
        )
        .returning(Repricing.id)
    )
    log_action(
        connection,
        actor,
        COMMAND,
        org_id=terms.org_id,
        subject=key,
        reason=reason,
        details={"terms": describe(terms)},
    )
    made = Session(connection).get(Repricing, repricing_id)
    if made is None:
        raise LookupError(f"re-pricing {repricing_id} is gone within its own transaction")
    return made


def adjustment_key(repricing: Repricing) -> str:
    """The source key of a re-pricing's adjustments."""
    return f"{ADJUSTMENT_KEY_PREFIX}{repricing.id}:{repricing.key}"


def find_repricing(connection: Connection, key: str) -> Repricing | None:
    """The re-pricing that was begun with a key."""
    return Session(connection).scalar(select(Repricing).where(Repricing.key == key))


def list_repriced_orgs(connection: Connection, repricing_id: int) -> Iterator[RepricedOrg]:
    """What a re-pricing has made of each org's calls, in the order of orgs, page by page."""
    after = BEFORE_ALL
    while True:
        page = Session(connection).scalars(
            select(RepricedOrg)
            .where(RepricedOrg.repricing_id == repricing_id, RepricedOrg.org_id > after)
            .order_by(RepricedOrg.org_id)
            .limit(ROWS_AT_ONCE)
        ).all()  # fmt: skip
        yield from page
        if len(page) < ROWS_AT_ONCE:
            return
        after = page[-1].org_id


@dataclass(frozen=True, slots=True)
class CoveringRepricing:
    """A re-pricing that covers a call."""

    repricing: Repricing
    seen_to_at: datetime
    """When the call's org was."""
    amount_cents: int
    """What the call costs on its terms."""


def list_covering(connection: Connection, debit: Transaction) -> list[CoveringRepricing]:
    """Every re-pricing that covers a call, newest first: it counts as billed at the first."""
    if debit.ended_at is None or debit.duration_us is None:
        return []
    started_at = debit.ended_at - timedelta(microseconds=debit.duration_us)
    rows = Session(connection).execute(
        select(Repricing, RepricedOrg.created_at)
        .join(RepricedOrg, RepricedOrg.repricing_id == Repricing.id)
        .where(
            RepricedOrg.org_id == debit.org_id,
            RepricedOrg.cutoff_transaction_id >= debit.id,
            Repricing.tier == debit.tier,
            Repricing.from_at <= started_at,
            Repricing.until_at > started_at,
        )
        .order_by(Repricing.id.desc())
    )
    return [
        CoveringRepricing(repricing, at, _cost_of(connection, debit, repricing)) for repricing, at in rows
    ]


def _cost_of(connection: Connection, debit: Transaction, repricing: Repricing) -> int:
    (alone,) = reprice_calls(connection, [debit.org_id], terms_of(repricing), [], transaction_id=debit.id)
    return alone.repriced_cents


def applied_terms(connection: Connection, terms: RepricingTerms) -> list[AppliedTerms]:
    """Every applied re-pricing that a call of these terms can be of, too."""
    rows = Session(connection).scalars(
        select(Repricing)
        .where(
            Repricing.tier == terms.tier,
            Repricing.from_at < terms.until_at,
            Repricing.until_at > terms.from_at,
        )
        .order_by(Repricing.id)
    )
    each = [AppliedTerms(row.id, terms_of(row)) for row in rows]
    return [one for one in each if one.terms.overlaps(terms)]


def terms_of(repricing: Repricing) -> RepricingTerms:
    """A re-pricing's terms, as they were given."""
    first_s, next_s = repricing.increment_first_s, repricing.increment_next_s
    return RepricingTerms(
        tier=repricing.tier,
        from_at=repricing.from_at,
        until_at=repricing.until_at,
        org_id=repricing.org_id,
        rate_microusd_per_minute=repricing.rate_microusd_per_minute,
        steps=unpack_steps(repricing.steps or []),
        increment=None if first_s is None or next_s is None else (first_s, next_s),
        minimum_s=repricing.minimum_s,
        connect_fee_microusd=repricing.connect_fee_microusd,
    )


def check_terms(connection: Connection, terms: RepricingTerms) -> None:
    """Raise RepricingError for a tier that isn't there, UnknownOrgError for an org."""
    if connection.scalar(select(Tier.name).where(Tier.name == terms.tier)) is None:
        raise RepricingError(f"tier: there is no tier {terms.tier!r}; `metering tier list` shows all.")
    if (
        terms.org_id is not None
        and connection.scalar(select(Account.org_id).where(Account.org_id == terms.org_id)) is None
    ):
        raise UnknownOrgError(terms.org_id)
