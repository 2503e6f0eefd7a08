"""Top-ups: charged once, credited once, told truly."""

import pytest

from metering.payments.errors import (
    IdempotencyConflictError,
    PaymentMethodRequiredError,
    ProviderUnavailableError,
)
from metering.payments.outcomes import CardDeclined, TopUpMade
from metering.rules.payments import AttemptStatus
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.world import World


def test_a_top_up_is_charged_and_credited(world: World) -> None:
    world.save_card()

    done = world.top_up(2_000)

    assert isinstance(done.outcome, TopUpMade)
    assert done.outcome.status == "succeeded"
    assert world.balance() == world.held_cents() == 2_000
    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    world.assert_sound()


def test_without_a_card_nothing_is_charged(world: World) -> None:
    with pytest.raises(PaymentMethodRequiredError):
        world.top_up()
    assert world.attempts() == []


def test_a_declined_card_is_told_with_its_code(world: World) -> None:
    world.save_card("pm_card_chargeCustomerFail")

    done = world.top_up()

    assert isinstance(done.outcome, CardDeclined)
    assert world.balance() == 0
    world.assert_sound()


def test_the_same_key_gets_the_first_answer_and_another_body_a_conflict(world: World) -> None:
    world.save_card()
    first = world.top_up(key="a")

    assert world.top_up(key="a") == first
    with pytest.raises(IdempotencyConflictError):
        world.top_up(2_001, key="a")
    assert world.balance() == world.held_cents() == 2_000


def test_two_identical_top_ups_that_were_told_are_two(world: World) -> None:
    world.save_card()
    world.top_up()
    world.top_up()
    assert world.balance() == world.held_cents() == 4_000
    world.assert_sound()


@pytest.mark.parametrize("key", [None, "a"])
@pytest.mark.parametrize("swept", [False, True])
def test_charged_then_dropped_is_charged_once(world: World, key: str | None, swept: bool) -> None:
    world.save_card()
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=1)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=3)

    with pytest.raises(ProviderUnavailableError):
        world.top_up(key=key)
    world.sandbox.clear_faults()
    if swept:
        world.clock.move(minutes=10)
        world.sweep()
    done = world.top_up(key=key)

    assert isinstance(done.outcome, TopUpMade)
    assert done.outcome.status == "succeeded"
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()
