"""Refunding a payment by an operator's word: at Stripe, once for its key; in the ledger when Stripe says so."""

import hashlib
from dataclasses import dataclass

from db.operators.log import Actor
from db.payments.operator_refunds import RefundError, WantedRefund, note_refund, note_refusal, want_refund
from db.postgres.engine import transaction
from metering.payments.context import Payments
from metering.payments.lookup import look_up_intent
from metering.payments.stripe_failures import StripeRefused
from metering.rules.payments import Refund


@dataclass(frozen=True, slots=True)
class Refunded:
    """A refund at Stripe. `new` is False where this key had made it before."""

    refund: Refund
    new: bool


def refund_key(org_id: int, key: str) -> str:
    """The idempotency key of an operator's refund, which also marks it at Stripe."""
    return "refund-" + hashlib.sha256(f"{org_id}:{key}".encode()).hexdigest()[:40]


def refund_payment(
    payments: Payments,
    actor: Actor,
    org_id: int,
    payment_intent_id: str,
    *,
    amount_cents: int | None,
    reason: str,
    key: str,
) -> Refunded:
    """Refund a payment that the org was credited with, in whole or in part, and bring the ledger to what Stripe then holds of it.

    A repeat with the same key settles what an earlier one left open, and makes nothing twice. Raises RefundError, OrgError, and
    StripeFailure where the outcome isn't known: then it may be repeated.
    """
    with transaction(payments.engine) as connection:
        wanted = want_refund(
            connection,
            actor,
            org_id,
            payment_intent_id,
            amount_cents=amount_cents,
            reason=reason,
            key=key,
        )
    if wanted.refusal is not None:
        raise RefundError(_refused(wanted, wanted.refusal))
    mark = refund_key(org_id, key)
    refund = payments.stripe.find_refund(payment_intent_id, mark)
    new = refund is None
    if refund is None:
        refund = _make(payments, wanted, mark)
    if wanted.refund_id is None:
        with transaction(payments.engine) as connection:
            note_refund(connection, wanted, refund.id)
    look_up_intent(payments, payment_intent_id)
    return Refunded(refund, new)


def _make(payments: Payments, wanted: WantedRefund, mark: str) -> Refund:
    if wanted.refund_id is not None:
        raise RefundError(
            f"Stripe doesn't list the refund {wanted.refund_id} that was made with key {wanted.key!r}: is STRIPE_API_KEY of the"
            " same account?"
        )
    if not wanted.sendable:
        # No request takes so long: what isn't listed by now was never made, and Stripe may have forgotten the key.
        refusal = "it was not made within 23 hours"
        _note_refusal(payments, wanted, refusal)
        raise RefundError(_refused(wanted, refusal))
    try:
        return payments.stripe.create_refund(
            wanted.payment_intent_id, amount_cents=wanted.amount_cents, mark=mark
        )
    except StripeRefused as refused:
        _note_refusal(payments, wanted, refused.message)
        raise RefundError(_refused(wanted, refused.message)) from refused


def _note_refusal(payments: Payments, wanted: WantedRefund, refusal: str) -> None:
    with transaction(payments.engine) as connection:
        note_refusal(connection, wanted, refusal)


def _refused(wanted: WantedRefund, refusal: str) -> str:
    return f"Nothing was refunded of {wanted.payment_intent_id}: {refusal.rstrip('. ')}. Choose another key to ask for it again."
