"""Stripe's own example of each object, and what its SDK says may be null, through our reading and handling: nothing is booked."""

from typing import Any

import pytest

from metering.payments.events import HANDLED, IGNORED, KNOWN, Source, handle, read_event
from metering.payments.parsing import read_dispute, read_intent, read_refund
from metering.rules.payments import Dispute, Refund
from tests.payments.world import World
from tests.sandbox.stripe.stripe_examples import examples

OBJECTS = ("charge", "customer", "dispute", "payment_intent", "payment_method", "refund", "setup_intent")


def test_examples_are_read() -> None:
    found = examples()
    refund = found["refund"]
    assert read_refund(refund) == Refund(refund["id"], refund["amount"], "succeeded")
    dispute = found["dispute"]
    assert read_dispute(dispute) == Dispute(
        dispute["id"], dispute["amount"], "usd", withdrawn=False, reinstated=False
    )
    intent = read_intent(found["payment_intent"])
    assert (intent.amount_cents, intent.received_cents, intent.org_id, intent.attempt_id) == (
        *(1_099, 0),
        *(None, None),
    )


def test_a_refund_whose_status_stripe_does_not_tell_has_taken_the_money() -> None:
    """The SDK's annotations allow it. Should it fail, an event says so, and the money comes back."""
    refund: dict[str, Any] = examples()["refund"] | {"status": None}
    assert read_refund(refund).effective


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_event_about_an_example_is_handled_and_books_nothing(world: World, kind: str) -> None:
    """Each type of event with each example, fitting or not, as a webhook would bring it."""
    told = examples()[kind]
    outcomes = set()
    for type_ in HANDLED:
        data = {"object": told, "previous_attributes": {"customer": "cus_nobody"}}
        event = read_event(f"evt_{kind}_{type_}", type_, world.clock(), False, data)
        fits = type_.startswith("payment_intent") == (kind == "payment_intent")
        if fits or type_ != "payment_intent.succeeded":
            outcomes.add(handle(world.payments, event, source=Source.WEBHOOK))
    assert not outcomes & {IGNORED, KNOWN, "credited", "changed"}, outcomes
    assert world.balance() == 0
    assert world.attempts() == []
