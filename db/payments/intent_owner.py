"""Whose a PaymentIntent is, and of which attempt."""

from uuid import UUID

from sqlalchemy import Connection

from db.attempts.attempts import find_by_intent
from db.payments.settlement_outcome import Outcome
from db.payments.stripe_customers import find_org_of_customer
from metering.rules.payments import CURRENCY, Intent


def find_owner(
    connection: Connection, intent: Intent, of: tuple[int, UUID] | None, livemode: bool, *, proven: bool
) -> tuple[int, UUID] | Outcome:
    """Org and attempt of a PaymentIntent, or why it has none.

    Its customer says whose it is. Which attempt, the key says with which it was made (`proven`: it is that of `of`); else our row
    that knows it; and only of one that we don't know yet metadata, which anybody may edit at Stripe.
    """
    if intent.livemode != livemode:
        return Outcome.WRONG_LIVEMODE
    org_id = None if intent.customer_id is None else find_org_of_customer(connection, intent.customer_id)
    if org_id is None or (of is not None and of[0] != org_id):
        strange = org_id is None and of is None and intent.attempt_id is None
        return Outcome.UNKNOWN_INTENT if strange else Outcome.FOREIGN_CUSTOMER
    if intent.currency != CURRENCY:
        return Outcome.FOREIGN_CURRENCY
    if of is not None and proven:
        return of
    known = find_by_intent(connection, org_id, intent.id)
    if known is not None:
        return org_id, known.id
    attempt_id = intent.attempt_id if of is None else of[1]
    return Outcome.UNKNOWN_INTENT if attempt_id is None else (org_id, attempt_id)
