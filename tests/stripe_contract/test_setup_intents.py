"""SetupIntents, as Stripe documents them."""

from typing import Any

import pytest
import stripe

from tests.stripe_contract.making import ALWAYS_AUTHENTICATES, DECLINED, card
from tests.stripe_contract.stand_ins import StandIn


def _setup(stand_in: StandIn) -> stripe.SetupIntent:
    customer = stand_in.client.v1.customers.create({})
    params: Any = {"customer": customer.id, "usage": "off_session", **stand_in.card_only}
    return stand_in.client.v1.setup_intents.create(params)


def test_a_setup_intent_waits_for_a_card(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    assert made.id.startswith("seti_")
    assert (made.status, made.usage, made.payment_method) == ("requires_payment_method", "off_session", None)
    assert made.client_secret is not None
    assert made.client_secret.startswith(f"{made.id}_secret_")


def test_a_confirmed_setup_intent_has_its_card(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client)
    confirmed = stand_in.client.v1.setup_intents.confirm(made.id, {"payment_method": method.id})
    assert (confirmed.status, confirmed.payment_method) == ("succeeded", method.id)


def test_the_card_of_a_setup_intent_becomes_the_customers(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client)
    stand_in.client.v1.setup_intents.confirm(made.id, {"payment_method": method.id})
    assert stand_in.client.v1.payment_methods.retrieve(method.id).customer == made.customer


def test_a_bank_that_wants_the_holder_is_asked_at_setup(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client, ALWAYS_AUTHENTICATES)
    confirmed = stand_in.client.v1.setup_intents.confirm(made.id, {"payment_method": method.id})
    assert confirmed.status == "requires_action"
    assert confirmed.next_action is not None


def test_a_declined_card_is_not_set_up(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client, DECLINED)
    with pytest.raises(stripe.CardError) as raised:
        stand_in.client.v1.setup_intents.confirm(made.id, {"payment_method": method.id})
    assert (raised.value.http_status, raised.value.code) == (402, "card_declined")


def test_a_setup_intent_can_be_tried_again_after_a_decline(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    with pytest.raises(stripe.CardError):
        stand_in.client.v1.setup_intents.confirm(
            made.id, {"payment_method": card(stand_in.client, DECLINED).id}
        )
    assert stand_in.client.v1.setup_intents.retrieve(made.id).status == "requires_payment_method"
    good = stand_in.client.v1.setup_intents.confirm(made.id, {"payment_method": card(stand_in.client).id})
    assert good.status == "succeeded"


def test_a_setup_intent_is_cancelled(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    assert stand_in.client.v1.setup_intents.cancel(made.id).status == "canceled"


def test_a_setup_intent_needs_a_card_to_be_confirmed(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    with pytest.raises(stripe.InvalidRequestError):
        stand_in.client.v1.setup_intents.confirm(made.id)
