"""Refunds that operators ask for: written before Stripe is asked, so that each is made once for its key."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from db.models import Account, Kind, OperatorRefund, Transaction
from db.models.errors import UnknownOrgError
from db.operators.log import Actor, log_action

# Less than the 24 hours for which Stripe keeps a key: an older one is looked for, and never sent again.
_SENDABLE: Final = func.clock_timestamp() - OperatorRefund.created_at < literal_column("interval '23 hours'")


class RefundError(Exception):
    """A refund that can't be asked for. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class WantedRefund:
    """A refund as it is asked for, and how far it has come."""

    org_id: int
    key: str
    payment_intent_id: str
    amount_cents: int | None
    """None is all that is left."""
    reason: str
    refund_id: str | None
    refusal: str | None
    sendable: bool
    """Whether Stripe surely knows its key still, by Postgres's clock."""


def want_refund(
    connection: Connection,
    actor: Actor,
    org_id: int,
    payment_intent_id: str,
    *,
    amount_cents: int | None,
    reason: str,
    key: str,
) -> WantedRefund:
    """Note that a refund is to be made, in the caller's transaction, once for its key, and log it; give it as it is.

    Raises UnknownOrgError; RefundError for a payment that isn't this org's credit, and for a key that was used for another
    refund.
    """
    if connection.scalar(select(Account.org_id).where(Account.org_id == org_id)) is None:
        raise UnknownOrgError(org_id)
    credited = select(Transaction.id).where(
        Transaction.org_id == org_id,
        Transaction.kind == Kind.CREDIT.value,
        Transaction.source_key == payment_intent_id,
    )
    if connection.scalar(credited) is None:
        raise RefundError(
            f"PAYMENT_INTENT: {payment_intent_id} is not a credit of org {org_id}: only an org's own credits are refunded."
        )
    statement = (
        insert_unless_there(OperatorRefund)
        .values(
            org_id=org_id,
            key=key,
            payment_intent_id=payment_intent_id,
            amount_cents=amount_cents,
            reason=reason,
        )
        .on_conflict_do_nothing()
        .returning(OperatorRefund.key)
    )
    if connection.scalar(statement) is not None:
        details = {"amount_cents": amount_cents, "key": key}
        log_action(
            connection,
            actor,
            "refund",
            org_id=org_id,
            subject=payment_intent_id,
            reason=reason,
            details=details,
        )
    found = _find(connection, org_id, key)
    if (found.payment_intent_id, found.amount_cents, found.reason) != (
        payment_intent_id,
        amount_cents,
        reason,
    ):
        amount = "all that was left" if found.amount_cents is None else f"{found.amount_cents} cents"
        raise RefundError(
            f"key: {key!r} was used before for org {org_id}, for {amount} of {found.payment_intent_id}, {found.reason!r}; choose"
            " another key for another refund."
        )
    return found


def note_refund(connection: Connection, wanted: WantedRefund, refund_id: str) -> None:
    """Note the refund that Stripe has made."""
    _change(connection, wanted, refund_id=refund_id)


def note_refusal(connection: Connection, wanted: WantedRefund, refusal: str) -> None:
    """Note why Stripe has not made it, and won't."""
    _change(connection, wanted, refusal=refusal)


def _change(connection: Connection, wanted: WantedRefund, **values: str) -> None:
    connection.execute(
        update(OperatorRefund)
        .where(
            OperatorRefund.org_id == wanted.org_id,
            OperatorRefund.key == wanted.key,
            OperatorRefund.refund_id.is_(None),
            OperatorRefund.refusal.is_(None),
        )
        .values(**values)
    )


def _find(connection: Connection, org_id: int, key: str) -> WantedRefund:
    columns = (
        *(OperatorRefund.org_id, OperatorRefund.key, OperatorRefund.payment_intent_id),
        *(
            OperatorRefund.amount_cents,
            OperatorRefund.reason,
            OperatorRefund.refund_id,
            OperatorRefund.refusal,
        ),
        _SENDABLE,
    )
    row = connection.execute(
        select(*columns).where(OperatorRefund.org_id == org_id, OperatorRefund.key == key)
    ).one()
    return WantedRefund(*row)
