"""What people do in Stripe's dashboard, and Stripe by itself: payments, deleted customers, cards that are updated."""

from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.remote import ControlError, control
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.sandbox.stripe.shop import Shop, error_of


def _latest_events(shop: Shop, count: int) -> list[dict[str, Any]]:
    """The latest events, oldest first."""
    events = [event.to_dict() for event in shop.client.v1.events.list({"limit": count}).data]
    return events[::-1]


def test_a_payment_of_the_dashboard_has_none_of_our_metadata(shop: Shop, sandbox: StripeSandbox) -> None:
    made = control(sandbox.url, "pay_in_dashboard", customer=shop.customer, amount_cents=1_500)
    paid = shop.retrieve(made["id"]).to_dict()
    assert (paid["status"], paid["amount_received"], paid["metadata"]) == ("succeeded", 1_500, {})
    assert (paid["customer"], paid["payment_method"]) == (shop.customer, shop.method)
    assert shop.net() == 1_500
    events = _latest_events(shop, 3)
    assert [event["type"] for event in events] == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
    ]
    requests = {(event["request"]["id"], event["request"]["idempotency_key"]) for event in events}
    ((request_id, key),) = requests
    assert request_id.startswith("req_")
    assert len(key) == 36  # a key of the dashboard's own, that nobody else can have sent


def test_the_dashboard_takes_any_card_and_currency(shop: Shop, sandbox: StripeSandbox) -> None:
    method = shop.save("pm_card_mastercard")
    shop.save("pm_card_visa")
    made = sandbox.pay_in_dashboard(shop.customer, 700, payment_method=method, currency="eur")
    assert (made["payment_method"], made["currency"]) == (method, "eur")
    nobody = shop.client.v1.customers.create({}).id
    typed_in = sandbox.pay_in_dashboard(nobody, 800, description="a deposit")
    assert (typed_in["status"], typed_in["description"]) == ("succeeded", "a deposit")
    assert shop.client.v1.payment_methods.retrieve(typed_in["payment_method"]).customer is None


def test_a_payment_of_the_dashboard_may_be_declined(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.fail_card(shop.method)
    with pytest.raises(StripeError) as raised:
        sandbox.pay_in_dashboard(shop.customer, 900)
    assert raised.value.error["code"] == "card_declined"
    assert shop.events()[-1] == "payment_intent.payment_failed"


@pytest.mark.parametrize("by", ["api", "dashboard"])
def test_a_deleted_customer_is_all_that_is_told(shop: Shop, sandbox: StripeSandbox, by: str) -> None:
    """Of the cards that are detached with him no event tells."""
    paid = shop.pay()
    before = len(shop.events())
    if by == "api":
        deleted = shop.client.v1.customers.delete(shop.customer).to_dict()
    else:
        deleted = control(sandbox.url, "delete_customer", customer=shop.customer)
    assert deleted == {"id": shop.customer, "object": "customer", "deleted": True}
    assert shop.events()[before:] == ["customer.deleted"]
    found = shop.client.v1.customers.retrieve(shop.customer)
    assert found.to_dict() == {"id": shop.customer, "object": "customer", "deleted": True}
    assert shop.client.v1.payment_methods.retrieve(shop.method).customer is None
    assert shop.retrieve(paid.id).customer == shop.customer


def test_a_deleted_customer_is_missing_for_all_else(shop: Shop) -> None:
    v1, customer = shop.client.v1, shop.customer
    unpaid = shop.pay(confirm=False, return_url=None).id
    not_set_up = v1.setup_intents.create({"customer": customer}).id
    v1.customers.delete(customer)
    asked: list[Any] = [
        lambda: v1.customers.update(customer, {"name": "x"}),
        lambda: v1.customers.delete(customer),
        lambda: v1.customers.payment_methods.list(customer),
        lambda: v1.customers.payment_methods.retrieve(customer, shop.method),
        lambda: v1.payment_methods.list({"customer": customer}),
        lambda: v1.payment_methods.attach("pm_card_visa", {"customer": customer}),
        lambda: v1.setup_intents.create({"customer": customer}),
        lambda: v1.payment_intents.create({"amount": 500, "currency": "usd", "customer": customer}),
        lambda: v1.payment_intents.list({"customer": customer}),
        lambda: v1.payment_intents.confirm(
            unpaid, {"payment_method": "pm_card_visa", "return_url": "https://example.com"}
        ),
        lambda: v1.setup_intents.confirm(
            not_set_up, {"payment_method": "pm_card_visa", "return_url": "https://example.com"}
        ),
    ]
    for ask in asked:
        with pytest.raises(stripe.InvalidRequestError) as raised:
            ask()
        assert raised.value.code == "resource_missing"
        assert customer in error_of(raised)["message"]
    with pytest.raises(StripeError):
        shop.sandbox.pay_in_dashboard(customer, 500)


def test_a_card_gets_a_new_date_in_place(shop: Shop, sandbox: StripeSandbox) -> None:
    before = shop.client.v1.payment_methods.retrieve(shop.method).to_dict()["card"]
    changed = control(sandbox.url, "update_card", payment_method=shop.method, exp_month=2, exp_year=2040)
    after = shop.client.v1.payment_methods.retrieve(shop.method).to_dict()
    assert after == changed
    assert after["card"] == before | {"exp_month": 2, "exp_year": 2040}
    assert after["customer"] == shop.customer
    (event,) = _latest_events(shop, 1)
    assert event["type"] == "payment_method.automatically_updated"
    assert event["data"]["object"] == after
    assert event["data"]["previous_attributes"] == {
        "card": {name: before[name] for name in ("exp_month", "exp_year")}
    }
    assert event["request"] == {"id": None, "idempotency_key": None}  # Stripe did it by itself


def test_a_card_gets_a_new_number_in_place(shop: Shop, sandbox: StripeSandbox) -> None:
    shop.save("pm_card_chargeCustomerFail")
    before = shop.client.v1.payment_methods.retrieve(shop.method).to_dict()["card"]
    shop.decline()
    sandbox.update_card(shop.method, card="4000 0566 5566 5556", exp_month=2, exp_year=2040)
    after = shop.client.v1.payment_methods.retrieve(shop.method).to_dict()["card"]
    assert (after["last4"], after["funding"]) == ("5556", "debit")
    assert after["fingerprint"] != before["fingerprint"]
    (event,) = _latest_events(shop, 1)
    told = ("last4", "funding", "fingerprint", "exp_month", "exp_year")
    assert event["data"]["previous_attributes"] == {"card": {name: before[name] for name in told}}
    assert shop.pay().status == "succeeded"


def test_a_new_date_ends_an_expiry_and_nothing_else(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.fail_card(shop.method, decline_code="expired_card")
    assert shop.decline()["code"] == "expired_card"
    sandbox.update_card(shop.method, exp_year=2040)
    assert shop.pay().status == "succeeded"
    sandbox.fail_card(shop.method, decline_code="lost_card")
    sandbox.update_card(shop.method, exp_year=2041)
    assert shop.decline()["decline_code"] == "lost_card"


def test_only_saved_cards_are_updated_and_by_something(shop: Shop, sandbox: StripeSandbox) -> None:
    alone = shop.client.v1.payment_methods.retrieve("pm_card_visa").id
    for method, changes in ((alone, {"exp_year": 2040}), (shop.method, {}), (shop.method, {"card": "none"})):
        with pytest.raises(ControlError):
            control(sandbox.url, "update_card", payment_method=method, **changes)


def test_what_an_event_says_has_changed_is_only_that(shop: Shop) -> None:
    """Within hashes too; what is new was null."""
    shop.client.v1.customers.update(shop.customer, {"metadata": {"kept": "1", "changed": "1"}})
    shop.client.v1.customers.update(
        shop.customer,
        {
            "metadata": {"changed": "2", "new": "3"},
            "invoice_settings": {"default_payment_method": shop.method},
        },
    )
    (event,) = _latest_events(shop, 1)
    assert event["data"]["previous_attributes"] == {
        "metadata": {"changed": "1", "new": None},
        "invoice_settings": {"default_payment_method": None},
    }
