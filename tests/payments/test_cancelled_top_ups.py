"""Top-ups whose payment was cancelled at Stripe before a client was told: nothing was charged, and no answer says it was."""

from collections.abc import Callable

import pytest

from metering.payments.errors import ProviderUnavailableError
from metering.payments.outcomes import CardDeclined, TopUpMade
from metering.rules.payments import AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from tests.payments.crashing import crashing_at
from tests.payments.world import World

CHALLENGED = "pm_card_threeDSecure2Required"


def lose_an_answer(world: World, *, key: str | None, at: CrashPoint = CrashPoint.SETTLE_AFTER_COMMIT) -> None:
    """A PaymentIntent is made and, unless it is earlier, noted, and the process dies before it can tell of it."""
    with crashing_at(at):
        world.top_up(key=key)
        raise AssertionError("it did not die")
    world.clock.move(minutes=2)


def let_it_expire(world: World) -> None:
    """Nobody finishes it within a day."""
    world.clock.move(hours=24)
    world.reconcile()


def cancel_by_hand(world: World) -> None:
    """Somebody cancels it in Stripe's dashboard; we hear of it."""
    world.stripe.v1.payment_intents.cancel(world.intents()[-1]["id"])
    world.deliver(*world.events("payment_intent.canceled"))


def cancel_unheard(world: World) -> None:
    """Somebody cancels it in Stripe's dashboard, and no event has come yet."""
    world.stripe.v1.payment_intents.cancel(world.intents()[-1]["id"])


@pytest.mark.parametrize("key", [None, "a"])
@pytest.mark.parametrize("cancel", [let_it_expire, cancel_by_hand])
def test_the_repeat_of_a_cancelled_top_up_is_made_anew(
    world: World, cancel: Callable[[World], None], key: str | None
) -> None:
    world.save_card(CHALLENGED)
    lose_an_answer(world, key=key)
    cancel(world)

    told = world.top_up(key=key)

    assert isinstance(told.outcome, TopUpMade)
    assert told.outcome.status == "requires_action"
    assert [each["status"] for each in world.intents()] == ["canceled", "requires_action"]
    world.sandbox.authenticate(told.outcome.payment_intent_id)
    world.deliver(*world.events("payment_intent.succeeded"))
    assert world.balance() == world.held_cents() == 2_000
    if key is not None:
        assert world.top_up(key=key) == told  # from now on this is the key's answer
    assert len(world.attempts()) == 2
    world.assert_sound()


@pytest.mark.parametrize("at", [CrashPoint.SETTLE_AFTER_COMMIT, CrashPoint.CHARGE_AFTER_SEND])
@pytest.mark.parametrize("key", [None, "a"])
def test_one_that_is_found_cancelled_is_no_success_and_the_next_repeat_is_made_anew(
    world: World, key: str | None, at: CrashPoint
) -> None:
    """Also where Stripe is asked again with the charge's key, and repeats what it said before."""
    world.save_card(CHALLENGED)
    lose_an_answer(world, key=key, at=at)
    cancel_unheard(world)

    with pytest.raises(ProviderUnavailableError):
        world.top_up(key=key)
    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED]

    again = world.top_up(key=key).outcome
    assert isinstance(again, TopUpMade)
    assert again.status == "requires_action"
    world.assert_sound()


@pytest.mark.parametrize("cancel", [let_it_expire, cancel_by_hand, cancel_unheard])
@pytest.mark.parametrize("code", ["insufficient_funds", "authentication_required"])
def test_a_decline_stays_one_when_its_payment_is_cancelled(
    world: World, cancel: Callable[[World], None], code: str
) -> None:
    """Also one for want of authentication: nobody can confirm a payment that is cancelled."""
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code=code)
    lose_an_answer(world, key="a")
    cancel(world)
    world.sandbox.mend_card(method)

    told = world.top_up(key="a")

    assert isinstance(told.outcome, CardDeclined), told
    assert told.outcome.decline_code == code
    assert told.outcome.message
    assert world.top_up(key="a") == told
    assert (world.charged(), len(world.attempts())) == (0, 1)
    world.assert_sound()
