"""Stripe's test cards: what each looks like and how it behaves (docs.stripe.com/testing)."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from metering.sandbox.stripe.values import Json


class Authentication(StrEnum):
    """When a card wants its holder (3D Secure)."""

    NEVER = "never"
    ALWAYS = "always"
    UNLESS_SET_UP = "unless_set_up"
    """On-session always; off-session unless it was set up for that."""
    ON_SESSION = "on_session"
    """As if it had been set up for off-session payments somewhere else."""


class AfterCharge(StrEnum):
    """What comes of a charge later, by itself."""

    NOTHING = "nothing"
    DISPUTE = "fraudulent"
    DISPUTE_NOT_RECEIVED = "product_not_received"
    INQUIRY = "inquiry"
    REFUND_PENDS = "refund_pends"
    REFUND_FAILS = "refund_fails"


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a bank says no. `decline_code` is None where the error's code says it all, as with an expired card."""

    code: str
    decline_code: str | None
    message: str


_MESSAGES: Final = {
    "authentication_required": "Your card was declined. This transaction requires authentication.",
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
    "incorrect_number": "Your card number is incorrect.",
    "insufficient_funds": "Your card has insufficient funds.",
    "card_velocity_exceeded": (
        "Your card was declined for making repeated attempts too frequently or exceeding its amount limit."
    ),
    "card_not_supported": "Your card does not support this type of purchase.",
}

_CODES_OF_THEIR_OWN: Final = {"expired_card", "incorrect_cvc", "processing_error", "incorrect_number"}


def decline_for(reason: str) -> Decline:
    """The decline that Stripe reports for a decline code such as `lost_card`, or for an error code that is its own reason."""
    message = _MESSAGES.get(reason, "Your card was declined.")
    if reason in _CODES_OF_THEIR_OWN:
        return Decline(reason, None, message)
    if reason == "authentication_required":
        return Decline(reason, reason, message)
    return Decline("card_declined", reason, message)


@dataclass(frozen=True, slots=True)
class Card:
    """A test card. `decline` is the reason for which every charge fails, `attaches` whether it can be saved all the same."""

    number: str
    token: str
    brand: str = "visa"
    funding: str = "credit"
    country: str = "US"
    decline: str | None = None
    attaches: bool = True
    authentication: Authentication = Authentication.NEVER
    after: AfterCharge = AfterCharge.NOTHING

    @property
    def fingerprint(self) -> str:
        """The same for the same number, whoever uses it."""
        return hashlib.sha256(f"card {self.number}".encode()).hexdigest()[:16]


def _declining(number: str, token: str, reason: str) -> Card:
    return Card(number, token, decline=reason, attaches=False)


CARDS: Final = (
    Card("4242424242424242", "pm_card_visa"),
    Card("4000056655665556", "pm_card_visa_debit", funding="debit"),
    Card("5555555555554444", "pm_card_mastercard", "mastercard"),
    Card("5200828282828210", "pm_card_mastercard_debit", "mastercard", "debit"),
    Card("5105105105105100", "pm_card_mastercard_prepaid", "mastercard", "prepaid"),
    Card("378282246310005", "pm_card_amex", "amex"),
    Card("6011111111111117", "pm_card_discover", "discover"),
    Card("3056930009020004", "pm_card_diners", "diners"),
    Card("3566002020360505", "pm_card_jcb", "jcb"),
    Card("6200000000000005", "pm_card_unionpay", "unionpay"),
    Card("4000000000000077", "pm_card_bypassPending"),
    # Cards that the bank declines. Stripe can't attach them: that takes the last of them.
    _declining("4000000000000002", "pm_card_visa_chargeDeclined", "generic_decline"),
    _declining("4000000000009995", "pm_card_visa_chargeDeclinedInsufficientFunds", "insufficient_funds"),
    _declining("4000000000009987", "pm_card_visa_chargeDeclinedLostCard", "lost_card"),
    _declining("4000000000009979", "pm_card_visa_chargeDeclinedStolenCard", "stolen_card"),
    _declining("4000000000000069", "pm_card_chargeDeclinedExpiredCard", "expired_card"),
    _declining("4000000000000127", "pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc"),
    _declining("4000000000000119", "pm_card_chargeDeclinedProcessingError", "processing_error"),
    _declining(
        "4000000000006975", "pm_card_visa_chargeDeclinedVelocityLimitExceeded", "card_velocity_exceeded"
    ),
    _declining("4100000000000019", "pm_card_radarBlock", "fraudulent"),
    Card("4000000000000341", "pm_card_chargeCustomerFail", decline="generic_decline"),
    # Cards whose bank wants the holder.
    Card("4000002760003184", "pm_card_authenticationRequired", authentication=Authentication.ALWAYS),
    Card("4000000000003220", "pm_card_threeDSecure2Required", authentication=Authentication.ALWAYS),
    Card(
        "4000002500003155",
        "pm_card_authenticationRequiredOnSetup",
        authentication=Authentication.UNLESS_SET_UP,
    ),
    Card(
        "4000003800000446",
        "pm_card_authenticationRequiredSetupForOffSession",
        authentication=Authentication.ON_SESSION,
    ),
    Card(
        "4000008260003178",
        "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds",
        decline="insufficient_funds",
        authentication=Authentication.ALWAYS,
    ),
    # Cards whose charges have a sequel.
    Card("4000000000000259", "pm_card_createDispute", after=AfterCharge.DISPUTE),
    Card(
        "4000000000002685", "pm_card_createDisputeProductNotReceived", after=AfterCharge.DISPUTE_NOT_RECEIVED
    ),
    Card("4000000000001976", "pm_card_createDisputeInquiry", after=AfterCharge.INQUIRY),
    Card("4000000000007726", "pm_card_pendingRefund", after=AfterCharge.REFUND_PENDS),
    Card("4000000000005126", "pm_card_refundFail", after=AfterCharge.REFUND_FAILS),
)

_BY_TOKEN: Final = {card.token: card for card in CARDS}
_BY_NUMBER: Final = {card.number: card for card in CARDS}
_NAMES_BESIDE: Final = {  # other names of Stripe's for the same cards
    "pm_card_chargeDeclined": "pm_card_visa_chargeDeclined",
    "pm_card_chargeDeclinedInsufficientFunds": "pm_card_visa_chargeDeclinedInsufficientFunds",
    "pm_card_chargeDeclinedFraudulent": "pm_card_radarBlock",
    "pm_card_threeDSecureRequired": "pm_card_threeDSecure2Required",
    "pm_card_us": "pm_card_visa",
}


def card_for_token(token: str) -> Card | None:
    """The card that a `pm_card_...` (or the older `tok_...`) stands for; None where Stripe has none of that name."""
    name = token.replace("tok_", "pm_card_", 1) if token.startswith("tok_") else token
    return _BY_TOKEN.get(_NAMES_BESIDE.get(name, name))


def card_for_number(number: str) -> Card | None:
    """The card with that number, with or without spaces; None where it is no test card."""
    return _BY_NUMBER.get(number.replace(" ", "").replace("-", ""))


def card_shape(card: Card, exp_month: int, exp_year: int) -> Json:
    """The hash `card` of a PaymentMethod."""
    return {
        "brand": card.brand,
        "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "unchecked"},
        "country": card.country,
        "display_brand": card.brand,
        "exp_month": exp_month,
        "exp_year": exp_year,
        "fingerprint": card.fingerprint,
        "funding": card.funding,
        "generated_from": None,
        "last4": card.number[-4:],
        "networks": {"available": [card.brand], "preferred": None},
        "regulated_status": "unregulated",
        "three_d_secure_usage": {"supported": True},
        "wallet": None,
    }
