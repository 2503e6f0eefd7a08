"""Which attempt a PaymentIntent is of, by the key with which it was made: nobody can edit that."""

from uuid import UUID

from db.attempts.attempts import find_attempt, find_by_intent, may_be_of_another
from db.payments.stripe_customers import find_org_of_customer
from db.postgres.engine import transaction
from metering.payments.context import Payments
from metering.rules.payments import Intent


def attempt_by_key(payments: Payments, intent: Intent) -> tuple[int, UUID] | None:
    """Org and attempt of a PaymentIntent by its idempotency key, which is the attempt's id. Raises StripeFailure.

    Stripe is asked only where metadata leave a doubt. None where they leave none, and where Stripe doesn't tell.
    """
    if intent.customer_id is None:
        return None
    with transaction(payments.engine) as connection:
        org_id = find_org_of_customer(connection, intent.customer_id)
        if org_id is None or find_by_intent(connection, org_id, intent.id) is not None:
            return None
        if not may_be_of_another(connection, org_id, intent):
            return None
    try:
        attempt_id = UUID(payments.stripe.key_of_intent(intent) or "")
    except ValueError:
        return None
    with transaction(payments.engine) as connection:
        # Without our mark it may be anybody's: others' keys look like ours.
        ours = intent.attempt_id is not None or find_attempt(connection, org_id, attempt_id) is not None
    return (org_id, attempt_id) if ours else None
