"""A walk through every endpoint, and every kind of answer, whose bodies are kept as they go over the wire."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.answering import Answer, Request
from metering.sandbox.stripe.endpoints import endpoint_for
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.sandbox.stripe.shop import Shop

BACK = "https://example.com/back"


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: of which operation, with which status, what."""

    operation: str
    status: int
    body: Any


class RecordingSandbox(StripeSandbox):
    """Keeps what it answers."""

    def record(self) -> list[Answered]:
        """Begin, and return the list that grows."""
        self._answered: list[Answered] = []
        return self._answered

    def _answer(self, request: Request) -> Answer | None:
        answer = super()._answer(request)
        found = endpoint_for(request.verb, request.path)
        if found is not None and answer is not None:
            self._answered.append(Answered(found[0].operation, answer.status, json.loads(answer.body)))
        return answer


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of an answer: of a page each, of an error itself, of an event what it tells of, too."""
    if value.get("object") == "list":
        for each in value["data"]:
            yield from objects_in(each)
        return
    if "error" in value:
        yield {"object": "error", **value["error"]}
        value = value["error"]
    else:
        yield value
    if value.get("object") == "event":
        yield from objects_in(value["data"]["object"])
    for name in ("payment_intent", "setup_intent", "payment_method", "charge", "customer", "latest_charge"):
        if isinstance(value.get(name), dict):
            yield from objects_in(value[name])


def walk(sandbox: StripeSandbox) -> None:
    """Everything that a seller and his customers do, once at least."""
    client = stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.url}, max_network_retries=0)
    shop = Shop(sandbox, client)
    _customers(shop)
    _cards(shop)
    _setting_up(shop)
    _payments(shop)
    _money_back(shop, sandbox)
    sandbox.set_settlement("gbp", exchange_rate=0.8, fee_apart=True)
    _money_back(shop, sandbox)
    _events(shop)
    client.v1.accounts.retrieve(client.v1.accounts.retrieve_current().id)


def _customers(shop: Shop) -> None:
    customers = shop.client.v1.customers
    made = customers.create(
        {"name": "N", "email": "e@example.com", "phone": "1", "description": "d", "metadata": {"org": "1"}}
    )
    customers.update(made.id, {"metadata": {"org": "2", "new": "3"}})
    customers.retrieve(made.id)
    shop.client.v1.payment_methods.attach("pm_card_visa", {"customer": made.id})
    customers.delete(made.id)
    customers.retrieve(made.id)
    customers.list()


def _cards(shop: Shop) -> None:
    v1, customer = shop.client.v1, shop.customer
    card: Any = {"number": "5555555555554444", "exp_month": 12, "exp_year": 2040, "cvc": "123"}
    address: Any = {"line1": "1 Street", "country": "US"}
    made = v1.payment_methods.create(
        {"type": "card", "card": card, "billing_details": {"name": "N", "address": address}}
    )
    v1.payment_methods.attach(made.id, {"customer": customer})
    v1.payment_methods.update(made.id, {"card": {"exp_month": 1}, "metadata": {"a": "b"}})
    v1.customers.update(customer, {"invoice_settings": {"default_payment_method": made.id}})
    v1.customers.payment_methods.list(customer)
    v1.customers.payment_methods.retrieve(customer, made.id)
    v1.payment_methods.list({"customer": customer, "expand": ["data.customer"]})
    shop.sandbox.update_card(made.id, card="pm_card_visa", exp_year=2041)
    v1.payment_methods.retrieve(made.id)
    v1.payment_methods.detach(made.id)
    with pytest.raises(stripe.CardError):
        v1.payment_methods.attach("pm_card_visa_chargeDeclined", {"customer": customer})


def _setting_up(shop: Shop) -> None:
    intents, customer = shop.client.v1.setup_intents, shop.customer
    made = intents.create({"customer": customer, "usage": "off_session", "description": "d"})
    intents.update(made.id, {"metadata": {"a": "b"}})
    with pytest.raises(stripe.CardError):
        intents.confirm(made.id, {"payment_method": "pm_card_visa_chargeDeclined", "return_url": BACK})
    intents.retrieve(made.id, {"expand": ["customer"]})
    intents.confirm(made.id, {"payment_method": "pm_card_visa", "return_url": BACK})
    for asked in ({"return_url": BACK}, {"return_url": BACK, "use_stripe_sdk": True}):
        params: Any = {"payment_method": "pm_card_authenticationRequired", **asked}
        intents.confirm(intents.create({"customer": customer}).id, params)
    intents.cancel(intents.create({"allowed_payment_method_types": ["card"]}).id)
    intents.create({"automatic_payment_methods": {"enabled": True, "allow_redirects": "never"}})
    intents.list({"customer": customer, "expand": ["data.payment_method"]})


def _payments(shop: Shop) -> None:
    intents, good = shop.client.v1.payment_intents, shop.method
    paid = shop.pay(description="d", metadata={"org": "1"}, receipt_email="e@example.com")
    intents.retrieve(paid.id, {"expand": ["customer", "latest_charge.balance_transaction", "payment_method"]})
    intents.update(paid.id, {"description": "changed"})
    shop.client.v1.charges.update(str(paid.latest_charge), {"metadata": {"a": "b"}})
    shop.save("pm_card_authenticationRequired")
    waiting = shop.pay(return_url=BACK)
    shop.sandbox.authenticate(waiting.id, succeeds=False)
    intents.confirm(waiting.id, {"payment_method": shop.method, "return_url": BACK, "use_stripe_sdk": True})
    shop.sandbox.authenticate(waiting.id)
    shop.decline(off_session=True)
    shop.save("pm_card_chargeCustomerFail")
    intents.cancel(
        shop.decline(off_session=True)["payment_intent"]["id"], {"cancellation_reason": "abandoned"}
    )
    shop.decline(payment_method="pm_card_radarBlock")
    shop.method = good
    shop.pay(automatic_payment_methods={"enabled": True}, allowed_payment_method_types=None)
    shop.sandbox.slow_card(good)
    slow = shop.pay()
    intents.retrieve(slow.id)
    shop.sandbox.finish_processing(slow.id)
    shop.sandbox.slow_card(good, slow=False)
    shop.sandbox.pay_in_dashboard(shop.customer, 900, payment_method=good)
    shop.pay(confirm=False, return_url=None, setup_future_usage="off_session")
    intents.list({"customer": shop.customer, "expand": ["data.latest_charge"]})


def _money_back(shop: Shop, sandbox: StripeSandbox) -> None:
    v1 = shop.client.v1
    paid = shop.pay()
    refund = v1.refunds.create({"payment_intent": paid.id, "amount": 1, "reason": "duplicate"})
    v1.refunds.update(refund.id, {"metadata": {"a": "b"}})
    v1.refunds.retrieve(refund.id, {"expand": ["balance_transaction", "charge"]})
    sandbox.fail_refund(refund.id)
    v1.refunds.list({"payment_intent": paid.id})
    shop.save("pm_card_pendingRefund")
    v1.refunds.create({"payment_intent": shop.pay().id})
    shop.save("pm_card_visa")
    for inquiry in (False, True):
        dispute = sandbox.open_dispute(shop.pay().id, inquiry=inquiry)["id"]
        v1.disputes.update(dispute, {"evidence": {"uncategorized_text": "text"}, "submit": True})
        v1.disputes.retrieve(dispute, {"expand": ["charge", "payment_intent"]})
        sandbox.win_dispute(dispute)
    v1.disputes.close(sandbox.open_dispute(shop.pay().id)["id"])
    v1.disputes.list({"limit": 100})
    charge = v1.charges.list({"limit": 100, "expand": ["data.balance_transaction"]}).data[0]
    v1.charges.retrieve(charge.id, {"expand": ["customer", "payment_intent", "refunds"]})
    v1.balance_transactions.retrieve(v1.balance_transactions.list({"limit": 100}).data[0].id)
    v1.balance.retrieve()


def _events(shop: Shop) -> None:
    v1 = shop.client.v1
    events = v1.events.list({"limit": 100})
    while events.has_more:
        events = v1.events.list({"limit": 100, "starting_after": events.data[-1].id})
    v1.events.retrieve(events.data[0].id)
