"""Top-ups at the same moment, by real threads: each wish is charged once, whoever else asks."""

import threading

import pytest

from metering.payments.errors import IdempotencyConflictError
from metering.payments.outcomes import CardDeclined, TopUpMade
from metering.payments.top_ups import ToppedUp
from metering.rules.payments import AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.crashing import crashing_at
from tests.payments.together import answering_after, together
from tests.payments.world import World
from tests.waiting import wait_until

FIFTY = 50


def test_fifty_with_one_key_are_one_charge_and_fifty_equal_answers(world: World) -> None:
    world.save_card()
    world.sandbox.set_latency(0.1)

    answers = together(*[lambda: world.top_up(key="a")] * FIFTY)

    first = answers[0]
    assert isinstance(first, ToppedUp), first
    assert answers == [first] * FIFTY
    assert isinstance(first.outcome, TopUpMade)
    assert first.outcome.status == "succeeded"
    assert world.charged() == 1
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_fifty_with_one_key_and_a_bad_card_are_one_decline(world: World) -> None:
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code="lost_card")

    answers = together(*[lambda: world.top_up(key="a")] * FIFTY)

    first = answers[0]
    assert isinstance(first, ToppedUp), first
    assert isinstance(first.outcome, CardDeclined)
    assert answers == [first] * FIFTY
    assert len(world.intents()) == 1


def test_one_key_with_two_bodies_at_once_is_charged_for_one_of_them(world: World) -> None:
    world.save_card()

    answers = together(*[lambda: world.top_up(2_000, key="a"), lambda: world.top_up(3_000, key="a")] * 10)

    conflicts = [isinstance(each, IdempotencyConflictError) for each in answers]
    assert sum(conflicts) == 10
    assert len(set(conflicts[::2])) == len(set(conflicts[1::2])) == 1  # all of one body, none of the other
    assert world.charged() == 1
    world.assert_sound()


def test_identical_ones_without_a_key_join_what_is_under_way_and_are_told_what_was_charged(
    world: World,
) -> None:
    """How many charges they make is a matter of timing; that each answer is a charge, and each charge an answer, is not."""
    world.save_card()
    world.sandbox.set_latency(0.1)

    answers = together(*[world.top_up] * FIFTY)

    outcomes = [each.outcome for each in answers if isinstance(each, ToppedUp)]
    told = {each.payment_intent_id for each in outcomes if isinstance(each, TopUpMade)}
    assert len(outcomes) == FIFTY, answers
    assert told == {each["id"] for each in world.intents()}
    assert world.charged() == len(told) < FIFTY
    assert world.balance() == world.held_cents() == 2_000 * len(told)
    world.assert_sound()


def test_all_that_wait_for_a_charge_whose_answer_is_lost_get_its_outcome(world: World) -> None:
    world.save_card()
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=2)

    answers = together(*[world.top_up] * 20)

    told = {each.attempt_id for each in answers if isinstance(each, ToppedUp)}
    assert all(isinstance(each, ToppedUp) for each in answers), answers
    assert told == {each.id for each in world.attempts()}
    assert world.charged() == len(told) < 20
    assert world.balance() == world.held_cents() == 2_000 * len(told)
    world.assert_sound()


def test_different_amounts_at_once_are_charges_of_their_own(world: World) -> None:
    world.save_card()
    amounts = range(1_000, 1_020)

    answers = together(*[lambda cents=cents: world.top_up(cents) for cents in amounts])

    assert all(isinstance(each, ToppedUp) for each in answers), answers
    assert sorted(each["amount"] for each in world.intents()) == list(amounts)
    assert world.balance() == world.held_cents() == sum(amounts)
    world.assert_sound()


def test_the_reconciler_beside_a_top_up_neither_sends_it_again_nor_loses_it(world: World) -> None:
    world.save_card()
    reconciled_already = threading.Event()

    def reconcile_meanwhile() -> None:
        try:
            wait_until(lambda: world.charged() == 1, limit_s=30)
            world.clock.move(minutes=2)  # so that the request's lease is over while it still waits
            world.process_due_attempts()
        finally:
            reconciled_already.set()

    with answering_after(reconciled_already):
        done, reconciled = together(world.top_up, reconcile_meanwhile)

    assert reconciled is None
    assert isinstance(done, ToppedUp), done
    assert world.charged() == 1
    assert world.sandbox.totals().asked["payment_intents.create"] == 1
    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


@pytest.mark.parametrize("key", [None, "a"])
def test_who_comes_while_the_first_one_has_been_crashed_gets_its_charge(
    world: World, key: str | None
) -> None:
    """The first process has died with the charge made; its lease has run out when twenty others come."""
    world.save_card()
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND):
        world.top_up(key=key)
    world.clock.move(seconds=61)

    answers = together(*[lambda: world.top_up(key=key)] * 20)

    told = {each.attempt_id for each in answers if isinstance(each, ToppedUp)}
    assert len(answers) == 20
    assert all(isinstance(each, ToppedUp) for each in answers), answers
    assert world.charged() == len(told)
    if key is not None:
        assert len(told) == 1
    assert world.attempts()[0].id in told
    assert world.balance() == world.held_cents() == 2_000 * len(told)
    world.assert_sound()
