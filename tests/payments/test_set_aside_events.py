"""An event of Stripe's that can't be handled is set aside: it holds up nothing, is kept, told of, and tried again."""

import json
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from db.audit.full import run_audit
from db.operators.log import Actor
from db.payments.set_aside_events import dismiss
from db.postgres.engine import transaction
from metering.payments import event_list, events
from metering.payments.event_list import retry_now
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.test_event_list import challenge, position, read_later
from tests.payments.world import World


def kept(world: World) -> list[Any]:
    return world.rows("SELECT * FROM set_aside_events ORDER BY created_at, id")


def broken(world: World) -> set[str]:
    return {each.invariant for each in run_audit(world.engine).violations}


def stick(world: World) -> datetime:
    """A refund of 7.00 whose event can't be handled, because refunds can't be asked for; give when it was made."""
    world.save_card()
    world.top_up()
    read_later(world)
    world.clock.move(minutes=1)
    at = world.clock()
    world.sandbox.refund(world.intents()[0]["id"], amount_cents=700)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="refunds.list", count=None)
    return at


def test_it_holds_neither_the_list_nor_later_events_and_is_handled_when_that_is_possible(
    world: World,
) -> None:
    stuck_at = stick(world)
    world.clock.move(minutes=30)
    world.save_card("pm_card_threeDSecure2Required")
    world.sandbox.authenticate(challenge(world, 3_000))
    for _ in range(3):
        world.clock.move(hours=2)
        world.read_events()
        assert world.balance() == 5_000
        assert position(world) > stuck_at
    assert kept(world)
    assert "stripe_event_handled" in broken(world)
    world.sandbox.clear_faults()

    world.clock.move(hours=1)
    world.read_events()

    assert world.balance() == world.held_cents() == 4_300
    assert kept(world) == []
    world.assert_sound()


def test_it_is_handled_though_stripe_no_longer_lists_it(world: World) -> None:
    stick(world)
    read_later(world)
    world.clock.move(days=40)
    world.sandbox.clear_faults()
    world.read_events()
    assert world.balance() == world.held_cents() == 1_300
    assert kept(world) == []


def test_one_that_is_poison_is_tried_less_and_less_and_told(world: World) -> None:
    read_later(world)
    world.sandbox.authenticate(challenge(world))
    tried: list[str] = []
    handle = events.handle

    def poisonous(payments: Any, event: Any, **how: Any) -> str:
        tried.append(event.ref.id)
        if event.ref.type == "payment_intent.succeeded":
            raise KeyError("a field that Stripe has renamed")
        return handle(payments, event, **how)

    with patch.object(event_list, "handle", poisonous):
        for _ in range(120):
            read_later(world, 60)
    (row,) = kept(world)
    assert row.type == "payment_intent.succeeded"
    assert "KeyError" in row.error
    assert 5 < tried.count(row.id) == row.tries < 20
    assert "client_secret" not in json.dumps(row.data)
    assert "stripe_event_handled" in broken(world)

    world.clock.move(hours=1)  # the mended program comes
    world.read_events()
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_webhook_that_brings_it_meanwhile_ends_it(world: World) -> None:
    stick(world)
    read_later(world)
    assert kept(world)
    world.sandbox.clear_faults()
    world.deliver(*world.events("*refund*"))
    assert world.balance() == 1_300
    world.clock.move(hours=1)
    world.read_events()
    assert kept(world) == []
    assert world.balance() == world.held_cents() == 1_300


def test_a_moment_is_no_violation(world: World) -> None:
    stick(world)
    read_later(world)
    assert "stripe_event_handled" not in broken(world)
    world.clock.at += timedelta(minutes=16)
    assert "stripe_event_handled" in broken(world)


OPERATOR = Actor("ann", "ann")


def stuck(world: World) -> str:
    stick(world)
    world.clock.move(seconds=31)
    world.read_events()
    return str(kept(world)[0].id)


def test_an_operator_tries_one_again_before_its_time(world: World) -> None:
    event_id = stuck(world)
    assert retry_now(world.payments, event_id, OPERATOR)[event_id] is not None
    assert kept(world)
    world.sandbox.clear_faults()

    assert retry_now(world.payments, event_id, OPERATOR) == {event_id: None}

    assert world.balance() == world.held_cents() == 1_300
    assert event_id not in {each.id for each in kept(world)}
    assert retry_now(world.payments, event_id, OPERATOR) == {}
    logged = world.rows("SELECT action, subject, details FROM operator_log ORDER BY id")
    assert [(each.action, each.subject) for each in logged] == [("stripe-event retry", event_id)] * 2
    assert [each.details["error"] is None for each in logged] == [False, True]


def test_one_that_is_dismissed_never_comes_back(world: World) -> None:
    event_id = stuck(world)
    ids = [each.id for each in kept(world)]
    for each in ids:
        with transaction(world.engine) as connection:
            assert dismiss(connection, each, actor=OPERATOR, reason="it is a test")
    with transaction(world.engine) as connection:
        assert not dismiss(connection, event_id, actor=OPERATOR, reason="again")
    world.sandbox.clear_faults()

    world.clock.move(hours=2)
    world.read_events()
    assert world.deliver(*(each for each in world.events() if each["id"] in ids)) == ["known"] * len(ids)

    assert kept(world) == []
    assert world.balance() == 2_000  # as it was said: it is not booked
    assert "stripe_event_handled" not in broken(world)
    entries = world.rows("SELECT operator, subject, reason FROM operator_log ORDER BY id")
    assert [tuple(each) for each in entries] == [("ann", each, "it is a test") for each in ids]


def test_one_that_is_handled_while_it_is_dismissed_keeps_its_effect(world: World) -> None:
    event_id = stuck(world)
    world.sandbox.clear_faults()
    (event,) = [each for each in world.events() if each["id"] == event_id]
    world.deliver(event)
    with transaction(world.engine) as connection:
        assert not dismiss(connection, event_id, actor=OPERATOR, reason="late")
    assert world.balance() == 1_300
    assert world.rows("SELECT FROM operator_log") == []
