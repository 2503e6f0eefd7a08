"""What a customer is told of a top-up: how the charge stands, why there was none, or that it isn't known yet."""

from typing import Final

from db.attempts.attempts import Attempt
from metering.payments.cards import REFUSED, not_done, require_account, undecided
from metering.payments.charges import AttemptProgress
from metering.payments.context import Payments
from metering.payments.errors import (
    InvalidPaymentMethodError,
    PaymentError,
    PaymentMethodRequiredError,
    ProviderRefusedError,
)
from metering.payments.outcomes import AuthenticationRequired, CardDeclined, TopUpMade, TopUpOutcome
from metering.payments.settling import settle_and_follow
from metering.payments.stripe_failures import StripeFailure, StripeRefused
from metering.rules.payments import AttemptStatus, Intent, IntentSeen, IntentStatus, Missing
from metering.rules.reloads import AUTHENTICATION_REQUIRED

_MISSING_CODES: Final = frozenset(each.code for each in Missing)


def outcome_of(payments: Payments, progress: AttemptProgress) -> TopUpOutcome:
    """What a customer is told.

    Raises ProviderUnavailableError where it isn't known, and of a charge that Stripe refused PaymentMethodRequiredError,
    InvalidPaymentMethodError, ProviderRefusedError.
    """
    attempt, intent = progress.attempt, progress.intent
    if progress.failure is not None or attempt is None:
        raise undecided(progress.failure)  # the attempt is open: it may have been charged
    if intent is None and attempt.payment_intent_id is not None:
        try:
            intent = payments.stripe.retrieve_intent(attempt.payment_intent_id)
            if (
                attempt.open and intent.status != attempt.intent_status
            ):  # it goes on: no event has told us yet
                seen, of = IntentSeen(intent), (attempt.org_id, attempt.id)
                attempt = settle_and_follow(payments, seen, of=of).attempt or attempt
        except StripeFailure as failure:
            raise undecided(failure) from failure
    if intent is not None and intent.status != IntentStatus.CANCELED:
        if intent.status == IntentStatus.SUCCEEDED and attempt.status is not AttemptStatus.SUCCEEDED:
            raise not_done(None)  # the money came, and is not booked: never say that it is
        return _told_of(intent)
    if attempt.declined:
        return CardDeclined(attempt.failure_code or "", attempt.failure_message or "")
    if attempt.status is AttemptStatus.FAILED:
        raise _why_refused(payments, attempt)
    raise not_done(None)  # also of a cancelled one, which would read as done: asked again, it is made anew


def _why_refused(payments: Payments, attempt: Attempt) -> PaymentError:
    """What a customer is told of a charge that Stripe refused, and will refuse again."""
    if attempt.failure_code in _MISSING_CODES:  # then the card was dropped
        if not require_account(payments, attempt.org_id).has_payment_method:
            return PaymentMethodRequiredError(
                "the payment provider no longer has the saved card: save one again (POST /v1/billing/setup-intent), then make it"
                " the default (POST /v1/billing/default-payment-method)"
            )
    elif _chargeable(payments, attempt):
        return ProviderRefusedError(REFUSED)
    return InvalidPaymentMethodError("this payment method can't be charged: choose another, or save it again")


def _chargeable(payments: Payments, attempt: Attempt) -> bool:
    """Whether the card of a charge that Stripe refused is there, and the customer's: it may have been taken away there."""
    try:
        return payments.stripe.retrieve_card(attempt.payment_method_id).customer_id == attempt.customer_id
    except StripeRefused:
        return False
    except StripeFailure as failure:
        raise not_done(failure) from failure


def _told_of(intent: Intent) -> TopUpOutcome:
    if intent.status == IntentStatus.REQUIRES_PAYMENT_METHOD and intent.decline is not None:
        if intent.decline.code == AUTHENTICATION_REQUIRED:
            return AuthenticationRequired(intent.id, intent.client_secret, intent.decline.message)
        return CardDeclined(intent.decline.code, intent.decline.message)
    return TopUpMade(intent.id, intent.status, intent.client_secret)
