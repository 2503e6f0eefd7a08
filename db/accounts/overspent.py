"""Which orgs' balances are below zero, and what took each there (docs/reference/holds.md#overspent)."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, text

MAX_ORGS: Final = 1_000
"""Of how many it is looked up what took them below zero: those with the lowest balances."""
LOOKED_AT: Final = 1_000
"""How many of an org's transactions are looked back over."""

# Walks over the accounts, of which few are below zero; then by the primary key of transactions, backwards.
_BELOW: Final = text("""
    WITH below AS MATERIALIZED (
        SELECT org_id, balance_cents FROM accounts WHERE balance_cents < 0 ORDER BY balance_cents, org_id LIMIT :orgs
    )
    SELECT below.org_id, below.balance_cents, crossing.kind, crossing.call_id
    FROM below LEFT JOIN LATERAL (
        SELECT id, kind, call_id FROM (
            SELECT id, kind, call_id, balance_after_cents, amount_cents FROM transactions
            WHERE transactions.org_id = below.org_id ORDER BY org_id DESC, id DESC LIMIT :looked_at
        ) AS newest
        WHERE balance_after_cents < 0 AND balance_after_cents - amount_cents >= 0
        ORDER BY id DESC LIMIT 1
    ) AS crossing ON true
    ORDER BY below.balance_cents, below.org_id
""")
_TOTALS: Final = text("""
    SELECT count(*) AS orgs, coalesce(sum(balance_cents), 0)::bigint AS cents FROM accounts WHERE balance_cents < 0
""")
_DISMISSED: Final = text("""
    SELECT org_id, subject FROM operator_log
    WHERE action = 'call dismiss' AND NOT refused AND org_id = ANY(CAST(:org_ids AS bigint[]))
""")


class OverspentReason(StrEnum):
    """What took a balance below zero."""

    CALL_WITHOUT_HOLD = "call_without_hold"
    """A call, of an org whose calls take no holds."""
    CALL_BEYOND_HOLD = "call_beyond_hold"
    """A call, of an org whose calls take holds: this one took none, lasted longer than held for, or its hold was gone."""
    CALL_DISMISSED = "call_dismissed"
    """A call whose hold an operator has dismissed, and whose event came after all."""
    REFUND = "refund"
    """Money that went back to the card, by a refund or a dispute."""
    ADJUSTMENT = "adjustment"
    """An operator's correction."""
    EARLIER = "earlier"
    """It lies further back than is looked."""


@dataclass(frozen=True, slots=True)
class Overspent:
    """Orgs below zero for one reason."""

    orgs: int
    cents: int
    """By how much, together: above zero."""


@dataclass(frozen=True, slots=True)
class AllOverspent:
    """All orgs below zero; of the `MAX_ORGS` lowest balances, by reason."""

    orgs: int
    cents: int
    reasons: Mapping[OverspentReason, Overspent]


def read_overspent(
    connection: Connection, holding: Collection[int], *, with_log: bool = False
) -> AllOverspent:
    """Which orgs are below zero. `holding` are the orgs whose calls take holds.

    `with_log`: whoever may read the operators' log can also tell which holds were dismissed.
    """
    total = connection.execute(_TOTALS).one()
    rows = connection.execute(_BELOW, {"orgs": MAX_ORGS, "looked_at": LOOKED_AT}).all()
    dismissed = _dismissed(connection, [row.org_id for row in rows]) if with_log and rows else set()
    found: dict[OverspentReason, Overspent] = {}
    for row in rows:
        reason = _reason(row.kind, row.org_id, row.call_id, holding, dismissed)
        so_far = found.get(reason, Overspent(0, 0))
        found[reason] = Overspent(so_far.orgs + 1, so_far.cents - row.balance_cents)
    return AllOverspent(total.orgs, -total.cents, found)


def _dismissed(connection: Connection, org_ids: Iterable[int]) -> set[tuple[int, str]]:
    rows = connection.execute(_DISMISSED, {"org_ids": list(org_ids)})
    return {(row.org_id, row.subject) for row in rows}


def _reason(
    kind: str | None,
    org_id: int,
    call_id: int | None,
    holding: Collection[int],
    dismissed: Collection[tuple[int, str]],
) -> OverspentReason:
    if kind is None:
        return OverspentReason.EARLIER
    if kind != "debit":
        return OverspentReason.REFUND if kind == "refund" else OverspentReason.ADJUSTMENT
    if (org_id, str(call_id)) in dismissed:
        return OverspentReason.CALL_DISMISSED
    return OverspentReason.CALL_BEYOND_HOLD if org_id in holding else OverspentReason.CALL_WITHOUT_HOLD
