"""Idempotency keys that a restored database has forgotten: each still stands for its charge."""

import pytest

from metering.payments.outcomes import TopUpMade
from metering.payments.top_ups import ToppedUp
from metering.rules.payments import AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.crashing import crashing_at
from tests.payments.org_backup import OrgBackup
from tests.payments.reload_world import ReloadWorld

KEY = "order-1"
CHALLENGED = "pm_card_threeDSecure2Required"


def back_up(world: ReloadWorld) -> OrgBackup:
    assert world.admin is not None
    world.read_events()
    return OrgBackup(world.admin, 1)


def recover(world: ReloadWorld) -> None:
    """Let the reconciler find what there is."""
    world.clock.move(minutes=2)
    world.reconcile()
    world.mend_gates()


def assert_charged_once(world: ReloadWorld, again: ToppedUp, first: ToppedUp) -> None:
    recover(world)
    assert again == first
    assert world.charged() == 1
    assert world.balance() == world.held_cents() == 2_000
    assert world.top_up(key=KEY) == first
    world.assert_sound()


@pytest.mark.parametrize("recovered_first", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_a_key_still_stands_for_its_charge(reloading: ReloadWorld, told: bool, recovered_first: bool) -> None:
    reloading.save_card()
    backup = back_up(reloading)
    first = reloading.top_up(key=KEY, told=told)

    backup.restore()
    reloading.clock.move(hours=22)
    if recovered_first:
        reloading.clock.move(hours=20)  # Stripe has forgotten its key
        recover(reloading)

    assert_charged_once(reloading, reloading.top_up(key=KEY), first)
    assert reloading.top_up(key="order-2") != first
    assert reloading.charged() == 2


def test_so_it_does_though_the_default_card_is_another_again(reloading: ReloadWorld) -> None:
    """To Stripe it is then another request under the same key."""
    reloading.save_card()
    backup = back_up(reloading)
    reloading.save_card("pm_card_mastercard")
    first = reloading.top_up(key=KEY)

    backup.restore()
    reloading.clock.move(hours=5)

    assert_charged_once(reloading, reloading.top_up(key=KEY), first)


def test_so_it_does_though_stripe_keeps_an_error_for_it(reloading: ReloadWorld) -> None:
    reloading.save_card()
    backup = back_up(reloading)
    reloading.sandbox.set_fault(RequestFault.ERROR_AFTER, operation="payment_intents.create", count=1)
    first = reloading.top_up(key=KEY)
    reloading.sandbox.clear_faults()

    backup.restore()
    reloading.clock.move(hours=5)

    assert_charged_once(reloading, reloading.top_up(key=KEY), first)


def test_a_key_whose_first_payment_was_cancelled_stands_for_its_second_one(reloading: ReloadWorld) -> None:
    reloading.save_card(CHALLENGED)
    with crashing_at(CrashPoint.SETTLE_AFTER_COMMIT):
        reloading.top_up(key=KEY)
        raise AssertionError("it did not die")
    reloading.clock.move(minutes=2)
    reloading.stripe.v1.payment_intents.cancel(reloading.intents()[-1]["id"])
    reloading.deliver(*reloading.events("payment_intent.canceled"))
    backup = back_up(reloading)
    second = reloading.top_up(key=KEY)
    assert isinstance(second.outcome, TopUpMade)
    reloading.sandbox.authenticate(second.outcome.payment_intent_id)

    backup.restore()
    again = reloading.top_up(key=KEY)

    assert isinstance(again.outcome, TopUpMade)
    assert again.outcome.payment_intent_id == second.outcome.payment_intent_id
    assert again.outcome.status == "succeeded"  # it is, though Stripe repeats its first answer to the key
    recover(reloading)
    assert reloading.charged() == 1
    assert reloading.balance() == reloading.held_cents() == 2_000
    assert [each.status for each in reloading.attempts()] == [
        AttemptStatus.CANCELLED,
        AttemptStatus.SUCCEEDED,
    ]
    reloading.assert_sound()
