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


def _with(stand_in: StandIn, method: stripe.PaymentMethod) -> Any:
    """What a server confirms a SetupIntent with."""
    return {"payment_method": method.id, **stand_in.way_back}


def test_a_setup_intent_waits_for_a_card(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    assert made.id.startswith("seti_")
    assert (made.status, made.usage, made.payment_method) == ("requires_payment_method", "off_session", None)
    assert made.client_secret is not None
    assert made.client_secret.startswith(f"{made.id}_secret_")


def test_a_confirmed_setup_intent_has_its_card(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client)
    confirmed = stand_in.client.v1.setup_intents.confirm(made.id, _with(stand_in, method))
    assert (confirmed.status, confirmed.payment_method) == ("succeeded", method.id)


def test_the_card_of_a_setup_intent_becomes_the_customers(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client)
    stand_in.client.v1.setup_intents.confirm(made.id, _with(stand_in, method))
    assert stand_in.client.v1.payment_methods.retrieve(method.id).customer == made.customer


def test_a_bank_that_wants_the_holder_is_asked_at_setup(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client, ALWAYS_AUTHENTICATES)
    confirmed = stand_in.client.v1.setup_intents.confirm(made.id, _with(stand_in, method))
    assert confirmed.status == "requires_action"
    assert confirmed.next_action is not None


def test_a_declined_card_is_not_set_up(stand_in: StandIn) -> None:
    made, method = _setup(stand_in), card(stand_in.client, DECLINED)
    with pytest.raises(stripe.CardError) as raised:
        stand_in.client.v1.setup_intents.confirm(made.id, _with(stand_in, method))
    assert (raised.value.http_status, raised.value.code) == (402, "card_declined")


def test_a_setup_intent_can_be_tried_again_after_a_decline(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    with pytest.raises(stripe.CardError):
        stand_in.client.v1.setup_intents.confirm(made.id, _with(stand_in, card(stand_in.client, DECLINED)))
    assert stand_in.client.v1.setup_intents.retrieve(made.id).status == "requires_payment_method"
    good = stand_in.client.v1.setup_intents.confirm(made.id, _with(stand_in, card(stand_in.client)))
    assert good.status == "succeeded"


def test_a_setup_intent_is_cancelled(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    assert stand_in.client.v1.setup_intents.cancel(made.id).status == "canceled"


def test_a_setup_intent_needs_a_card_to_be_confirmed(stand_in: StandIn) -> None:
    made = _setup(stand_in)
    with pytest.raises(stripe.InvalidRequestError):
        stand_in.client.v1.setup_intents.confirm(made.id)


@pytest.mark.parametrize("cards_only", [False, True])
def test_a_server_that_sets_up_a_card_needs_a_way_back(stand_in: StandIn, cards_only: bool) -> None:
    """docs.stripe.com/changelog/2023-08-16/automatic-payment-methods; stripe/stripe-ios#2497 met it."""
    asked: Any = {"usage": "off_session", **(stand_in.card_only if cards_only else {})}
    made = stand_in.client.v1.setup_intents.create(asked)
    method = card(stand_in.client)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        stand_in.client.v1.setup_intents.confirm(made.id, {"payment_method": method.id})
    assert raised.value.http_status == 400
    assert "return_url" in str(raised.value)
    back: Any = {"payment_method": method.id, "return_url": "https://example.com/back"}
    assert stand_in.client.v1.setup_intents.confirm(made.id, back).status == "succeeded"


def test_without_redirects_setting_up_needs_no_way_back(stand_in: StandIn) -> None:
    params: Any = {
        "confirm": True,
        "payment_method": card(stand_in.client).id,
        "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
    }
    assert stand_in.client.v1.setup_intents.create(params).status == "succeeded"


def test_a_way_back_goes_with_confirming_a_setup_only(stand_in: StandIn) -> None:
    params: Any = {"usage": "off_session", "return_url": "https://example.com/back", **stand_in.card_only}
    with pytest.raises(stripe.InvalidRequestError):
        stand_in.client.v1.setup_intents.create(params)


@pytest.mark.parametrize("request_", ["create", "update"])
def test_setup_intents_take_no_payment_method_types_any_more(stand_in: StandIn, request_: str) -> None:
    intents = stand_in.client.v1.setup_intents
    gone: Any = {"payment_method_types": ["card"]}
    given = (gone,) if request_ == "create" else (intents.create({}).id, gone)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        getattr(intents, request_)(*given)
    assert (raised.value.http_status, raised.value.code) == (400, "payment_method_types_no_longer_supported")
