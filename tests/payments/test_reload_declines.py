"""A card that fails: pauses that grow, a declined intent that is cancelled before its part of the month is free."""

from datetime import timedelta

import pytest

from db.attempts.months import reloads_so_far
from db.postgres.engine import transaction
from metering.payments.cards import set_default_payment_method
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld

CANCEL = "payment_intents.cancel"
ANOTHER_CARD = "pm_card_mastercard"


def failing(world: ReloadWorld, code: str = "generic_decline", *, limit: int | None = None) -> str:
    """An org whose card fails for this reason, and a reload due; give the payment method."""
    world.adjust(MINIMUM)
    method = world.enable(limit=limit)
    assert method is not None
    world.sandbox.fail_card(method, decline_code=code)
    world.call(1)
    return method


def declined(world: ReloadWorld) -> int:
    """How many charges the bank has declined."""
    return sum(each["last_payment_error"] is not None for each in world.reload_intents())


def committed(world: ReloadWorld) -> int:
    with transaction(world.engine) as connection:
        return reloads_so_far(connection, 1, world.clock()).committed_cents


def test_a_soft_decline_pauses_an_hour_then_a_day_then_until_a_change(reloading: ReloadWorld) -> None:
    failing(reloading, "insufficient_funds")
    for number, pause in enumerate([timedelta(hours=1), timedelta(hours=24)], start=1):
        reloading.work()
        assert declined(reloading) == number
        held = reloading.pause()
        assert held is not None
        assert held.until == reloading.clock() + pause
        reloading.clock.move(seconds=pause.total_seconds() - 0.001)
        reloading.call(1)
        reloading.reconcile()
        assert declined(reloading) == number
        reloading.clock.move(seconds=0.001)
        for reloads in [reloading.call(1).reloads] if number == 1 else []:
            assert reloads.attempts  # a call sees that it is over, or else the reconciler does
        reloading.reconcile()
    assert declined(reloading) == 3
    held = reloading.pause()
    assert held is not None
    assert (held.lifts_with, held.until) == ("change", None)

    reloading.clock.move(days=365)
    reloading.call(1)
    reloading.reconcile()

    assert declined(reloading) == 3
    assert reloading.said() == ["failed insufficient_funds", "skipped paused"] * 3
    reloading.assert_sound()


@pytest.mark.parametrize("code", ["generic_decline", "stolen_card", "authentication_required"])
def test_a_dead_card_is_tried_at_most_three_times_in_a_year(reloading: ReloadWorld, code: str) -> None:
    failing(reloading, code)
    for _ in range(37):
        reloading.call(100)
        reloading.work()
        reloading.clock.move(days=10)
        reloading.reconcile()
    assert declined(reloading) == (3 if code == "generic_decline" else 1)
    assert reloading.asked() == declined(reloading)
    assert {each["status"] for each in reloading.reload_intents()} == {"canceled"}


@pytest.mark.parametrize("code", ["stolen_card", "lost_card", "expired_card", "fraudulent"])
def test_a_hard_decline_is_lifted_by_a_different_card_alone(reloading: ReloadWorld, code: str) -> None:
    method = failing(reloading, code)
    reloading.work()
    held = reloading.pause()
    assert held is not None
    assert (held.code, held.lifts_with, held.until) == (code, "card", None)

    reloading.settings(minimum_cents=MINIMUM + 1, amount_cents=AMOUNT + 1, monthly_limit_cents=77_777)
    reloading.settings(enabled=False)
    reloading.settings(enabled=True)
    again = reloading.save_card()  # the same card, saved once more
    reloading.detach(method)
    reloading.detach(again)
    reloading.save_card()
    reloading.clock.move(days=40)
    reloading.reconcile()
    assert declined(reloading) == len(reloading.reloads()) == 1

    reloading.save_card(ANOTHER_CARD)
    reloading.work()

    assert reloading.statuses() == ["failed", "succeeded"]
    assert reloading.pause() is None
    reloading.assert_sound()


@pytest.mark.parametrize(("code", "lifted"), [("expired_card", True), ("stolen_card", False)])
def test_a_card_issued_anew_under_the_same_number_is_a_different_one_where_it_was_the_expiry_that_failed(
    reloading: ReloadWorld, code: str, lifted: bool
) -> None:
    method = failing(reloading, code)
    reloading.work()
    expired = reloading.stripe.v1.payment_methods.retrieve(method).card
    assert expired is not None
    renewed = reloading.stripe.v1.payment_methods.create(
        {
            "type": "card",
            "card": {
                "number": "4242424242424242",
                "exp_month": expired.exp_month,
                "exp_year": expired.exp_year + 3,
                "cvc": "123",
            },
        }
    )
    customer_id = reloading.account().stripe_customer_id
    assert customer_id is not None
    reloading.stripe.v1.payment_methods.attach(renewed.id, {"customer": customer_id})

    reloading.clock.move(seconds=1)
    set_default_payment_method(reloading.payments, 1, renewed.id)
    reloading.work()

    assert reloading.statuses() == (["failed", "succeeded"] if lifted else ["failed"])
    assert (reloading.pause() is None) is lifted
    reloading.assert_sound()


@pytest.mark.parametrize("code", ["generic_decline", "authentication_required"])
@pytest.mark.parametrize(
    "change", [{"minimum_cents": MINIMUM + 1}, {"amount_cents": AMOUNT + 1}, {"monthly_limit_cents": 10**6}]
)
def test_a_setting_that_really_changes_lifts_other_pauses_and_the_same_again_lifts_nothing(
    reloading: ReloadWorld, code: str, change: dict[str, int]
) -> None:
    method = failing(reloading, code)
    reloading.work()
    reloading.sandbox.mend_card(method)

    reloading.settings(enabled=True, minimum_cents=MINIMUM, amount_cents=AMOUNT, monthly_limit_cents=None)
    reloading.save_card()
    reloading.work()
    assert reloading.taken() == 0
    reloading.settings(**change)
    reloading.work()

    assert reloading.taken() == 1
    assert reloading.pause() is None
    reloading.assert_sound()


def test_a_success_resets_the_count(reloading: ReloadWorld) -> None:
    method = failing(reloading)
    reloading.work()
    reloading.sandbox.mend_card(method)
    reloading.clock.move(hours=1)
    reloading.reconcile()
    assert reloading.statuses() == ["failed", "succeeded"]

    reloading.sandbox.fail_card(method)
    reloading.call(AMOUNT)
    reloading.work()

    held = reloading.pause()
    assert held is not None
    assert held.until == reloading.clock() + timedelta(hours=1)


def test_a_change_resets_the_count(reloading: ReloadWorld) -> None:
    failing(reloading)
    reloading.work()
    reloading.settings(minimum_cents=MINIMUM + 1)
    reloading.work()
    held = reloading.pause()
    assert declined(reloading) == 2
    assert held is not None
    assert held.until == reloading.clock() + timedelta(hours=1)


def test_the_part_of_the_month_is_free_only_when_the_cancelling_is_confirmed(reloading: ReloadWorld) -> None:
    failing(reloading, limit=AMOUNT)
    seen: dict[str, tuple[int, list[str], list[str]]] = {}

    def look(operation: str) -> None:
        intents = [each["status"] for each in reloading.reload_intents()]
        seen.setdefault(operation, (committed(reloading), reloading.statuses(), intents))

    reloading.watched.after = look
    reloading.work()

    assert seen["charge"] == (AMOUNT, ["open"], ["requires_payment_method"])
    assert seen["cancel_intent"] == (AMOUNT, ["open"], ["canceled"])
    assert (committed(reloading), reloading.statuses()) == (0, ["failed"])
    reloading.assert_sound()


@pytest.mark.parametrize(
    "fault",
    [
        RequestFault.RATE_LIMITED,
        RequestFault.UNAUTHORIZED,
        RequestFault.ERROR_BEFORE,
        RequestFault.ERROR_AFTER,
        RequestFault.DROP_BEFORE,
        RequestFault.DROP_AFTER,
    ],
)
def test_a_cancelling_that_fails_or_is_unknown_keeps_the_reservation_until_it_is_confirmed(
    reloading: ReloadWorld, fault: RequestFault
) -> None:
    method = failing(reloading, limit=AMOUNT)
    reloading.sandbox.set_fault(fault, operation=CANCEL, count=None)
    reloading.work()
    assert (committed(reloading), reloading.statuses()) == (AMOUNT, ["open"])
    reloading.sandbox.mend_card(method)
    reloading.settings(minimum_cents=MINIMUM + 1)  # nor does a change let another one in
    reloading.work()
    assert reloading.statuses() == ["open"]

    reloading.sandbox.clear_faults()
    reloading.clock.move(minutes=2)
    reloading.reconcile()

    assert reloading.statuses() == ["failed"]
    assert [each["status"] for each in reloading.reload_intents()] == ["canceled"]
    assert reloading.taken() == 0
    reloading.assert_sound()


def test_an_intent_that_succeeded_instead_of_being_cancelled_is_credited(reloading: ReloadWorld) -> None:
    """Somebody confirmed it with another card, in the dashboard, between the decline and our cancelling."""
    failing(reloading, limit=AMOUNT)

    def confirm(operation: str) -> None:
        if operation == "charge":
            (intent,) = reloading.reload_intents()
            reloading.stripe.v1.payment_intents.confirm(
                intent["id"],
                {
                    "payment_method": reloading.sandbox.save_card(intent["customer"]),
                    "return_url": "https://example.com",
                },
            )

    reloading.watched.after = confirm
    reloading.work()

    assert reloading.statuses() == ["succeeded"]
    assert reloading.taken() == 1
    assert reloading.balance() == MINIMUM - 1 + AMOUNT
    assert reloading.pause() is None
    reloading.assert_sound()


def test_an_intent_cancelled_by_hand_pauses_as_a_soft_decline_does(reloading: ReloadWorld) -> None:
    failing(reloading)
    reloading.sandbox.set_fault(RequestFault.RATE_LIMITED, operation=CANCEL, count=1)
    reloading.work()
    (intent,) = reloading.reload_intents()
    reloading.stripe.v1.payment_intents.cancel(intent["id"])
    reloading.deliver_all()

    assert reloading.statuses() == ["failed"]
    assert reloading.said() == ["failed generic_decline", "skipped paused"]
    reloading.drain(hours=0.5, step_minutes=5)
    assert len(reloading.reloads()) == 1


def test_a_decline_of_a_card_that_is_no_longer_the_default_pauses_nothing(reloading: ReloadWorld) -> None:
    """The answer was lost, and by the time that it is found there is another card."""
    failing(reloading, "stolen_card")
    reloading.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=1)
    reloading.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=5)
    reloading.work()
    reloading.sandbox.clear_faults()
    reloading.save_card(ANOTHER_CARD)

    reloading.clock.move(minutes=1)
    reloading.reconcile()

    assert reloading.statuses() == ["failed", "succeeded"]
    assert reloading.pause() is None
    assert reloading.said() == ["failed stolen_card", "succeeded"]
    assert reloading.signals()[0]["paused"] is False
    reloading.assert_sound()


@pytest.mark.parametrize("saved", ["before the decline is known", "after it"])
def test_the_stolen_card_saved_again_is_not_another_card(reloading: ReloadWorld, saved: str) -> None:
    """Also where it is no longer the default, or not the same payment method, when its decline gets known."""
    method = failing(reloading, "stolen_card")
    reloading.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=1)
    reloading.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=5)
    reloading.work()
    reloading.sandbox.clear_faults()
    reloading.detach(method)
    if saved == "before the decline is known":
        reloading.save_card()
    reloading.clock.move(minutes=1)
    reloading.reconcile()
    reloading.save_card()
    reloading.reconcile()

    assert reloading.statuses() == ["failed"]
    held = reloading.pause()
    assert held is not None
    assert (held.code, held.lifts_with) == ("stolen_card", "card")
    assert reloading.skip_reason() == "paused"
