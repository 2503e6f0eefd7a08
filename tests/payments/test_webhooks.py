"""What webhooks lead to: each takes effect once, in any order, and what isn't ours takes none."""

import threading
from typing import Any
from unittest.mock import patch

import pytest

from metering.payments.errors import ProviderRefusedError, ProviderUnavailableError
from metering.payments.events import HANDLED
from metering.payments.metrics import NOT_BOOKED_TOTAL, STRIPE_EVENTS
from metering.payments.outcomes import TopUpMade
from metering.payments.stripe_api import StripeApi
from metering.payments.stripe_failures import StripeRefused
from metering.payments.top_ups import ToppedUp
from metering.rules.payments import AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.crashing import crashing_at
from tests.payments.together import answering_after, together
from tests.payments.world import World
from tests.waiting import wait_until

SUCCEEDED = "payment_intent.succeeded"
CHALLENGED = "pm_card_threeDSecure2Required"


def met_challenge(world: World) -> dict[str, Any]:
    """A top-up that its customer has authenticated and we have not heard of; give the event that says so."""
    world.save_card(CHALLENGED)
    outcome = world.top_up().outcome
    assert isinstance(outcome, TopUpMade)
    world.sandbox.authenticate(outcome.payment_intent_id)
    (event,) = world.events(SUCCEEDED)
    return event


def changed(event: dict[str, Any], **values: Any) -> dict[str, Any]:
    """An event whose object differs."""
    return {**event, "data": {"object": {**event["data"]["object"], **values}}}


def kept(world: World) -> dict[str, str]:
    """The events that are written down, by id, and what became of them."""
    return {row.id: row.outcome for row in world.rows("SELECT id, outcome FROM stripe_events")}


def test_two_hundred_duplicates_racing_the_answer_are_one_credit(world: World) -> None:
    world.save_card()
    world.sandbox.set_fault(RequestFault.HANG_AFTER, operation="payment_intents.create", seconds=0.3)
    events: list[dict[str, Any]] = []

    def bring(number: int) -> str:
        if not number:
            wait_until(lambda: world.charged() == 1, limit_s=30)
            events.extend(world.events(SUCCEEDED))
        wait_until(lambda: events, limit_s=30)
        # Half of them are the same event again, half are other events that say the same.
        event = events[0] if number % 2 else {**events[0], "id": f"evt_{number}"}
        (outcome,) = world.deliver(event)
        return outcome

    done, *outcomes = together(world.top_up, *[lambda number=number: bring(number) for number in range(200)])

    assert isinstance(done, ToppedUp), done
    assert set(outcomes) <= {"credited", "known"}
    assert outcomes.count("credited") <= 1  # none, where the answer came first
    assert world.rows("SELECT count(*) FROM transactions") == [(1,)]
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_webhook_before_the_answer_credits_and_the_answer_is_true_all_the_same(world: World) -> None:
    world.save_card()
    brought = threading.Event()

    def bring() -> list[str]:
        try:
            wait_until(lambda: world.charged() == 1, limit_s=30)
            return world.deliver(*world.events(SUCCEEDED))
        finally:
            brought.set()

    with answering_after(brought):
        done, outcomes = together(world.top_up, bring)

    assert outcomes == ["credited"]
    assert isinstance(done, ToppedUp)
    assert isinstance(done.outcome, TopUpMade)
    assert done.outcome.status == "succeeded"
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_events_in_reverse_order_and_repeated_lead_to_the_same(world: World) -> None:
    met_challenge(world)
    events = world.events()

    for event in (*reversed(events), *events, *reversed(events)):
        world.deliver(event)

    assert world.balance() == world.held_cents() == 2_000
    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    world.assert_sound()


def test_an_event_is_known_by_its_id_and_counted(world: World) -> None:
    event = met_challenge(world)
    before = STRIPE_EVENTS.labels("webhook", "known")._value.get()
    assert world.deliver(event, event, event) == ["credited", "known", "known"]
    assert STRIPE_EVENTS.labels("webhook", "known")._value.get() == before + 2
    assert kept(world)[event["id"]] == "credited"


def test_the_kinds_that_nobody_asked_for_are_answered_and_do_nothing(world: World) -> None:
    met_challenge(world)
    others = [event for event in world.events() if event["type"] not in HANDLED]
    assert len(others) > 3
    assert set(world.deliver(*others)) == {"ignored"}
    assert world.balance() == 0


STRANGE: list[tuple[str, dict[str, Any]]] = [
    ("foreign_currency", {"currency": "eur"}),
    ("foreign_customer", {"customer": "cus_of_somebody_else"}),
    ("foreign_customer", {"customer": None}),
    ("wrong_livemode", {"livemode": True}),
    ("wrong_amount", {"amount_received": 1_999}),
    ("wrong_amount", {"amount": 200_000, "amount_received": 200_000}),
    ("unknown_intent", {"metadata": {}, "id": "pi_unknown"}),
]


def test_a_payment_that_cannot_be_ours_is_answered_counted_and_not_booked(world: World) -> None:
    event = met_challenge(world)
    for number, (reason, values) in enumerate(STRANGE):
        before = NOT_BOOKED_TOTAL.labels(reason)._value.get()

        assert world.deliver({**changed(event, **values), "id": f"evt_{number}"}) == [reason]

        assert NOT_BOOKED_TOTAL.labels(reason)._value.get() == before + 1
        assert kept(world)[f"evt_{number}"] == reason
        assert world.balance() == 0
    assert world.deliver(event) == ["credited"]  # they hold up nothing
    world.assert_sound()


def test_metadata_that_make_no_sense_are_as_none(world: World) -> None:
    """The attempt is then found by the PaymentIntent that its row knows."""
    event = met_challenge(world)
    for number, metadata in enumerate(
        (
            {"org_id": "1"},
            {"org_id": "x", "attempt_id": "y", "attempt_kind": "z"},
            {"org_id": str(2**63), "attempt_id": "", "attempt_kind": "top_up"},
        )
    ):
        strange = changed(event, metadata=metadata, id="pi_of_nobody")
        assert world.deliver({**strange, "id": f"evt_{number}"}) == ["unknown_intent"]
    assert world.deliver(changed(event, metadata={})) == ["credited"]
    world.assert_sound()


def test_an_event_of_the_other_mode_is_none_of_ours(world: World) -> None:
    event = met_challenge(world)
    assert world.deliver({**event, "livemode": True}) == ["wrong_livemode"]
    assert world.balance() == 0


def test_a_lookup_event_about_something_we_cannot_find_is_answered_and_kept(world: World) -> None:
    event = met_challenge(world)
    for number, thing in enumerate(
        (
            {},
            {"object": "charge"},
            {"object": "charge", "payment_intent": None},
            {"object": "payment_intent", "id": "pi_that_is_not_there"},
            {"object": "refund", "payment_intent": "pi_that_is_not_there"},
            {"object": "dispute", "payment_intent": {"id": "pi_x"}},
        )
    ):
        lookup_event = {**event, "id": f"evt_{number}", "type": "charge.refunded", "data": {"object": thing}}
        assert world.deliver(lookup_event, lookup_event) == ["unknown_object", "known"], thing


def test_a_settlement_that_fails_leaves_neither_credit_nor_event_and_the_repeat_is_heard(
    world: World,
) -> None:
    event = met_challenge(world)
    with crashing_at(CrashPoint.SETTLE_AFTER_WRITE):
        world.deliver(event)
        raise AssertionError("there was no crash")
    assert kept(world) == {}
    assert world.balance() == 0

    assert world.deliver(event) == ["credited"]
    assert kept(world) == {event["id"]: "credited"}
    world.assert_sound()


def test_a_crash_after_the_commit_leaves_both_and_the_reconciler_opens_the_gate(world: World) -> None:
    event = met_challenge(world)
    with crashing_at(CrashPoint.SETTLE_AFTER_COMMIT):
        world.deliver(event)
        raise AssertionError("there was no crash")
    assert kept(world) == {event["id"]: "credited"}
    assert world.balance() == 2_000

    assert world.deliver(event) == ["known"]
    world.mend_gates()
    world.assert_sound()


def test_a_lookup_event_that_cannot_be_followed_now_has_to_come_again(world: World) -> None:
    event = met_challenge(world)
    world.deliver(event)
    world.sandbox.refund(event["data"]["object"]["id"])
    (lookup_event,) = world.events("charge.refunded")
    for operation in ("payment_intents.retrieve", "refunds.list", "disputes.list"):
        for fault, count in ((RequestFault.ERROR_BEFORE, 2), (RequestFault.UNAUTHORIZED, 1)):
            world.sandbox.set_fault(fault, operation=operation, count=count)
            with pytest.raises(ProviderUnavailableError):
                world.deliver(lookup_event)
            assert world.sandbox.faults_left() == 0
            assert lookup_event["id"] not in kept(world)
            assert world.balance() == 2_000

    assert world.deliver(lookup_event) == ["changed"]
    assert world.balance() == world.held_cents() == 0
    world.assert_sound()


def test_a_lookup_event_that_stripe_refuses_to_answer_is_not_taken_for_one_about_nothing(
    world: World,
) -> None:
    event = met_challenge(world)
    world.deliver(event)
    world.sandbox.refund(event["data"]["object"]["id"])
    (lookup_event,) = world.events("charge.refunded")
    refusal = StripeRefused("parameter_unknown", "Received unknown parameter: limit")
    with patch.object(StripeApi, "refunds_of", side_effect=refusal), pytest.raises(ProviderRefusedError):
        world.deliver(lookup_event)
    assert lookup_event["id"] not in kept(world)

    assert world.deliver(lookup_event) == ["changed"]
    assert world.balance() == world.held_cents() == 0
