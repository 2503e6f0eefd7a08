"""Attempts that a restored database has lost, written again from what Stripe holds of them."""

from uuid import UUID

from db.attempts.attempts import (
    Attempt,
    change_attempt,
    find_by_intent,
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


def take_from_recovered(org: LockedOrg, attempt: Attempt, intent: Intent) -> None:
    """Give a payment, which Stripe answers under this attempt's own key, back to it: edited metadata had named a new one."""
    other = find_by_intent(org.connection, org.id, intent.id)
    if other is None or other.id == attempt.id or not other.recovered:
        return
    finish_attempt(org.connection, other, AttemptStatus.CANCELLED, org.now, code="superseded")
    change_attempt(org.connection, other, payment_intent_id=None, intent_status=None)
    finish_attempt(org.connection, attempt, AttemptStatus.SUCCEEDED, org.now)
    change_attempt(
        org.connection,
        attempt,
        payment_intent_id=intent.id,
        intent_created_at=to_milliseconds(intent.created_at),
        intent_status=intent.status,
        looked_at=org.now,
    )
