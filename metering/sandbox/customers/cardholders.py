"""What cardholders do at Stripe, where none of the product's APIs leads, and what Stripe then holds of theirs."""

from collections.abc import Collection
from typing import Any, Protocol

import stripe

from metering.payments.stripe_api import API_VERSION
from metering.sandbox.stripe.remote import control


class Cardholders(Protocol):
    """The two ways there are: at Stripe's stand-in, or at Stripe itself in test mode."""

    where: str
    """To be named in a sentence."""

    def save_card(self, setup_intent_id: str, card: str, /) -> str:
        """Enter a test card, `pm_card_...`, for a SetupIntent; give the payment method's id."""

    def authenticate(self, payment_intent_id: str, /) -> bool:
        """Pass 3DS for a payment. False where nobody can."""

    def spoil(self, payment_method_id: str, /) -> bool:
        """Have the bank decline a card that was good, for want of funds. False where nobody can."""

    def held_cents(self, customer_ids: Collection[str]) -> dict[str, int]:
        """What Stripe says it holds of each customer's money."""


class StandInCardholders:
    """At a stand-in that another process runs."""

    where = "The stand-in for Stripe"

    def __init__(self, url: str) -> None:
        self._url = url

    def save_card(self, setup_intent_id: str, card: str, /) -> str:
        return str(control(self._url, "confirm_setup", setup_intent=setup_intent_id, card=card))

    def authenticate(self, payment_intent_id: str, /) -> bool:
        control(self._url, "authenticate", payment_intent=payment_intent_id)
        return True

    def spoil(self, payment_method_id: str, /) -> bool:
        control(self._url, "fail_card", payment_method=payment_method_id, decline_code="insufficient_funds")
        return True

    def held_cents(self, customer_ids: Collection[str]) -> dict[str, int]:
        holdings = control(self._url, "holdings")
        return {
            customer_id: holdings[customer_id]["net_cents"] if customer_id in holdings else 0
            for customer_id in customer_ids
        }


class RealCardholders:
    """At Stripe itself, with a test key; there no program passes 3DS, and no card changes."""

    where = "Stripe, in test mode,"

    def __init__(self, api_key: str, base_url: str | None) -> None:
        client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            base_addresses={"api": base_url} if base_url else {},
            max_network_retries=2,
        )
        self._v1 = client.v1

    def save_card(self, setup_intent_id: str, card: str, /) -> str:
        confirm: Any = {"payment_method": card, "return_url": "https://example.com"}
        intent = self._v1.setup_intents.confirm(setup_intent_id, confirm)
        if intent.status == "succeeded":
            return str(intent.payment_method)
        # The card wants its holder, who isn't here: it is saved as a program may, and will want him at each charge.
        attach: Any = {"customer": str(intent.customer)}
        return str(self._v1.payment_methods.attach(card, attach).id)

    def authenticate(self, _payment_intent_id: str, /) -> bool:
        return False

    def spoil(self, _payment_method_id: str, /) -> bool:
        return False

    def held_cents(self, customer_ids: Collection[str]) -> dict[str, int]:
        """Received, less refunded; the demo knows no disputes."""
        held = {}
        for customer_id in customer_ids:
            params: Any = {"customer": customer_id, "limit": 100}
            charges = self._v1.charges.list(params).auto_paging_iter()
            held[customer_id] = sum(
                each.amount_captured - each.amount_refunded for each in charges if each.paid
            )
        return held
