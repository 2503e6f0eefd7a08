"""What a customer is told of a top-up: kept with its `Idempotency-Key`, so that a repeat gets the very same."""

from dataclasses import dataclass

import msgspec


class TopUpMade(msgspec.Struct, frozen=True, tag="made"):
    """The PaymentIntent, as Stripe holds it: `succeeded`, or what is still to be done."""

    payment_intent_id: str
    status: str
    client_secret: str | None


class CardDeclined(msgspec.Struct, frozen=True, tag="declined"):
    """The bank declined. `decline_code` is Stripe's."""

    decline_code: str
    message: str


class AuthenticationRequired(msgspec.Struct, frozen=True, tag="authentication_required"):
    """The bank wants the cardholder; `client_secret` lets Stripe.js ask for that."""

    payment_intent_id: str
    client_secret: str | None
    message: str


TopUpOutcome = TopUpMade | CardDeclined | AuthenticationRequired


@dataclass(frozen=True, slots=True)
class SetupIntentMade:
    """A SetupIntent, to be confirmed in the customer's browser."""

    setup_intent_id: str
    client_secret: str
