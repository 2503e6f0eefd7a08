"""Looking at what Stripe holds of a PaymentIntent, and bringing the ledger to it: what webhooks and the event list ask for."""

from db.payments.settlement_outcome import Settled
from db.payments.stripe_events import EventRef
from metering.payments.charges import cancel_if_stuck
from metering.payments.context import Payments
from metering.payments.settling import settle_and_follow
from metering.rules.payments import IntentSeen, IntentStatus


def look_up_intent(payments: Payments, intent_id: str, *, event: EventRef | None = None) -> Settled:
    """Retrieve a PaymentIntent, with its refunds and disputes if it has succeeded, and settle. Raises StripeFailure.

    Outside of any transaction: what is read may be outdated when it is settled, and settling bears that.
    """
    intent = payments.stripe.retrieve_intent(intent_id)
    succeeded = intent.status == IntentStatus.SUCCEEDED
    seen = IntentSeen(
        intent,
        payments.stripe.refunds_of(intent_id) if succeeded else None,
        payments.stripe.disputes_of(intent_id) if succeeded else None,
    )
    settled = settle_and_follow(payments, seen, event=event)
    if settled.attempt is not None:
        cancel_if_stuck(payments, settled.attempt, intent)
    return settled
