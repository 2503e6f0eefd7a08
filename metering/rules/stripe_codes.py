"""Stripe's codes by which a charge fails, as far as they are known: what is counted by code has so many labels and no more.

docs.stripe.com/declines/codes and docs.stripe.com/error-codes; ours are those of pauses that no charge has brought about.
"""

from typing import Final

from metering.rules.reloads import AUTHENTICATION_REQUIRED, HARD_DECLINES, LOST_MONEY

OTHER: Final = "other"
"""Stands for every code that isn't known here: Stripe makes new ones, and banks may say what they like."""

_SOFT_DECLINES: Final = frozenset(
    {
        *("approve_with_id", "call_issuer", "card_velocity_exceeded", "do_not_honor", "do_not_try_again"),
        *("duplicate_transaction", "generic_decline", "insufficient_funds", "invalid_amount", "invalid_pin"),
        *(
            "issuer_not_available",
            "no_action_taken",
            "not_permitted",
            "offline_pin_required",
            "pin_try_exceeded",
        ),
        *("online_or_offline_pin_required", "processing_error", "reenter_transaction", "service_not_allowed"),
        *("try_again_later", "withdrawal_count_limit_exceeded", "testmode_decline", "live_mode_test_card"),
        *(
            "incorrect_cvc",
            "invalid_cvc",
            "incorrect_pin",
            "incorrect_zip",
            "incorrect_address",
            "mobile_device_authentication_required",
        ),
        *("card_decline_rate_limit_exceeded", "card_declined", "previously_declined_do_not_retry"),
        *("elevated_risk_level", "rule", "blocked"),
    }
)
_ERRORS: Final = frozenset(
    {
        *(
            "resource_missing",
            "payment_intent_authentication_failure",
            "payment_intent_payment_attempt_failed",
        ),
        *(
            "payment_method_customer_decline",
            "payment_method_provider_decline",
            "payment_method_unexpected_state",
        ),
        *("payment_method_invalid_parameter", "payment_method_not_available", "missing_payment_method"),
        *("amount_too_small", "amount_too_large", "balance_insufficient", "account_invalid", "rate_limit"),
        *("parameter_unknown", "parameter_invalid_integer", "parameter_missing", "idempotency_key_in_use"),
        *("card_error", "invalid_request_error", "api_error", "canceled"),
    }
)
KNOWN_CODES: Final = HARD_DECLINES | LOST_MONEY | _SOFT_DECLINES | _ERRORS | {AUTHENTICATION_REQUIRED}

COMMON_CODES: Final = (
    *("insufficient_funds", "generic_decline", "do_not_honor", "expired_card", "lost_card", "stolen_card"),
    *(AUTHENTICATION_REQUIRED, OTHER),
)
"""Those that come all the time."""


def known_code(code: str) -> str:
    """The code, or `other` where it isn't known."""
    return code if code in KNOWN_CODES else OTHER
