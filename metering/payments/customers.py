"""Whose a customer at Stripe is, where this database has forgotten it."""

from datetime import datetime

import structlog

from db.accounts.billing import keep_customer, read_billing
from db.payments.stripe_customers import claim_customer, find_org_of_customer
from db.postgres.engine import transaction
from metering.payments.context import Payments
from metering.payments.parsing import MAX_ORG_ID
from metering.rules.payments import Intent

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def customer_key(org_id: int, org_made_at: datetime) -> str:
    """The idempotency key with which an org's customer is made: no other org's begins with it, nor one's of the same id."""
    return f"customer-{org_id}-{int(org_made_at.timestamp() * 1_000_000)}"


def recognise_customer(payments: Payments, intent: Intent) -> None:
    """Note whose customer has paid, if he isn't known and it can be proved. Raises StripeFailure.

    A customer is noted before he is used, so an unknown one who pays with our metadata was made before this database was
    restored to an earlier time, or by somebody else. Metadata, his own too, prove nothing: anybody may edit them in the
    dashboard. What Stripe wrote down when he was made can't be edited, for the 30 days that it keeps events: our key, which bears
    the org and when that was made. Without that proof nothing is credited, and it is told.
    """
    if intent.customer_id is not None and intent.attempt_id is not None:
        recognise(payments, intent.customer_id, before=intent.created_at)


def recognise(payments: Payments, customer_id: str, *, before: datetime) -> None:
    """As `recognise_customer`, of one who was made `before` then, whatever he has paid for."""
    with transaction(payments.engine) as connection:
        if find_org_of_customer(connection, customer_id) is not None:
            return
    made_with = payments.stripe.key_of_customer(customer_id, before=before)
    _, _, named = (made_with or "").partition("customer-")
    org, _, _ = named.partition("-")
    if made_with is None or not org.isdecimal() or int(org) > MAX_ORG_ID:
        return
    with transaction(payments.engine) as connection:
        billing = read_billing(connection, int(org))
        if billing is None:
            return
        key = customer_key(billing.org_id, billing.created_at)
        if made_with != key and not made_with.startswith(f"{key}-"):
            return
        claim_customer(connection, customer_id, billing.org_id)
    with transaction(payments.engine) as connection:
        keep_customer(connection, billing.org_id, customer_id)
    log.warning(
        "a customer that this database had forgotten is known again",
        org_id=int(org),
        customer=customer_id,
    )
