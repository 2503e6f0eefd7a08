"""Objects that tests of the contract begin with, made as both stand-ins understand it."""

from typing import Any, Final

import stripe

from tests.stripe_contract.stand_ins import StandIn

VISA: Final = "4242424242424242"
ATTACHES_THEN_FAILS: Final = "4000000000000341"
DECLINED: Final = "4000000000000002"
ALWAYS_AUTHENTICATES: Final = "4000002760003184"


def card(client: stripe.StripeClient, number: str = VISA) -> stripe.PaymentMethod:
    """A payment method with a test card's number."""
    details: Any = {"number": number, "exp_month": 12, "exp_year": 2040, "cvc": "123"}
    return client.v1.payment_methods.create({"type": "card", "card": details})


def customer_with_card(client: stripe.StripeClient, number: str = VISA) -> tuple[str, str]:
    """The ids of a new customer and the payment method that was attached to it."""
    customer = client.v1.customers.create({"email": "someone@example.com"})
    method = client.v1.payment_methods.attach(card(client, number).id, {"customer": customer.id})
    return customer.id, method.id


def charge_of(client: stripe.StripeClient, intent: stripe.PaymentIntent) -> stripe.Charge:
    """The charge that an intent's money came by, whether or not the stand-in has expanded it unasked."""
    charge = intent.latest_charge
    assert charge is not None
    return client.v1.charges.retrieve(charge if isinstance(charge, str) else charge.id)


def paying(stand_in: StandIn, customer_id: str, method_id: str, **changes: Any) -> Any:
    """The parameters of a payment of 2,000 cents, confirmed at once; `changes` replaces or adds some."""
    customer_is_there = changes.get("confirm", True) and not changes.get("off_session")
    return {
        "amount": 2_000,
        "currency": "usd",
        "customer": customer_id,
        "payment_method": method_id,
        "confirm": True,
        **stand_in.card_only,
        **(stand_in.way_back if customer_is_there else {}),
        **changes,
    }


def pay(stand_in: StandIn, amount: int = 2_000, number: str = VISA) -> stripe.PaymentIntent:
    """A payment of a new customer, confirmed on-session."""
    customer_id, method_id = customer_with_card(stand_in.client, number)
    return stand_in.client.v1.payment_intents.create(paying(stand_in, customer_id, method_id, amount=amount))
