"""A top-up whose answer was lost, repeated when its card is gone: it was charged, and that is what its client is told."""

import pytest

from metering.payments.cards import create_setup_intent
from metering.payments.errors import InvalidPaymentMethodError, PaymentMethodRequiredError
from metering.payments.outcomes import TopUpMade
from metering.rules.payments import IntentStatus
from metering.runtime.crashpoints import CrashPoint
from tests.payments.crashing import crashing_at
from tests.payments.world import World


def lose_an_answer(world: World, *, method: str | None) -> None:
    """A charge is made, and its process dies before it can tell of it."""
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND, 1):
        world.top_up(method=method)
    world.clock.move(minutes=2)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("how", ["detached", "deleted", "detached and heard of", "deleted and replaced"])
def test_the_repeat_is_told_of_the_charge(world: World, how: str, named: bool) -> None:
    method = world.save_card("pm_card_mastercard")
    if named:
        world.save_card()  # another one is the default
    lose_an_answer(world, method=method if named else None)
    if how.startswith("detached"):
        world.sandbox.detach(method)
    else:
        world.sandbox.delete_customer(world.account().stripe_customer_id or "")
    if how == "detached and heard of":
        world.deliver(*world.events("payment_method.detached"))
    elif how == "deleted and replaced":
        create_setup_intent(world.payments, 1)

    told = world.top_up(method=method if named else None).outcome

    assert isinstance(told, TopUpMade)
    assert told.status == IntentStatus.SUCCEEDED
    assert (world.charged(), world.balance(), len(world.attempts())) == (1, 2_000, 1)
    with pytest.raises((PaymentMethodRequiredError, InvalidPaymentMethodError)):
        world.top_up(method=method if named else None)  # now it is another one
    assert world.charged() == 1
    world.assert_sound()


def test_another_card_or_amount_joins_nothing(world: World) -> None:
    method = world.save_card()
    lose_an_answer(world, method=None)
    world.sandbox.detach(method)
    world.deliver(*world.events("payment_method.detached"))
    with pytest.raises(PaymentMethodRequiredError):
        world.top_up(2_001)
    with pytest.raises(InvalidPaymentMethodError):
        world.top_up(method="pm_another")
