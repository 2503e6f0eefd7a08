"""Money of a reload that goes back to the card: no new charge by itself, whatever the balance."""

import pytest

from metering.sandbox.stripe.faults import RequestFault
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld


def reloaded(world: ReloadWorld, *, amount: int = AMOUNT) -> str:
    """An org that was reloaded once; give the PaymentIntent."""
    world.adjust(MINIMUM)
    world.enable(amount=amount)
    world.call(1)
    world.work()
    assert world.taken() == 1
    return str(world.reload_intents()[0]["id"])


def lose(world: ReloadWorld, intent_id: str, how: str) -> None:
    """The money goes back, and the webhooks come."""
    if how == "refund":
        world.sandbox.refund(intent_id)
    else:
        world.sandbox.open_dispute(intent_id)
    world.deliver_all()
    world.work()


@pytest.mark.parametrize(
    ("how", "code", "lifts_with", "days"),
    [("refund", "refunded", "time", 0.99), ("dispute", "disputed", "change", 40)],
)
def test_a_refund_or_dispute_that_drops_the_balance_below_the_minimum_charges_nothing(
    reloading: ReloadWorld, how: str, code: str, lifts_with: str, days: float
) -> None:
    lose(reloading, reloaded(reloading), how)
    assert reloading.balance() == MINIMUM - 1
    reloading.settings(enabled=True, minimum_cents=MINIMUM, amount_cents=AMOUNT)  # nothing new
    reloading.save_card()  # the same card
    reloading.call(2 * MINIMUM)
    reloading.drain(hours=24 * days, step_minutes=2.4 * 60 * days)

    assert reloading.taken() == 1
    pause = reloading.pause()
    assert pause is not None
    assert (pause.code, pause.lifts_with) == (code, lifts_with)
    assert reloading.said() == ["succeeded", f"failed {code}", "skipped paused"]
    reloading.assert_sound()


@pytest.mark.parametrize("change", ["card", "setting"])
def test_another_card_or_setting_lets_reloads_go_on(reloading: ReloadWorld, change: str) -> None:
    lose(reloading, reloaded(reloading), "refund")
    if change == "card":
        reloading.save_card("pm_card_mastercard")
    else:
        reloading.settings(amount_cents=AMOUNT + 1)
    reloading.work()
    assert reloading.taken() == 2
    assert reloading.pause() is None
    reloading.assert_sound()


def test_the_card_taken_away_before_the_refund_and_saved_again_after_it_is_no_change(
    reloading: ReloadWorld,
) -> None:
    intent = reloaded(reloading)
    method = reloading.account().default_payment_method_id
    assert method is not None
    reloading.detach(method)
    lose(reloading, intent, "refund")
    reloading.save_card()
    reloading.work()
    assert (reloading.taken(), reloading.skip_reason()) == (1, "paused")
    reloading.save_card("pm_card_mastercard")
    reloading.work()
    assert reloading.taken() == 2


def test_each_refund_is_told_once_however_often_it_is_heard_of(reloading: ReloadWorld) -> None:
    intent = reloaded(reloading)
    for _ in range(2):
        reloading.sandbox.refund(intent, amount_cents=10)
        reloading.deliver_all()
        reloading.deliver_all()
        reloading.clock.move(seconds=31)
        reloading.reconcile()
    assert reloading.said().count("failed refunded") == 2
    assert reloading.balance() == MINIMUM - 1 + AMOUNT - 20
    reloading.assert_sound()


def test_a_refund_where_reloads_are_disabled_pauses_and_tells_nothing(reloading: ReloadWorld) -> None:
    intent = reloaded(reloading)
    reloading.settings(enabled=False)
    lose(reloading, intent, "refund")
    assert (reloading.pause(), reloading.said()) == (None, ["succeeded"])

    reloading.settings(enabled=True)
    reloading.work()

    assert reloading.taken() == 2


def test_a_charge_on_its_way_when_the_earlier_one_is_refunded_does_not_lift_the_pause(
    reloading: ReloadWorld,
) -> None:
    """Its own success says nothing about what the cardholder has just done."""
    intent = reloaded(reloading, amount=50)  # so small that the next one is due at once
    assert reloading.statuses()[0] == "succeeded"
    reloading.settings(amount_cents=51)  # nothing of it is to be left on its way
    reloading.work()
    charged = reloading.taken()
    reloading.call(100)
    refunded: list[str] = []

    def refund(operation: str) -> None:
        if operation == "charge" and not refunded:
            refunded.append(intent)
            lose_now()

    def lose_now() -> None:
        reloading.sandbox.refund(intent)
        reloading.deliver(*reloading.events("charge.refunded"))

    reloading.watched.after = refund
    reloading.work()

    assert refunded
    assert reloading.taken() == charged + 1
    assert reloading.balance() < MINIMUM
    pause = reloading.pause()
    assert pause is not None
    assert pause.code == "refunded"
    reloading.assert_sound()


def test_a_refund_stops_the_repeats_of_a_charge_that_may_not_have_been_made(reloading: ReloadWorld) -> None:
    """Stripe's key was refused for a while: nothing was charged. Then the cardholder wants his money back."""
    intent = reloaded(reloading)
    reloading.sandbox.set_fault(RequestFault.UNAUTHORIZED, operation="payment_intents.create", count=None)
    reloading.clock.move(seconds=1)
    reloading.call(AMOUNT)
    reloading.work()
    assert reloading.statuses() == ["succeeded", "open"]
    lose(reloading, intent, "refund")
    reloading.sandbox.clear_faults()

    reloading.drain(hours=23)
    assert (reloading.taken(), reloading.statuses()) == (1, ["succeeded", "open"])

    reloading.drain(hours=3)
    assert reloading.statuses()[:2] == ["succeeded", "cancelled"], (
        "it is another one that is made when the pause is over"
    )
    reloading.assert_sound()


def test_a_refund_that_fails_gives_the_money_back_and_a_dispute_won_too(reloading: ReloadWorld) -> None:
    intent = reloaded(reloading)
    refund = reloading.sandbox.refund(intent, amount_cents=100)
    reloading.deliver_all()
    reloading.sandbox.fail_refund(refund["id"])
    dispute = reloading.sandbox.open_dispute(intent)
    reloading.deliver_all()
    reloading.sandbox.win_dispute(dispute["id"])
    reloading.deliver_all()
    reloading.work()

    assert reloading.balance() == MINIMUM - 1 + AMOUNT == MINIMUM - 1 + reloading.held_cents()
    assert reloading.taken() == 1
    reloading.assert_sound()
