"""What a refusal of Stripe's concerns: the customer's card, which he can change, or our account and our request, which he can't.

See docs/reference/auto-reload.md#pauses; Stripe's codes: docs.stripe.com/error-codes.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from metering.rules.reloads import LiftsWith, Pause


class Concern(StrEnum):
    """Who can do something about a refusal."""

    CUSTOMER = "customer"
    """The one who pays: it is about his card, or about him as a customer at Stripe."""
    INSTALLATION = "installation"
    """Whoever runs this: it is about the account at Stripe, or about a request as it was made."""


_PARAMS: Final = frozenset(
    {"customer", "payment_method", "source", "card", "invoice_settings[default_payment_method]"}
)
_CODES: Final = frozenset(
    {
        *(
            "card_declined",
            "card_decline_rate_limit_exceeded",
            "expired_card",
            "incorrect_address",
            "incorrect_cvc",
        ),
        *("incorrect_number", "incorrect_zip", "invalid_cvc", "invalid_expiry_month", "invalid_expiry_year"),
        *("invalid_number", "invalid_card_type", "authentication_required", "postal_code_invalid"),
        *(
            "missing_payment_method",
            "payment_intent_authentication_failure",
            "payment_intent_payment_attempt_failed",
        ),
        *(
            "payment_method_customer_decline",
            "payment_method_provider_decline",
            "payment_method_invalid_parameter",
        ),
        *("payment_method_unexpected_state", "payment_method_billing_details_address_missing"),
        *("payment_method_currency_mismatch", "payment_method_microdeposit_failed"),
        *("token_already_used", "token_card_network_invalid", "processing_error"),
    }
)
_MISSING: Final = "resource_missing"
_OF_THE_REQUEST: Final = ("parameter_", "account_", "url_", "api_key_", "platform_", "testmode_", "livemode_")

INSTALLATION_PAUSES: Final = (timedelta(hours=1), timedelta(hours=24))
"""How long a refusal that concerns the installation pauses: the first time, and each time that it comes again at once."""


def refusal_concerns(*, type_: str | None, code: str | None, param: str | None) -> Concern:
    """What a 4xx that decides something concerns, by Stripe's type, code and parameter.

    What isn't known to be about the card or the customer is about us: that pause ends by itself, so a mistake costs a customer
    some hours, and not every reload until he changes something.
    """
    if type_ == "card_error":
        return Concern.CUSTOMER
    if code is not None and code.startswith(_OF_THE_REQUEST):
        return Concern.INSTALLATION
    about_him = param in _PARAMS and code in {None, _MISSING}
    return Concern.CUSTOMER if about_him or code in _CODES else Concern.INSTALLATION


def pause_after_refusal(
    code: str, concern: Concern, *, held: Pause | None, card: str | None, now: datetime
) -> Pause:
    """The pause that a refused charge leads to. `held` is the last pause, in force or run out, since the last success."""
    if concern is Concern.CUSTOMER:
        return Pause(code, LiftsWith.CHANGE, now, card=card)
    again = held is not None and (held.code, held.lifts_with) == (code, LiftsWith.TIME)
    return Pause(code, LiftsWith.TIME, now, until=now + INSTALLATION_PAUSES[again], card=card)
