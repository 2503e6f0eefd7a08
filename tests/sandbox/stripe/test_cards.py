"""How each test card behaves."""

import pytest
import stripe

from metering.sandbox.stripe.cards import CARDS
from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.sandbox.stripe.shop import Shop, error_of

DECLINING = [card for card in CARDS if card.decline and not card.attaches]


@pytest.mark.parametrize(
    "card", ["pm_card_visa", "pm_card_mastercard", "pm_card_amex", "4242 4242 4242 4242"]
)
def test_a_good_card_pays(shop: Shop, card: str) -> None:
    shop.save(card)
    assert shop.pay(1_234, off_session=True).status == "succeeded"
    assert shop.net() == 1_234


@pytest.mark.parametrize("card", DECLINING, ids=lambda card: card.decline)
def test_a_declining_card_neither_pays_nor_is_saved(
    shop: Shop, client: stripe.StripeClient, card: object
) -> None:
    token = getattr(card, "token", "")
    reason = getattr(card, "decline", "")
    error = shop.decline(payment_method=token)
    alone = reason in {"expired_card", "incorrect_cvc", "processing_error"}
    assert (error["code"], error.get("decline_code")) == (
        (reason, None) if alone else ("card_declined", reason)
    )
    with pytest.raises(stripe.CardError):
        client.v1.payment_methods.attach(token, {"customer": shop.customer})
    with pytest.raises(StripeError):
        shop.save(token)
    assert shop.charges() == []
    assert shop.events()[-1] == "setup_intent.setup_failed"


def test_a_decline_leaves_its_trace(shop: Shop) -> None:
    shop.save("pm_card_chargeCustomerFail")
    error = shop.decline(off_session=True)
    intent = shop.retrieve(error["payment_intent"]["id"])
    assert (intent.status, intent.amount_received, intent.payment_method) == (
        "requires_payment_method",
        0,
        None,
    )
    assert intent.latest_charge == error["charge"]
    charge = shop.client.v1.charges.retrieve(error["charge"])
    assert (charge.status, charge.paid, charge.failure_code) == ("failed", False, "card_declined")
    assert shop.events()[-3:] == ["payment_intent.created", "charge.failed", "payment_intent.payment_failed"]


def test_a_declined_intent_takes_another_card(shop: Shop) -> None:
    good = shop.method
    shop.save("pm_card_chargeCustomerFail")
    intent_id = shop.decline()["payment_intent"]["id"]
    paid = shop.client.v1.payment_intents.confirm(
        intent_id, {"payment_method": good, "return_url": "https://example.com"}
    )
    assert (paid.status, paid.last_payment_error) == ("succeeded", None)
    assert len(shop.charges()) == 1


def test_a_card_starts_to_fail_and_stops(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.fail_card(shop.method, decline_code="insufficient_funds")
    assert shop.decline(off_session=True)["decline_code"] == "insufficient_funds"
    sandbox.fail_card(shop.method, decline_code="expired_card")
    assert shop.decline(off_session=True)["code"] == "expired_card"
    sandbox.mend_card(shop.method)
    assert shop.pay(off_session=True).status == "succeeded"


def test_a_card_that_fails_is_one_payment_method_only(shop: Shop, sandbox: StripeSandbox) -> None:
    failing = shop.method
    other = shop.save("pm_card_visa")
    sandbox.fail_card(failing)
    assert shop.pay(payment_method=other).status == "succeeded"
    fingerprints = {
        shop.client.v1.payment_methods.retrieve(each).to_dict()["card"]["fingerprint"]
        for each in (failing, other)
    }
    assert len(fingerprints) == 1


def test_an_always_authenticating_card_wants_its_holder(shop: Shop, sandbox: StripeSandbox) -> None:
    shop.save("pm_card_authenticationRequired")
    error = shop.decline(off_session=True)
    assert error["code"] == error["decline_code"] == "authentication_required"
    assert error["payment_intent"]["status"] == "requires_payment_method"
    intent = shop.pay()
    assert (intent.status, shop.charges()) == ("requires_action", [])
    assert sandbox.authenticate(intent.id)["status"] == "succeeded"
    assert len(shop.charges()) == 1
    assert shop.events()[-3:] == [
        "payment_intent.requires_action",
        "charge.succeeded",
        "payment_intent.succeeded",
    ]


def test_a_declined_intent_is_confirmed_on_session_with_the_same_card(
    shop: Shop, sandbox: StripeSandbox
) -> None:
    shop.save("pm_card_authenticationRequired")
    intent_id = shop.decline(off_session=True)["payment_intent"]["id"]
    again = shop.client.v1.payment_intents.confirm(
        intent_id,
        {"payment_method": shop.method, "use_stripe_sdk": True, "return_url": "https://example.com"},
    )
    assert again.status == "requires_action"
    assert sandbox.authenticate(intent_id)["status"] == "succeeded"


def test_a_card_that_was_set_up_needs_no_holder_off_session(shop: Shop, client: stripe.StripeClient) -> None:
    shop.save("pm_card_authenticationRequiredOnSetup")
    assert shop.pay(off_session=True).status == "succeeded"
    assert shop.pay().status == "requires_action"
    attached = client.v1.payment_methods.attach(
        "pm_card_authenticationRequiredOnSetup", {"customer": shop.customer}
    )
    assert shop.decline(off_session=True, payment_method=attached.id)["code"] == "authentication_required"


def test_a_card_set_up_elsewhere_needs_its_holder_on_session_only(shop: Shop) -> None:
    shop.save("pm_card_authenticationRequiredSetupForOffSession")
    assert shop.pay(off_session=True).status == "succeeded"
    assert shop.pay().status == "requires_action"


def test_a_card_may_decline_after_its_holder_was_there(shop: Shop, sandbox: StripeSandbox) -> None:
    shop.save("pm_card_authenticationRequiredChargeDeclinedInsufficientFunds")
    intent = sandbox.authenticate(shop.pay().id)
    assert intent["status"] == "requires_payment_method"
    assert intent["last_payment_error"]["decline_code"] == "insufficient_funds"
    assert shop.events()[-1] == "payment_intent.payment_failed"


def test_a_failed_challenge_charges_nothing(shop: Shop, sandbox: StripeSandbox) -> None:
    shop.save("pm_card_authenticationRequired")
    intent = sandbox.authenticate(shop.pay().id, succeeds=False)
    assert (intent["status"], intent["latest_charge"]) == ("requires_payment_method", None)
    assert intent["last_payment_error"]["code"] == "payment_intent_authentication_failure"
    with pytest.raises(StripeError):
        sandbox.authenticate(intent["id"])


def test_the_way_of_a_challenge_follows_what_was_asked(shop: Shop) -> None:
    shop.save("pm_card_authenticationRequired")
    actions = [
        shop.pay(**way).to_dict()["next_action"]["type"]
        for way in (
            {"return_url": "https://example.com"},
            {"return_url": "https://example.com", "use_stripe_sdk": True},
        )
    ]
    assert actions == ["redirect_to_url", "use_stripe_sdk"]


def test_a_slow_bank_keeps_a_payment_processing(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.slow_card(shop.method)
    paid, failed = shop.pay(), shop.pay()
    assert (paid.status, shop.charges()) == ("processing", [])
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.client.v1.payment_intents.cancel(paid.id)
    assert error_of(raised)["payment_intent"]["status"] == "processing"
    assert sandbox.finish_processing(paid.id)["status"] == "succeeded"
    assert sandbox.finish_processing(failed.id, succeeds=False)["status"] == "requires_payment_method"
    assert len(shop.charges()) == 1


def test_a_payment_can_save_its_card(shop: Shop, client: stripe.StripeClient) -> None:
    paid = shop.pay(payment_method="pm_card_visa", setup_future_usage="off_session")
    method = client.v1.payment_methods.retrieve(str(paid.payment_method))
    assert method.customer == shop.customer
    assert shop.pay(payment_method=method.id, off_session=True).status == "succeeded"


def test_a_card_of_nobody_pays_once(shop: Shop, client: stripe.StripeClient) -> None:
    method = client.v1.payment_methods.retrieve("pm_card_visa")
    assert shop.pay(payment_method=method.id).status == "succeeded"
    with pytest.raises(stripe.InvalidRequestError, match="may not be used again"):
        shop.pay(payment_method=method.id)


def test_a_number_that_is_no_test_card_is_refused(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.CardError) as raised:
        client.v1.payment_methods.create(
            {
                "type": "card",
                "card": {"number": "4242424242424241", "exp_month": 1, "exp_year": 2040, "cvc": "1"},
            }
        )
    assert error_of(raised)["code"] == "incorrect_number"
