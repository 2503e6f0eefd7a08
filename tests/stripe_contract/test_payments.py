"""PaymentIntents, as Stripe documents them."""

from typing import Any

import pytest
import stripe

from tests.sandbox.stripe.shop import error_of
from tests.stripe_contract.making import (
    ALWAYS_AUTHENTICATES,
    ATTACHES_THEN_FAILS,
    customer_with_card,
    pay,
    paying,
)
from tests.stripe_contract.stand_ins import StandIn


def test_a_payment_succeeds(stand_in: StandIn) -> None:
    intent = pay(stand_in, 2_345)
    assert intent.id.startswith("pi_")
    assert (intent.status, intent.amount, intent.currency, intent.livemode) == (
        "succeeded",
        2_345,
        "usd",
        False,
    )
    assert intent.client_secret is not None
    assert intent.client_secret.startswith(f"{intent.id}_secret_")
    assert stand_in.client.v1.payment_intents.retrieve(intent.id).status == "succeeded"


def test_a_payment_says_what_it_received(stand_in: StandIn) -> None:
    assert pay(stand_in, 2_345).amount_received == 2_345


def test_its_charge_is_an_id_unless_it_is_expanded(stand_in: StandIn) -> None:
    intent = pay(stand_in)
    assert isinstance(intent.latest_charge, str)
    expanded = stand_in.client.v1.payment_intents.retrieve(intent.id, {"expand": ["latest_charge"]})
    assert isinstance(expanded.latest_charge, stripe.Charge)
    assert (expanded.latest_charge.paid, expanded.latest_charge.amount) == (True, 2_000)


def test_metadata_and_customer_stay_with_a_payment(client: stripe.StripeClient) -> None:
    customer_id, method_id = customer_with_card(client)
    made = client.v1.payment_intents.create(
        {
            "amount": 500,
            "currency": "usd",
            "customer": customer_id,
            "payment_method": method_id,
            "metadata": {"attempt": "a1"},
        }
    )
    found = client.v1.payment_intents.retrieve(made.id)
    assert (found.customer, found.payment_method) == (customer_id, method_id)
    assert found.metadata.to_dict() == {"attempt": "a1"}


def test_statuses_before_confirmation(stand_in: StandIn) -> None:
    intents = stand_in.client.v1.payment_intents
    assert intents.create({"amount": 500, "currency": "usd"}).status == "requires_payment_method"
    customer_id, method_id = customer_with_card(stand_in.client)
    ready = intents.create(paying(stand_in, customer_id, method_id, confirm=False))
    assert ready.status == "requires_confirmation"
    confirming: Any = {**stand_in.way_back}
    assert intents.confirm(ready.id, confirming).status == "succeeded"


def test_a_decline_is_a_card_error(stand_in: StandIn) -> None:
    with pytest.raises(stripe.CardError) as raised:
        pay(stand_in, number=ATTACHES_THEN_FAILS)
    assert (raised.value.http_status, raised.value.code) == (402, "card_declined")
    assert error_of(raised)["charge"].startswith("ch_")


def test_a_decline_says_that_it_is_the_cards(stand_in: StandIn) -> None:
    with pytest.raises(stripe.CardError) as raised:
        pay(stand_in, number=ATTACHES_THEN_FAILS)
    assert error_of(raised)["type"] == "card_error"


def test_a_decline_has_the_banks_reason(stand_in: StandIn) -> None:
    with pytest.raises(stripe.CardError) as raised:
        pay(stand_in, number=ATTACHES_THEN_FAILS)
    assert error_of(raised)["decline_code"] == "generic_decline"


def test_a_decline_carries_its_payment_intent(stand_in: StandIn) -> None:
    with pytest.raises(stripe.CardError) as raised:
        pay(stand_in, number=ATTACHES_THEN_FAILS)
    intent = error_of(raised)["payment_intent"]
    assert intent["status"] == "requires_payment_method"
    found = stand_in.client.v1.payment_intents.retrieve(intent["id"])
    assert found.last_payment_error is not None
    assert found.last_payment_error.code == "card_declined"
    assert found.payment_method is None


def test_a_challenge_is_asked_for_on_session(stand_in: StandIn) -> None:
    intent = pay(stand_in, number=ALWAYS_AUTHENTICATES)
    assert intent.status == "requires_action"
    assert intent.next_action is not None


def test_a_challenge_that_is_met_pays(stand_in: StandIn) -> None:
    intent = pay(stand_in, number=ALWAYS_AUTHENTICATES)
    stand_in.authenticate(intent, True)
    paid = stand_in.client.v1.payment_intents.retrieve(intent.id)
    assert (paid.status, paid.next_action) == ("succeeded", None)


def test_a_challenge_that_is_failed_leaves_nothing_paid(stand_in: StandIn) -> None:
    intent = pay(stand_in, number=ALWAYS_AUTHENTICATES)
    stand_in.authenticate(intent, False)
    failed = stand_in.client.v1.payment_intents.retrieve(intent.id)
    assert (failed.status, failed.latest_charge) == ("requires_payment_method", None)
    assert failed.last_payment_error is not None
    assert failed.last_payment_error.code == "payment_intent_authentication_failure"


def test_a_challenge_off_session_is_a_decline_with_its_intent(stand_in: StandIn) -> None:
    customer_id, method_id = customer_with_card(stand_in.client, ALWAYS_AUTHENTICATES)
    with pytest.raises(stripe.CardError) as raised:
        stand_in.client.v1.payment_intents.create(paying(stand_in, customer_id, method_id, off_session=True))
    error = error_of(raised)
    assert (error["code"], error["decline_code"]) == ("authentication_required", "authentication_required")
    assert error["payment_intent"]["status"] == "requires_payment_method"
    assert error["payment_intent"]["last_payment_error"]["payment_method"]["id"] == method_id


def test_off_session_goes_with_confirm_only(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create({"amount": 2_000, "currency": "usd", "off_session": True})


@pytest.mark.parametrize("amount", [0, -1])
def test_an_amount_is_positive(client: stripe.StripeClient, amount: int) -> None:
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.payment_intents.create({"amount": amount, "currency": "usd"})
    assert raised.value.http_status == 400


def test_less_than_50_cents_is_too_small(client: stripe.StripeClient) -> None:
    assert client.v1.payment_intents.create({"amount": 50, "currency": "usd"}).amount == 50
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.payment_intents.create({"amount": 49, "currency": "usd"})
    assert (raised.value.code, raised.value.param) == ("amount_too_small", "amount")


def test_a_million_dollars_is_too_large(client: stripe.StripeClient) -> None:
    assert client.v1.payment_intents.create({"amount": 99_999_999, "currency": "usd"}).amount == 99_999_999
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.payment_intents.create({"amount": 100_000_000, "currency": "usd"})
    assert (raised.value.code, raised.value.param) == ("amount_too_large", "amount")


def test_an_intent_needs_amount_and_currency(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create({"amount": 500})  # type: ignore[typeddict-item]
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create({"currency": "usd"})  # type: ignore[typeddict-item]


def test_an_unknown_customer_or_card_is_refused(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create({"amount": 500, "currency": "usd", "customer": "cus_none"})
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create({"amount": 500, "currency": "usd", "payment_method": "pm_none"})


def test_another_customers_card_is_refused(stand_in: StandIn) -> None:
    customer_id, _ = customer_with_card(stand_in.client)
    _, foreign_id = customer_with_card(stand_in.client)
    with pytest.raises(stripe.InvalidRequestError):
        stand_in.client.v1.payment_intents.create(paying(stand_in, customer_id, foreign_id))


@pytest.mark.parametrize("request_", ["create", "update", "confirm"])
def test_payment_method_types_are_no_parameter_any_more(client: stripe.StripeClient, request_: str) -> None:
    """docs.stripe.com/changelog/endive/2026-09-30/removes-the-payment-method-types-parameter-from-payment-intents-and-setup-intents"""
    intents = client.v1.payment_intents
    made = intents.create({"amount": 500, "currency": "usd"})
    gone: Any = {"payment_method_types": ["card"]}
    whole: Any = {"amount": 500, "currency": "usd", **gone}
    given = (whole,) if request_ == "create" else (made.id, gone)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        getattr(intents, request_)(*given)
    assert (raised.value.http_status, raised.value.code) == (400, "payment_method_types_no_longer_supported")


@pytest.mark.parametrize("cards_only", [False, True])
def test_a_payment_whose_customer_is_there_needs_a_way_back(stand_in: StandIn, cards_only: bool) -> None:
    """docs.stripe.com/changelog/2023-08-16/automatic-payment-methods; whether cards alone are asked for or not."""
    params = paying(stand_in, *customer_with_card(stand_in.client))
    for name in (*stand_in.way_back, *(() if cards_only else stand_in.card_only)):
        del params[name]
    with pytest.raises(stripe.InvalidRequestError) as raised:
        stand_in.client.v1.payment_intents.create(params)
    assert (raised.value.http_status, error_of(raised)["type"]) == (400, "invalid_request_error")
    assert "return_url" in str(raised.value)
    params["confirm"] = False
    waiting = stand_in.client.v1.payment_intents.create(params)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        stand_in.client.v1.payment_intents.confirm(waiting.id)
    assert "return_url" in str(raised.value)
    confirming: Any = {"return_url": "https://example.com/back"}
    assert stand_in.client.v1.payment_intents.confirm(waiting.id, confirming).status == "succeeded"


def test_off_session_needs_no_way_back(stand_in: StandIn) -> None:
    params = paying(stand_in, *customer_with_card(stand_in.client), off_session=True)
    assert "return_url" not in params
    assert stand_in.client.v1.payment_intents.create(params).status == "succeeded"
    for name in stand_in.card_only:
        del params[name]
    assert stand_in.client.v1.payment_intents.create(params).status == "succeeded"


def test_without_redirects_no_way_back_is_needed(stand_in: StandIn) -> None:
    params = paying(stand_in, *customer_with_card(stand_in.client))
    for name in (*stand_in.card_only, *stand_in.way_back):
        del params[name]
    params["automatic_payment_methods"] = {"enabled": True, "allow_redirects": "never"}
    assert stand_in.client.v1.payment_intents.create(params).status == "succeeded"


def test_cards_alone_or_no_redirects_but_not_both(stand_in: StandIn) -> None:
    """docs.stripe.com/changelog/dahlia/2026-07-29/allowed-payment-method-types-parameter: mutually exclusive."""
    params = paying(stand_in, *customer_with_card(stand_in.client))
    params["automatic_payment_methods"] = {"enabled": True, "allow_redirects": "never"}
    with pytest.raises(stripe.InvalidRequestError) as raised:
        stand_in.client.v1.payment_intents.create(params)
    assert raised.value.http_status == 400


def test_dynamic_methods_take_no_error_in_place_of_an_action(stand_in: StandIn) -> None:
    params = paying(stand_in, *customer_with_card(stand_in.client), error_on_requires_action=True)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        stand_in.client.v1.payment_intents.create(params)
    assert "error_on_requires_action" in str(raised.value)


def test_a_way_back_goes_with_confirm_only(client: stripe.StripeClient) -> None:
    params: Any = {"amount": 500, "currency": "usd", "return_url": "https://example.com/back"}
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create(params)


def test_a_card_is_not_set_up_while_its_holder_is_away(stand_in: StandIn) -> None:
    """As artsy/exchange#484 met it."""
    params = paying(
        stand_in, *customer_with_card(stand_in.client), off_session=True, setup_future_usage="off_session"
    )
    with pytest.raises(stripe.InvalidRequestError):
        stand_in.client.v1.payment_intents.create(params)


def test_stripe_js_meets_the_challenge_though_there_is_a_way_back(stand_in: StandIn) -> None:
    """The bank's page is shown inside the seller's, unless the bank wants all of it: then it sends back to `return_url`."""
    params = paying(stand_in, *customer_with_card(stand_in.client, ALWAYS_AUTHENTICATES), use_stripe_sdk=True)
    made = stand_in.client.v1.payment_intents.create(params)
    assert made.status == "requires_action"
    assert made.next_action is not None
    assert made.next_action.type == "use_stripe_sdk"
    assert made.client_secret is not None


def test_without_stripe_js_the_challenge_is_a_redirect_and_back(stand_in: StandIn) -> None:
    intent = pay(stand_in, number=ALWAYS_AUTHENTICATES)
    action = intent.next_action
    assert action is not None
    assert action.type == "redirect_to_url"
    assert action.redirect_to_url is not None
    assert action.redirect_to_url.return_url == "https://example.com/back"


def test_the_customers_default_card_is_not_applied(client: stripe.StripeClient) -> None:
    customer_id, method_id = customer_with_card(client)
    client.v1.customers.update(customer_id, {"invoice_settings": {"default_payment_method": method_id}})
    intent = client.v1.payment_intents.create({"amount": 500, "currency": "usd", "customer": customer_id})
    assert (intent.status, intent.payment_method) == ("requires_payment_method", None)


def test_an_unpaid_intent_is_cancelled(client: stripe.StripeClient) -> None:
    made = client.v1.payment_intents.create({"amount": 500, "currency": "usd"})
    assert client.v1.payment_intents.cancel(made.id).status == "canceled"
    assert client.v1.payment_intents.retrieve(made.id).status == "canceled"


def test_a_paid_intent_is_not_cancelled(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        stand_in.client.v1.payment_intents.cancel(paid.id)
    assert raised.value.http_status == 400
    assert stand_in.client.v1.payment_intents.retrieve(paid.id).status == "succeeded"


def test_why_an_intent_is_not_cancelled_has_a_code(client: stripe.StripeClient) -> None:
    made = client.v1.payment_intents.create({"amount": 500, "currency": "usd"})
    client.v1.payment_intents.cancel(made.id)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.payment_intents.cancel(made.id)
    assert raised.value.code == "payment_intent_unexpected_state"


def test_a_paid_intent_is_not_confirmed_again(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    with pytest.raises(stripe.InvalidRequestError):
        stand_in.client.v1.payment_intents.confirm(paid.id)


def test_a_customers_intents_are_listed_newest_first(client: stripe.StripeClient) -> None:
    customer_id, _ = customer_with_card(client)
    made = [
        client.v1.payment_intents.create({"amount": 500, "currency": "usd", "customer": customer_id}).id
        for _ in range(3)
    ]
    client.v1.payment_intents.create({"amount": 500, "currency": "usd"})
    listed = client.v1.payment_intents.list({"customer": customer_id, "limit": 2})
    assert [each.id for each in listed.data] == made[:0:-1]
    assert listed.has_more


def test_a_charge_is_found_by_its_intent(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    charges = stand_in.client.v1.charges.list({"payment_intent": paid.id})
    assert [each.id for each in charges.data] == [paid.latest_charge]
