"""Attempts that were taken for a payment's own, by edited metadata, and give it back when its own key names another."""

from typing import Final

from db.attempts.attempts import (
    Attempt,
    change_attempt,
    find_attempt,
    find_by_intent,
    finish_attempt,
    open_reload,
    recover_attempt,
)
from db.ledger.postings import is_posted
from db.models import Kind
from db.payments.locked_org import LockedOrg
from metering.rules.payments import AttemptKind, AttemptStatus, Intent, IntentStatus, booked_attempt_id

DISPLACED: Final = "displaced"
"""The code of an open attempt that was noted with a payment which is another's: its own is looked for, and never sent again."""
SUPERSEDED: Final = "superseded"


def give_to_its_own(org: LockedOrg, attempt: Attempt, intent: Intent) -> bool:
    """Take a PaymentIntent, made under this attempt's own key, from whichever attempt is noted with it; give whether one was.

    What this attempt itself was noted with is another's: if it is credited, an attempt apart has it until its own takes it.
    """
    holder = find_by_intent(org.connection, org.id, intent.id)
    if holder is not None:
        change_attempt(
            org.connection, holder, payment_intent_id=None, intent_created_at=None, intent_status=None
        )
        _go_on(org, holder)
    others = attempt.payment_intent_id
    if others is not None:
        change_attempt(
            org.connection, attempt, payment_intent_id=None, intent_created_at=None, intent_status=None
        )
        if is_posted(org.connection, org.id, Kind.CREDIT, others):
            _keep_apart(org, attempt, others)
        _go_on(org, attempt)
    return holder is not None or others is not None


def _go_on(org: LockedOrg, displaced: Attempt) -> None:
    """Let a displaced attempt go on: open, to be settled by its own payment or by its absence.

    But one that was only written for the payment ends, and so does a reload where another one is open: if its money comes, it is
    credited all the same.
    """
    other = open_reload(org.connection, org.id) if displaced.kind is AttemptKind.AUTO_RELOAD else None
    stands_in_the_way = other is not None and other.id != displaced.id
    if displaced.recovered or stands_in_the_way:
        finish_attempt(org.connection, displaced, AttemptStatus.CANCELLED, org.now, code=SUPERSEDED)
        return
    change_attempt(
        org.connection,
        displaced,
        status=AttemptStatus.OPEN.value,
        finished_at=None,
        failure_code=DISPLACED,
        failure_message=None,
        tries=0,
        in_hand_until=None,
        look_at=org.now,
    )


def _keep_apart(org: LockedOrg, attempt: Attempt, payment_intent_id: str) -> None:
    """Write an attempt for a credited payment that this one was noted with, and which isn't its own."""
    apart = find_attempt(org.connection, org.id, booked_attempt_id(payment_intent_id))
    if apart is None:
        recover_attempt(
            org.connection,
            org.id,
            booked_attempt_id(payment_intent_id),
            AttemptKind.TOP_UP,
            status=AttemptStatus.SUCCEEDED,
            amount_cents=attempt.amount_cents,
            customer_id=attempt.customer_id,
            payment_method_id=attempt.payment_method_id,
            payment_intent_id=payment_intent_id,
            at=attempt.created_at,
            now=org.now,
        )
        return
    finish_attempt(org.connection, apart, AttemptStatus.SUCCEEDED, org.now)
    change_attempt(
        org.connection,
        apart,
        payment_intent_id=payment_intent_id,
        intent_status=IntentStatus.SUCCEEDED.value,
    )
