"""Whose a PaymentIntent is, and of which attempt."""

from uuid import UUID

from sqlalchemy import Connection

from db.attempts.attempts import find_by_intent
from db.payments.settlement_outcome import Outcome
from db.payments.stripe_customers import find_org_of_customer
from metering.rules.payments import CURRENCY, Intent


def find_owner(
    connection: Connection, intent: Intent, of: tuple[int, UUID] | None, livemode: bool
) -> tuple[int, UUID] | Outcome:
    """Org and attempt of a PaymentIntent, or why it has none.

    Its customer says whose it is. Our request or our row that knows it says which attempt; only of one that we don't know yet do
    metadata, which anybody may edit at Stripe.
    """
    if intent.livemode != livemode:
        return Outcome.WRONG_LIVEMODE
    org_id = None if intent.customer_id is None else find_org_of_customer(connection, intent.customer_id)
    if org_id is None:
        return (
            Outcome.UNKNOWN_INTENT if of is None and intent.attempt_id is None else Outcome.FOREIGN_CUSTOMER
        )
    if of is not None and of[0] != org_id:
        return Outcome.FOREIGN_CUSTOMER
    if intent.currency != CURRENCY:
        return Outcome.FOREIGN_CURRENCY
    if of is not None:
        return of
    known = find_by_intent(connection, org_id, intent.id)
    attempt_id = intent.attempt_id if known is None else known.id
    return Outcome.UNKNOWN_INTENT if attempt_id is None else (org_id, attempt_id)
