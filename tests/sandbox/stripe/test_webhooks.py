"""Webhooks: signed as the SDK checks it, sent until they are taken, and what can go wrong with them."""

import time
from collections.abc import Iterator

import pytest
import stripe

from metering.sandbox.stripe.faults import WebhookFault
from metering.sandbox.stripe.sandbox import StripeSandbox
from metering.sandbox.stripe.signatures import signature_header
from tests.sandbox.stripe.receiver import Receiver
from tests.sandbox.stripe.shop import Shop

SECRET = "whsec_sandbox"  # noqa: S105


@pytest.fixture
def sandbox(taker: Receiver) -> Iterator[StripeSandbox]:
    """On the machine's clock: the SDK looks at it."""
    with StripeSandbox(webhook_url=taker.url) as started:
        yield started


def test_each_event_is_sent_once_signed(shop: Shop, sandbox: StripeSandbox, taker: Receiver) -> None:
    paid = shop.pay()
    assert sandbox.wait_delivered()
    delivered = [each.event(SECRET) for each in taker.deliveries]
    assert sorted(each["type"] for each in delivered) == sorted(shop.events())
    assert len({each["id"] for each in delivered}) == len(delivered)
    (succeeded,) = [each for each in delivered if each["type"] == "payment_intent.succeeded"]
    listed = shop.client.v1.events.retrieve(succeeded["id"]).to_dict()
    assert succeeded["data"]["object"]["id"] == paid.id
    assert succeeded["data"] == listed["data"]
    assert (succeeded["pending_webhooks"], listed["pending_webhooks"]) == (1, 0)
    assert succeeded["request"]["id"].startswith("req_")
    assert sandbox.totals().webhooks_sent == len(delivered)


def test_the_state_is_there_before_its_webhook(shop: Shop, sandbox: StripeSandbox, taker: Receiver) -> None:
    seen: list[str] = []

    def look(_: int) -> int:
        seen.extend(intent.status for intent in shop.client.v1.payment_intents.list().data)
        return 200

    assert sandbox.wait_delivered()
    taker.answer = look
    shop.pay()
    assert sandbox.wait_delivered()
    assert set(seen) == {"succeeded"}


def test_a_signature_is_for_its_secret_body_and_time(
    shop: Shop, sandbox: StripeSandbox, taker: Receiver
) -> None:
    assert sandbox.wait_delivered()
    delivery = taker.deliveries[0]
    with pytest.raises(stripe.SignatureVerificationError):
        delivery.event("whsec_another")
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(delivery.body + b" ", delivery.signature, SECRET)
    old = signature_header(delivery.body, [SECRET], int(time.time()) - 301)
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        stripe.Webhook.construct_event(delivery.body, old, SECRET)


def test_two_secrets_sign_while_one_is_rotated(shop: Shop, sandbox: StripeSandbox, taker: Receiver) -> None:
    assert sandbox.wait_delivered()
    sandbox.set_webhook(taker.url, secrets=["whsec_new", SECRET])
    taker.deliveries.clear()
    shop.pay()
    assert sandbox.wait_delivered()
    assert taker.types("whsec_new") == taker.types(SECRET) != []


def test_a_webhook_is_sent_until_it_is_taken(shop: Shop, sandbox: StripeSandbox, taker: Receiver) -> None:
    assert sandbox.wait_delivered()
    statuses = [500, 302, 404, 200]
    taker.deliveries.clear()
    taker.answer = lambda before: statuses[before] if before < len(statuses) else 200
    customer = shop.client.v1.customers.create({"name": "Insisted on"})
    assert sandbox.wait_delivered()
    events = [each.event(SECRET) for each in taker.deliveries]
    assert [each["data"]["object"]["id"] for each in events] == [customer.id] * 4
    assert len({each["id"] for each in events}) == 1


def test_a_webhook_is_given_up_in_the_end(taker: Receiver) -> None:
    taker.answer = lambda _: 500
    with StripeSandbox(webhook_url=taker.url, webhook_retry_delays_s=[0.01, 0.01]) as sandbox:
        client = stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.url})
        client.v1.customers.create({})
        assert sandbox.wait_delivered()
        assert len(taker.deliveries) == 3
        (lost,) = client.v1.events.list({"delivery_success": False}).data
        assert client.v1.events.list({"delivery_success": True}).data == []
        taker.answer = lambda _: 200
        sandbox.resend(lost.id)
        assert sandbox.wait_delivered()
        assert len(taker.deliveries) == 4


def test_a_dropped_webhook_is_in_the_list_of_events_only(
    shop: Shop, sandbox: StripeSandbox, taker: Receiver
) -> None:
    sandbox.set_webhook_fault(WebhookFault.DROP, event_type="payment_intent.succeeded")
    shop.pay()
    shop.pay()
    assert sandbox.wait_delivered()
    assert taker.types().count("payment_intent.succeeded") == 1
    assert shop.events().count("payment_intent.succeeded") == 2


def test_a_webhook_is_duplicated(shop: Shop, sandbox: StripeSandbox, taker: Receiver) -> None:
    sandbox.set_webhook_fault(WebhookFault.DUPLICATE, event_type="payment_intent.succeeded", seconds=0.02)
    shop.pay()
    assert sandbox.wait_delivered()
    ids = [
        each["id"]
        for each in (delivery.event(SECRET) for delivery in taker.deliveries)
        if each["type"] == "payment_intent.succeeded"
    ]
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_webhooks_are_reordered_and_delayed(shop: Shop, sandbox: StripeSandbox, taker: Receiver) -> None:
    assert sandbox.wait_delivered()
    taker.deliveries.clear()
    sandbox.set_webhook_fault(WebhookFault.REORDER, count=3, seconds=0.2)
    shop.pay()
    assert sandbox.wait_delivered()
    assert taker.types() == ["payment_intent.succeeded", "charge.succeeded", "payment_intent.created"]
    sandbox.set_webhook_fault(WebhookFault.DELAY, event_type="customer.created", seconds=0.5)
    shop.client.v1.customers.create({})
    assert sandbox.totals().webhooks_waiting == 1
    assert not sandbox.wait_delivered(0.05)
    assert sandbox.wait_delivered()
    assert taker.types()[-1] == "customer.created"


def test_nobody_is_told_where_there_is_no_address(
    shop: Shop, sandbox: StripeSandbox, taker: Receiver
) -> None:
    assert sandbox.wait_delivered()
    sandbox.set_webhook(None)
    taker.deliveries.clear()
    shop.pay()
    assert sandbox.wait_delivered(0)
    assert taker.deliveries == []
    with pytest.raises(ValueError, match="address"):
        sandbox.set_webhook("nowhere", secrets=[SECRET])


def test_a_detached_card_is_told_with_whose_it_was(
    shop: Shop, sandbox: StripeSandbox, taker: Receiver
) -> None:
    sandbox.detach(shop.method)
    assert sandbox.wait_delivered()
    (event,) = [
        each
        for each in (delivery.event(SECRET) for delivery in taker.deliveries)
        if each["type"] == "payment_method.detached"
    ]
    assert event["data"]["object"]["customer"] is None
    assert event["data"]["previous_attributes"] == {"customer": shop.customer}
    assert event["request"] == {"id": None, "idempotency_key": None}
