"""Reading Stripe's list of events: a webhook that was lost is only late."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest

from db.payments.stripe_events import EventRef, keep_event, known_events
from db.postgres.engine import transaction
from metering.payments import event_list
from metering.payments.outcomes import TopUpMade
from metering.payments.stripe_api import EventsSeen, StripeApi
from metering.payments.stripe_failures import StripeFailure
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.crashing import Crash, crashing_at
from tests.payments.together import together
from tests.payments.world import START, World

CHALLENGED = "pm_card_threeDSecure2Required"
LIST = "events.list"


def challenge(world: World, amount_cents: int = 2_000) -> str:
    """A top-up whose customer has still to be authenticated."""
    if world.account().default_payment_method_id is None:
        world.save_card(CHALLENGED)
    outcome = world.top_up(amount_cents).outcome
    assert isinstance(outcome, TopUpMade)
    return outcome.payment_intent_id


def since(world: World) -> datetime:
    """From when on the list was asked for the last time."""
    asked = world.sandbox.requests(LIST)[-1].params["created"]["gte"]
    return datetime.fromtimestamp(int(asked), UTC)


def position(world: World) -> datetime:
    """Up to when events have been seen to."""
    at: datetime = world.rows("SELECT position FROM stripe_cursors")[0].position
    return at


def read_later(world: World, seconds: float = 31) -> int | None:
    world.clock.move(seconds=seconds)
    return world.read_events()


def test_what_no_webhook_brought_is_found_once(world: World) -> None:
    intent = challenge(world)
    read_later(world)
    world.sandbox.authenticate(intent)

    assert (read_later(world) or 0) > 0
    assert world.balance() == world.held_cents() == 2_000
    assert read_later(world) == 0
    world.assert_sound()


def test_what_a_webhook_brought_is_not_handled_again(world: World) -> None:
    world.sandbox.authenticate(challenge(world))
    world.deliver(*world.events())
    asked = world.sandbox.totals().asked.get("payment_intents.retrieve", 0)
    assert read_later(world) == 0
    assert world.sandbox.totals().asked.get("payment_intents.retrieve", 0) == asked


def test_it_is_read_every_thirty_seconds_and_not_more_often(world: World) -> None:
    assert world.read_events() is not None
    world.clock.move(seconds=29.999)
    assert world.read_events() is None
    world.clock.move(seconds=0.001)
    assert world.read_events() is not None


def test_each_reading_begins_ten_minutes_before_the_end_of_the_one_before(world: World) -> None:
    challenge(world)
    read_later(world)
    world.clock.move(hours=1)
    intent = challenge(world, 2_500)
    at = world.clock()
    world.clock.move(hours=1)
    world.read_events()
    assert position(world) == at  # the newest event's own time: what is younger may not be listed yet

    read_later(world)
    assert since(world) == at - timedelta(minutes=10)
    assert world.intents()[-1]["id"] == intent


def test_an_installation_that_begins_reads_nothing_of_long_ago(world: World) -> None:
    world.sandbox.authenticate(challenge(world))
    world.clock.move(days=1)
    world.read_events()
    assert since(world) == START + timedelta(days=1) - timedelta(minutes=10)


def test_after_a_long_silence_it_reads_all_that_stripe_keeps(world: World) -> None:
    intent = challenge(world)
    read_later(world)
    at = position(world)
    world.clock.move(days=60)
    world.sandbox.authenticate(intent)
    world.clock.move(days=29)
    world.read_events()
    assert since(world) == at - timedelta(minutes=10)
    assert world.balance() == world.held_cents() == 2_000


def test_everything_of_a_long_outage_is_found_however_many_pages_it_takes(world: World) -> None:
    read_later(world)
    world.save_card()
    world.top_up()
    world.sandbox.refund(world.intents()[0]["id"], amount_cents=1)
    for _ in range(101):
        world.sandbox.save_card(world.account().stripe_customer_id or "")
    world.clock.move(days=3)

    assert (world.read_events() or 0) > 100
    assert world.balance() == world.held_cents() == 1_999
    world.assert_sound()


def test_an_event_that_is_listed_late_is_found(world: World) -> None:
    """Stripe's list is not in step with its charges: a younger event may be there first."""
    intent = challenge(world)
    read_later(world)
    before = world.clock()
    world.sandbox.authenticate(intent)
    late = {event["id"] for event in world.events("payment_intent.succeeded")}
    world.clock.move(minutes=5)
    world.sandbox.save_card(world.account().stripe_customer_id or "")
    listed = world.payments.stripe.events_since

    def without_the_late_one(*about: Any) -> EventsSeen:
        seen = listed(*about)
        return replace(seen, events=[event for event in seen.events if event.id not in late])

    with patch.object(StripeApi, "events_since", lambda _, *about: without_the_late_one(*about)):
        read_later(world)
    assert world.balance() == 0
    assert position(world) > before

    read_later(world)
    assert world.balance() == world.held_cents() == 2_000


def test_a_list_that_cannot_be_read_moves_nothing(world: World) -> None:
    intent = challenge(world)
    read_later(world)
    at = position(world)
    world.sandbox.authenticate(intent)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation=LIST, count=2)
    with pytest.raises(StripeFailure):
        read_later(world)
    assert position(world) == at

    read_later(world)
    assert world.balance() == world.held_cents() == 2_000


def test_a_reader_that_dies_loses_nothing_and_the_next_one_reads_on(world: World) -> None:
    for cents in (1_000, 2_000, 3_000):
        challenge(world, cents)
    read_later(world)
    for intent in world.intents():
        world.sandbox.authenticate(intent["id"])
    world.clock.move(seconds=31)
    with crashing_at(CrashPoint.SETTLE_AFTER_COMMIT, 2):
        world.read_events()
        raise AssertionError("there was no crash")
    assert 0 < world.balance() < 6_000

    read_later(world)
    world.mend_gates()
    assert world.balance() == world.held_cents() == 6_000
    world.assert_sound()


def test_of_readers_at_the_same_time_one_reads(world: World) -> None:
    intent = challenge(world)
    read_later(world)
    world.sandbox.authenticate(intent)
    world.clock.move(seconds=31)
    read = together(*[world.read_events] * 8)
    assert sorted(each is None for each in read) == [False] + [True] * 7
    assert world.balance() == 2_000
    world.assert_sound()


def test_two_that_read_the_same_events_at_once_book_them_once(world: World) -> None:
    """As when one is slow and the next one's turn has come."""
    for cents in range(1_000, 1_005):
        challenge(world, cents)
    read_later(world)
    for intent in world.intents():
        world.sandbox.authenticate(intent["id"])
        world.sandbox.refund(intent["id"], amount_cents=100)
    world.clock.move(seconds=31)
    at = position(world)
    with patch.object(event_list, "claim_event_list", lambda *_, **__: at):
        read = together(*[world.read_events] * 3)
    assert not [each for each in read if isinstance(each, Exception | Crash)], read
    assert world.balance() == world.held_cents() == sum(range(1_000, 1_005)) - 500
    world.assert_sound()


def test_more_events_than_a_statement_takes_parameters_are_looked_up(world: World) -> None:
    ref = EventRef("evt_7", "refund.created", START)
    with transaction(world.engine) as connection:
        keep_event(connection, ref, "known")
    ids = [f"evt_{number}" for number in range(70_000)]
    assert known_events(world.engine, ids) == {"evt_7"}
    assert known_events(world.engine, []) == set()
