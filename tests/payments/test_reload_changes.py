"""What customers change while a charge waits or is on its way."""

import pytest

from metering.payments.metrics import RELOAD_ATTEMPTS
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld

CREATE = "payment_intents.create"


def due(world: ReloadWorld, **settings: int | None) -> str:
    world.adjust(MINIMUM)
    method = world.enable(**settings)  # type: ignore[arg-type]
    assert method is not None
    world.call(1)
    assert world.statuses() == ["open"]
    return method


def unanswered(world: ReloadWorld, *, charged: bool) -> None:
    """The charge is sent and its outcome unknown: it was made, or it wasn't."""
    fault = RequestFault.DROP_AFTER if charged else RequestFault.DROP_BEFORE
    world.sandbox.set_fault(fault, operation=CREATE, count=1 if charged else None)
    if charged:
        world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=5)
    world.work()
    assert world.statuses() == ["open"]
    world.sandbox.clear_faults()


def test_disabled_while_it_waits_it_is_not_charged(reloading: ReloadWorld) -> None:
    due(reloading)
    counter = RELOAD_ATTEMPTS.labels("cancelled")
    counted_before = counter._value.get()
    reloading.settings(enabled=False)
    assert reloading.statuses() == ["cancelled"]
    assert counter._value.get() == counted_before + 1
    reloading.work()
    reloading.drain(hours=30)
    assert reloading.asked() == 0
    reloading.assert_sound()


def test_disabled_while_it_is_charged_it_is_settled(reloading: ReloadWorld) -> None:
    due(reloading)

    def disable(operation: str) -> None:
        if operation == "charge":
            reloading.settings(enabled=False)

    reloading.watched.after = disable
    reloading.work()
    assert reloading.statuses() == ["succeeded"]
    assert reloading.balance() == MINIMUM - 1 + AMOUNT
    reloading.assert_sound()


@pytest.mark.parametrize("charged", [True, False])
@pytest.mark.parametrize("said_no", [{"enabled": False}, {"monthly_limit_cents": AMOUNT - 1}])
def test_after_a_no_a_charge_that_was_made_is_settled_and_one_that_was_not_is_never_made(
    reloading: ReloadWorld, charged: bool, said_no: dict[str, int]
) -> None:
    """Disabled, or the limit lowered so that it no longer fits, between a lost answer and the repeat."""
    due(reloading)
    unanswered(reloading, charged=charged)
    reloading.settings(**said_no)
    reloading.drain(hours=30)

    assert reloading.taken() == charged
    assert reloading.statuses() == (["succeeded"] if charged else ["cancelled"])
    reloading.assert_sound()


def test_whoever_says_yes_again_gets_the_charge_that_was_not_made(reloading: ReloadWorld) -> None:
    due(reloading)
    unanswered(reloading, charged=False)
    reloading.settings(enabled=False)
    reloading.clock.move(minutes=2)
    reloading.reconcile()
    assert reloading.taken() == 0
    reloading.settings(enabled=True)
    reloading.clock.move(minutes=2)
    reloading.reconcile()
    assert (reloading.statuses(), reloading.taken()) == (["succeeded"], 1)


@pytest.mark.parametrize("charged", [True, False])
def test_the_card_changed_between_a_time_out_and_its_repeat_is_one_charge_on_the_old_one(
    reloading: ReloadWorld, charged: bool
) -> None:
    method = due(reloading)
    unanswered(reloading, charged=charged)
    reloading.save_card("pm_card_mastercard")
    reloading.clock.move(minutes=2)
    reloading.reconcile()

    (intent,) = reloading.reload_intents()
    assert (intent["status"], intent["payment_method"]) == ("succeeded", method)
    assert len({each.idempotency_key for each in reloading.sandbox.requests(CREATE)}) == 1
    reloading.drain(hours=30)
    assert reloading.statuses() == ["succeeded"]
    reloading.assert_sound()


@pytest.mark.parametrize("charged", [True, False])
def test_the_old_card_detached_between_a_time_out_and_its_repeat(
    reloading: ReloadWorld, charged: bool
) -> None:
    """Where it was not charged, it can't be any more: the new one is, and nothing pauses it."""
    method = due(reloading)
    unanswered(reloading, charged=charged)
    new = reloading.save_card("pm_card_mastercard")
    reloading.detach(method)
    reloading.clock.move(minutes=2)
    reloading.reconcile()

    (intent,) = reloading.reload_intents()
    assert (intent["status"], intent["payment_method"]) == ("succeeded", method if charged else new)
    assert reloading.statuses() == (["succeeded"] if charged else ["failed", "succeeded"])
    reloading.assert_sound()


def test_before_it_is_sent_it_follows_every_change(reloading: ReloadWorld) -> None:
    """Amount, card and limit are those in force when it is sent, and there is never a second one."""
    due(reloading)
    reloading.settings(amount_cents=AMOUNT + 1)
    new = reloading.save_card("pm_card_mastercard")
    again = reloading.save_card("pm_card_mastercard")
    assert new != again
    reloading.settings(monthly_limit_cents=AMOUNT + 1)
    reloading.work()

    (intent,) = reloading.reload_intents()
    assert (intent["amount"], intent["payment_method"]) == (AMOUNT + 1, again)
    assert [each for each in reloading.statuses() if each != "cancelled"] == ["succeeded"]
    reloading.assert_sound()


def test_a_card_detached_while_it_waits_is_not_charged(reloading: ReloadWorld) -> None:
    method = due(reloading)
    reloading.detach(method)
    reloading.work()
    assert reloading.asked() == 0
    assert (reloading.statuses(), reloading.skip_reason()) == (["cancelled"], "no_payment_method")
    reloading.assert_sound()


def test_a_top_up_before_it_is_sent_makes_it_needless(reloading: ReloadWorld) -> None:
    due(reloading)
    reloading.top_up(20_000)
    reloading.work()
    assert (reloading.taken(), reloading.statuses()) == (0, ["cancelled"])
    reloading.assert_sound()


def test_a_top_up_that_does_not_suffice_leaves_it(reloading: ReloadWorld) -> None:
    due(reloading, minimum=MINIMUM)
    reloading.call(MINIMUM)
    reloading.top_up(500)
    reloading.work()
    assert (reloading.taken(), reloading.statuses()) == (1, ["succeeded"])
    reloading.assert_sound()
