"""A customer with a card, and what a seller does with it."""

from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.sandbox import StripeSandbox


class Shop:
    """One customer. `method` is the card that was saved last."""

    def __init__(self, sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
        self.sandbox = sandbox
        self.client = client
        self.customer = client.v1.customers.create({"email": "someone@example.com"}).id
        self.method = sandbox.save_card(self.customer)

    def save(self, card: str) -> str:
        """Save another card, to be used from now on."""
        self.method = self.sandbox.save_card(self.customer, card=card)
        return self.method

    def params(self, amount: int = 2_000, **changes: Any) -> Any:
        """What a payment is asked for with. None as a change leaves the parameter out."""
        customer_is_there = changes.get("confirm", True) and not changes.get("off_session")
        asked = {
            "amount": amount,
            "currency": "usd",
            "customer": self.customer,
            "payment_method": self.method,
            "confirm": True,
            "allowed_payment_method_types": ["card"],
            "return_url": "https://example.com" if customer_is_there else None,
            **changes,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def pay(self, amount: int = 2_000, *, key: str | None = None, **changes: Any) -> stripe.PaymentIntent:
        """A payment, on-session unless it is told otherwise."""
        options: Any = {} if key is None else {"idempotency_key": key}
        return self.client.v1.payment_intents.create(self.params(amount, **changes), options)

    def decline(self, amount: int = 2_000, **changes: Any) -> dict[str, Any]:
        """A payment that must be declined; the error as Stripe words it."""
        with pytest.raises(stripe.CardError) as raised:
            self.pay(amount, **changes)
        assert raised.value.http_status == 402
        return error_of(raised)

    def retrieve(self, intent_id: str) -> stripe.PaymentIntent:
        return self.client.v1.payment_intents.retrieve(intent_id)

    def charges(self) -> list[stripe.Charge]:
        """All charges of the customer that took money, newest first."""
        charges = self.client.v1.charges.list({"customer": self.customer, "limit": 100})
        return [charge for charge in charges.data if charge.paid]

    def events(self) -> list[str]:
        """The types of all events, oldest first."""
        events = self.client.v1.events.list({"limit": 100})
        return [str(event.type) for event in events.data][::-1]

    def net(self) -> int:
        """What Stripe holds for the customer, in cents."""
        return self.sandbox.holdings()[self.customer].net_cents


def error_of(raised: pytest.ExceptionInfo[stripe.StripeError]) -> dict[str, Any]:
    """The error as Stripe words it."""
    body: Any = raised.value.json_body
    error: dict[str, Any] = body["error"]
    return error
