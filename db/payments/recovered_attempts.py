"""Attempts that a restored database has lost, written again from what Stripe holds of them."""

from uuid import UUID

from db.attempts.attempts import (
    Attempt,
    finish_attempt,
    open_reload,
    recover_attempt,
)
from db.payments.locked_org import LockedOrg
from metering.rules.payments import AttemptKind, AttemptStatus, Intent
from metering.runtime.clock import to_milliseconds


def recover_lost_attempt(org: LockedOrg, intent: Intent, attempt_id: UUID) -> Attempt:
    """Write again the row of an attempt that this database has lost."""
    kind = intent.kind or AttemptKind.TOP_UP
    status = AttemptStatus.OPEN
    if kind is AttemptKind.AUTO_RELOAD and (other := open_reload(org.connection, org.id)) is not None:
        if other.first_sent_at is None:
            finish_attempt(org.connection, other, AttemptStatus.CANCELLED, org.now, code="superseded")
        else:  # two can't be open; if this one's money comes, it is credited all the same
            status = AttemptStatus.CANCELLED
    recover_attempt(
        org.connection,
        org.id,
        attempt_id,
        kind,
        status=status,
        amount_cents=intent.amount_cents,
        customer_id=intent.customer_id or "",
        payment_method_id=intent.payment_method_id or "",
        payment_intent_id=intent.id,
        at=to_milliseconds(intent.created_at),
        now=org.now,
    )
    return org.read_attempt(attempt_id)
