"""Money that goes back to the card, and what comes again: booked once, in whatever order we hear of it."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from metering.payments.outcomes import TopUpMade
from metering.payments.settling import settle_and_follow
from metering.rules.payments import IntentSeen
from metering.rules.reloads import DISPUTED, REFUNDED
from tests.payments.world import World


def paid(world: World, amount_cents: int = 2_000, card: str = "pm_card_visa") -> str:
    """Top up; give the PaymentIntent's id."""
    world.save_card(card)
    outcome = world.top_up(amount_cents).outcome
    assert isinstance(outcome, TopUpMade)
    assert outcome.status == "succeeded"
    return outcome.payment_intent_id


def hear_all(world: World) -> None:
    """Bring every event that there ever was."""
    world.deliver(*world.events())


def booked(world: World) -> list[tuple[str, int]]:
    """The ledger, by kind and amount."""
    return [
        tuple(row) for row in world.rows("SELECT kind, amount_cents FROM transactions ORDER BY org_id, id")
    ]


def seen_now(world: World, intent_id: str) -> IntentSeen:
    """What Stripe holds at this moment, to be settled at another."""
    stripe = world.payments.stripe
    return IntentSeen(
        stripe.retrieve_intent(intent_id), stripe.refunds_of(intent_id), stripe.disputes_of(intent_id)
    )


def require(world: World, *lines: tuple[str, int]) -> None:
    """The ledger holds these lines, and agrees with Stripe."""
    assert booked(world) == [*lines]
    assert world.balance() == world.held_cents() == sum(cents for _, cents in lines)
    world.assert_sound()


@pytest.mark.parametrize("amount_cents", [None, 1, 1_999])
def test_a_refund_is_booked_whole_or_in_part(world: World, amount_cents: int | None) -> None:
    intent = paid(world)
    world.sandbox.refund(intent, amount_cents=amount_cents)
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -(amount_cents or 2_000)))


def test_several_refunds_of_one_charge_are_each_booked_once(world: World) -> None:
    """`charge.refunded` carries what was refunded in all: whoever books that, books the first refund twice."""
    intent = paid(world)
    for cents in (500, 700, 800):
        world.sandbox.refund(intent, amount_cents=cents)
        hear_all(world)
        hear_all(world)
    require(world, ("credit", 2_000), ("refund", -500), ("refund", -700), ("refund", -800))


def test_more_refunds_than_stripe_lists_on_a_page_are_all_booked(world: World) -> None:
    intent = paid(world)
    for _ in range(101):
        world.sandbox.refund(intent, amount_cents=1)
    world.deliver(world.events("charge.refunded")[-1])
    assert world.balance() == world.held_cents() == 1_899
    world.assert_sound()


def test_refunds_are_booked_the_same_in_any_order_of_their_events(world: World) -> None:
    intent = paid(world)
    world.sandbox.refund(intent, amount_cents=500)
    refund = world.sandbox.refund(intent, amount_cents=700)
    world.sandbox.fail_refund(refund["id"])
    events = world.events("*refund*")
    for event in (*reversed(events), *events, *itertools.islice(events, 1, 4)):
        world.deliver({**event, "id": f"{event['id']}_again"})
        assert world.balance() == world.held_cents() == 1_500
    world.assert_sound()


def test_a_refund_we_hear_of_before_the_charge_is_booked_after_its_credit(world: World) -> None:
    world.save_card("pm_card_threeDSecure2Required")
    outcome = world.top_up().outcome
    assert isinstance(outcome, TopUpMade)
    world.sandbox.authenticate(outcome.payment_intent_id)
    world.sandbox.refund(outcome.payment_intent_id, amount_cents=300)

    world.deliver(*world.events("charge.refunded"))
    require(world, ("credit", 2_000), ("refund", -300))
    world.deliver(*world.events("payment_intent.succeeded"))
    require(world, ("credit", 2_000), ("refund", -300))


def test_a_late_succeeded_after_a_refund_credits_nothing(world: World) -> None:
    intent = paid(world)
    world.sandbox.refund(intent)
    hear_all(world)
    world.clock.move(days=20)
    (succeeded,) = world.events("payment_intent.succeeded")

    world.deliver({**succeeded, "id": "evt_late"}, {**succeeded, "id": "evt_later"})

    require(world, ("credit", 2_000), ("refund", -2_000))


def test_a_refund_that_fails_later_is_taken_back(world: World) -> None:
    intent = paid(world)
    refund = world.sandbox.refund(intent)
    hear_all(world)
    assert world.balance() == 0
    world.clock.move(days=20)
    world.sandbox.fail_refund(refund["id"])
    hear_all(world)
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -2_000), ("adjustment", 2_000))


def test_a_refund_after_one_that_failed_is_booked_for_itself(world: World) -> None:
    intent = paid(world)
    world.sandbox.fail_refund(world.sandbox.refund(intent)["id"])
    hear_all(world)
    world.sandbox.refund(intent)
    hear_all(world)
    assert world.balance() == world.held_cents() == 0
    world.assert_sound()


def test_a_pending_refund_takes_the_money_at_once_and_once(world: World) -> None:
    intent = paid(world, card="pm_card_pendingRefund")
    refund = world.sandbox.refund(intent)
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -2_000))
    world.sandbox.settle_refund(refund["id"])
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -2_000))


def test_what_was_read_before_a_refund_failed_and_is_settled_after_changes_nothing(world: World) -> None:
    """Two look-ups at once: one reads the refund as it was, the other as it is, and the older reading is settled last."""
    intent = paid(world)
    refund = world.sandbox.refund(intent)
    outdated = seen_now(world, intent)
    world.sandbox.fail_refund(refund["id"])
    hear_all(world)
    assert world.balance() == 2_000

    settle_and_follow(world.payments, outdated)

    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_readings_of_a_refund_and_a_dispute_may_be_settled_in_any_order(world: World) -> None:
    intent = paid(world)
    readings = [seen_now(world, intent)]
    steps: list[Callable[[], Any]] = [
        lambda: world.sandbox.refund(intent, amount_cents=500),
        lambda: world.sandbox.fail_refund(world.stripe.v1.refunds.list().data[0].id),
        lambda: world.sandbox.open_dispute(intent, amount_cents=1_200),
        lambda: world.sandbox.win_dispute(world.stripe.v1.disputes.list().data[0].id),
    ]
    for step in steps:
        step()
        readings.append(seen_now(world, intent))

    for reading in (readings[3], *reversed(readings)):
        settle_and_follow(world.payments, reading)

    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_an_inquiry_takes_no_money_until_it_becomes_a_dispute(world: World) -> None:
    intent = paid(world)
    dispute = world.sandbox.open_dispute(intent, inquiry=True)
    hear_all(world)
    require(world, ("credit", 2_000))
    world.sandbox.escalate_dispute(dispute["id"])
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -2_000))


def test_an_inquiry_that_is_closed_has_never_taken_money(world: World) -> None:
    intent = paid(world)
    dispute = world.sandbox.open_dispute(intent, inquiry=True)
    world.sandbox.lose_dispute(dispute["id"])
    hear_all(world)
    require(world, ("credit", 2_000))


@pytest.mark.parametrize("amount_cents", [None, 700])
def test_a_dispute_takes_the_money_and_gives_it_back_if_won(world: World, amount_cents: int | None) -> None:
    intent = paid(world)
    cents = amount_cents or 2_000
    dispute = world.sandbox.open_dispute(intent, amount_cents=amount_cents)
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -cents))
    world.sandbox.win_dispute(dispute["id"])
    hear_all(world)
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -cents), ("adjustment", cents))


def test_a_lost_dispute_gives_nothing_back(world: World) -> None:
    intent = paid(world)
    dispute = world.sandbox.open_dispute(intent)
    world.sandbox.lose_dispute(dispute["id"])
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -2_000))


def test_a_partial_refund_and_a_dispute_of_the_rest_take_it_all(world: World) -> None:
    intent = paid(world)
    world.sandbox.refund(intent, amount_cents=500)
    world.sandbox.open_dispute(intent)
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -500), ("refund", -1_500))


def test_a_card_that_disputes_at_once_is_credited_first(world: World) -> None:
    """The charge's own answer says `succeeded`, with the dispute already there."""
    paid(world, card="pm_card_createDispute")
    assert booked(world) == [("credit", 2_000)]
    hear_all(world)
    require(world, ("credit", 2_000), ("refund", -2_000))


def test_lost_money_may_make_the_balance_negative_and_shuts_the_gate(world: World) -> None:
    intent = paid(world)
    world.adjust(-1_500)
    world.sandbox.refund(intent)
    hear_all(world)
    assert world.balance() == -1_500
    world.assert_sound()


def test_a_card_whose_holder_disputes_is_not_charged_by_itself(world: World) -> None:
    intent = paid(world)
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)
    world.sandbox.open_dispute(intent)
    hear_all(world)
    for _ in range(3):
        world.clock.move(days=40)
        world.reconcile()
    assert world.charged() == 1
    assert world.rows("SELECT pause_code, pause_lifts_with FROM reload_states") == [(DISPUTED, "change")]

    world.settings(minimum_cents=1_001)
    world.work()
    assert world.charged() == 2
    world.assert_sound()


def test_after_a_refund_a_card_is_not_charged_by_itself_for_a_day(world: World) -> None:
    intent = paid(world)
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)
    world.sandbox.refund(intent)
    hear_all(world)
    world.clock.move(hours=23)
    world.reconcile()
    assert world.charged() == 1
    assert world.rows("SELECT pause_code FROM reload_states") == [(REFUNDED,)]

    world.clock.move(hours=2)
    world.reconcile()
    assert world.charged() == 2
    world.assert_sound()


def test_an_inquiry_pauses_nothing(world: World) -> None:
    intent = paid(world)
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)
    world.sandbox.open_dispute(intent, inquiry=True)
    hear_all(world)
    assert world.rows("SELECT pause_code FROM reload_states WHERE pause_code IS NOT NULL") == []


def test_lookup_events_of_other_peoples_charges_are_answered_and_not_booked(world: World) -> None:
    """The same account at Stripe may sell other things too."""
    paid(world)
    other = world.stripe.v1.payment_intents.create(
        {
            "amount": 900,
            "currency": "usd",
            "confirm": True,
            "payment_method": "pm_card_visa",
            "allowed_payment_method_types": ["card"],
            "return_url": "https://example.com",
        }
    )
    world.sandbox.refund(other.id)

    outcomes = world.deliver(*world.events("charge.refunded"), *world.events("payment_intent.succeeded"))

    assert outcomes == ["unknown_intent", "known", "unknown_intent"]
    assert booked(world) == [("credit", 2_000)]
    world.assert_sound()
