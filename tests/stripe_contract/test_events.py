"""The list of events and the webhooks, as Stripe documents them."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from tests.sandbox.stripe.receiver import Receiver, receiver
from tests.sandbox.stripe.shop import error_of
from tests.stripe_contract.making import ATTACHES_THEN_FAILS, card, pay
from tests.stripe_contract.stand_ins import StandIn
from tests.waiting import wait_until

SECRET = "whsec_contract"  # noqa: S105


@pytest.fixture
def taker() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


def _objects(client: stripe.StripeClient, event_type: str) -> list[str]:
    """The ids of what the latest events of a type are about."""
    events = client.v1.events.list({"type": event_type, "limit": 100})
    return [event.data.object["id"] for event in events.data]


def test_a_payment_is_told(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    assert paid.id in _objects(stand_in.client, "payment_intent.succeeded")


def test_a_decline_is_told(stand_in: StandIn) -> None:
    with pytest.raises(stripe.CardError) as raised:
        pay(stand_in, number=ATTACHES_THEN_FAILS)
    events = stand_in.client.v1.events.list({"type": "payment_intent.payment_failed", "limit": 100})
    errors = [each.data.object["last_payment_error"] for each in events.data]
    assert error_of(raised)["charge"] in [error["charge"] for error in errors]


def test_a_saved_card_is_told(stand_in: StandIn) -> None:
    params: Any = dict(stand_in.card_only)
    made = stand_in.client.v1.setup_intents.create(params)
    confirming: Any = {"payment_method": card(stand_in.client).id, **stand_in.way_back}
    stand_in.client.v1.setup_intents.confirm(made.id, confirming)
    assert made.id in _objects(stand_in.client, "setup_intent.succeeded")


def test_a_refund_is_told(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    refund = stand_in.client.v1.refunds.create({"payment_intent": paid.id})
    assert refund.id in _objects(stand_in.client, "refund.created")
    assert paid.latest_charge in _objects(stand_in.client, "charge.refunded")


def test_an_event_holds_the_object_as_it_was_then(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create({"name": "Before"})
    client.v1.customers.update(made.id, {"name": "After"})
    events = client.v1.events.list({"type": "customer.created", "limit": 100})
    (event,) = [each for each in events.data if each.data.object["id"] == made.id]
    assert event.data.object["name"] == "Before"
    assert (event.object, event.livemode) == ("event", False)


def test_events_are_newest_first(stand_in: StandIn) -> None:
    older, newer = pay(stand_in).id, pay(stand_in).id
    assert _objects(stand_in.client, "payment_intent.succeeded")[:2] == [newer, older]


def test_events_are_found_by_time(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    now = int(time.time())
    recent = stand_in.client.v1.events.list(
        {"type": "payment_intent.succeeded", "created": {"gte": now - 60}, "limit": 100}
    )
    assert paid.id in [each.data.object["id"] for each in recent.data]
    assert stand_in.client.v1.events.list({"created": {"gt": now + 60}}).data == []


def test_an_event_is_found_by_its_id(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    events = stand_in.client.v1.events.list({"type": "payment_intent.succeeded", "limit": 100})
    (event,) = [each for each in events.data if each.data.object["id"] == paid.id]
    assert stand_in.client.v1.events.retrieve(event.id).data.object["id"] == paid.id


def test_a_webhook_is_the_event_signed(stand_in: StandIn, taker: Receiver) -> None:
    stand_in.send_webhooks_to(taker.url, SECRET)
    made = stand_in.client.v1.customers.create({"name": "Told"})

    def told() -> bool:
        events = [each.event(SECRET) for each in list(taker.deliveries)]
        return any(each["data"]["object"]["id"] == made.id for each in events)

    wait_until(told, limit_s=20)
    stand_in.send_webhooks_to(None, SECRET)
    delivered = [each.event(SECRET) for each in taker.deliveries]
    (event,) = [each for each in delivered if each["data"]["object"]["id"] == made.id]
    assert (event["object"], event["type"]) == ("event", "customer.created")
    assert stand_in.client.v1.events.retrieve(event["id"]).type == "customer.created"
