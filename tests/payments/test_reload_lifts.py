"""What lifts a pause, how often settings do, and that none is silent (docs/reference/auto-reload.md#pauses)."""

from datetime import timedelta
from typing import Any

import pytest

from db.accounts.resumptions import NotPausedError
from db.attempts.reload_status import list_reload_stops
from db.postgres.engine import transaction
from metering.payments.cards import set_default_payment_method
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld

DAY = timedelta(hours=24)
ANOTHER_CARD = "pm_card_mastercard"


def dead(world: ReloadWorld, code: str = "generic_decline") -> str:
    """An org whose card has just been declined."""
    world.adjust(MINIMUM)
    method = world.enable()
    assert method is not None
    world.sandbox.fail_card(method, decline_code=code)
    world.call(1)
    world.work()
    assert world.statuses() == ["failed"]
    return method


def patch_by_a_cent(world: ReloadWorld, times: int) -> None:
    for _ in range(times):
        minimum = world.account().auto_reload_minimum_cents
        world.settings(minimum_cents=minimum + 1)
        world.work()
        world.clock.move(seconds=1)


@pytest.mark.parametrize(("code", "by_time"), [("generic_decline", 1), ("authentication_required", 0)])
def test_settings_lift_a_pause_three_times_in_24_hours(
    reloading: ReloadWorld, code: str, by_time: int
) -> None:
    """A dead card was charged 51 times by 50 changes of a cent. A soft decline's first pause also ends with its hour."""
    dead(reloading, code)
    first_lift = reloading.clock.at
    for _ in range(50):
        patch_by_a_cent(reloading, 1)
        reloading.clock.move(minutes=11)  # so that the pace has nothing to do with it
    assert len(reloading.reload_intents()) == 1 + 3 + by_time
    assert reloading.account().auto_reload_paused(reloading.clock()) == code

    reloading.clock.at = first_lift + DAY
    patch_by_a_cent(reloading, 2)
    assert len(reloading.reload_intents()) == 1 + 3 + by_time + 1
    reloading.assert_sound()


def test_a_value_that_is_the_same_lifts_nothing_and_is_not_counted(reloading: ReloadWorld) -> None:
    dead(reloading, "authentication_required")
    for _ in range(5):
        reloading.settings(minimum_cents=MINIMUM, amount_cents=AMOUNT, enabled=True)
        reloading.work()
    assert len(reloading.reload_intents()) == 1
    for number in range(3):
        patch_by_a_cent(reloading, 1)
        assert len(reloading.reload_intents()) == 2 + number


def test_an_hour_waited_and_a_change_after_it_is_no_way_around(reloading: ReloadWorld) -> None:
    """The count of declines is set back as seldom as a pause is lifted."""
    dead(reloading)
    for _ in range(20):
        reloading.drain(hours=1.05, step_minutes=63)
        patch_by_a_cent(reloading, 1)
    assert len(reloading.reload_intents()) <= 1 + 3 * 2 + 2


def test_a_different_card_is_charged_at_once_however_often_settings_were_changed(
    reloading: ReloadWorld,
) -> None:
    dead(reloading)
    patch_by_a_cent(reloading, 5)
    assert reloading.taken() == 0
    reloading.save_card(ANOTHER_CARD)
    reloading.clock.move(minutes=10)
    reloading.reconcile()
    assert reloading.taken() == 1
    reloading.assert_sound()


def test_two_dead_cards_in_turn_are_not_tried_for_ever(reloading: ReloadWorld) -> None:
    one = dead(reloading, "authentication_required")
    two = reloading.sandbox.save_card(reloading.account().stripe_customer_id or "", card=ANOTHER_CARD)
    reloading.sandbox.fail_card(two, decline_code="authentication_required")
    for _ in range(10):
        for method in (two, one):
            set_default_payment_method(reloading.payments, 1, method)
            reloading.work()
            reloading.clock.move(minutes=10)
    assert len(reloading.reload_intents()) == 2 + 3
    good = reloading.save_card("pm_card_amex")
    reloading.work()
    assert reloading.reload_intents()[-1]["payment_method"] == good
    assert reloading.taken() == 1


def reloaded(world: ReloadWorld) -> str:
    world.adjust(MINIMUM)
    world.enable()
    world.call(1)
    world.work()
    return str(world.reload_intents()[0]["id"])


def test_a_refund_pauses_for_24_hours_and_a_dispute_until_a_change(reloading: ReloadWorld) -> None:
    """A goodwill refund ended reloads for good, and nobody was told."""
    intent = reloaded(reloading)
    reloading.refund()
    assert reloading.said()[1:] == ["failed refunded", "skipped paused"]
    assert reloading.account().auto_reload_paused(reloading.clock()) == "refunded"
    reloading.clock.move(hours=23.99)
    reloading.reconcile()
    assert reloading.taken() == 1
    reloading.clock.move(hours=0.01)
    reloading.reconcile()
    assert reloading.taken() == 2
    assert reloading.account().auto_reload_paused(reloading.clock()) is None

    second = reloading.reload_intents()[1]["id"]
    assert second != intent
    reloading.sandbox.open_dispute(second)
    reloading.deliver_all()
    reloading.work()
    reloading.drain(hours=24 * 30, step_minutes=24 * 60)
    assert reloading.taken() == 2
    assert reloading.account().auto_reload_paused(reloading.clock()) == "disputed"
    reloading.assert_sound()


def test_a_refund_loosens_no_other_pause(reloading: ReloadWorld) -> None:
    reloaded(reloading)
    method = reloading.account().default_payment_method_id
    assert method is not None
    reloading.sandbox.fail_card(method, decline_code="authentication_required")
    reloading.call(AMOUNT)
    reloading.work()
    reloading.refund()
    reloading.drain(hours=72)
    assert reloading.account().auto_reload_paused(reloading.clock()) == "authentication_required"
    assert len(reloading.reload_intents()) == 2


def stops(world: ReloadWorld) -> list[tuple[Any, ...]]:
    with transaction(world.engine) as connection:
        found, total = list_reload_stops(connection, world.clock(), limit=50)
    assert total == len(found)
    return [(each.org_id, each.code, each.since, each.lifts_with, each.until) for each in found]


def test_the_list_names_every_org_that_rests_or_waits_and_what_lifts_it(reloading: ReloadWorld) -> None:
    now = reloading.clock.at
    for org_id in range(2, 8):
        reloading.make_org(org_id, MINIMUM)
    cards = {2: "pm_card_chargeCustomerFail", 3: "pm_card_visa", 4: "pm_card_visa", 6: "pm_card_visa"}
    for org_id, card in cards.items():
        reloading.enable(org_id=org_id, card=card, limit=0 if org_id == 4 else None)
    reloading.enable(org_id=5, amount=50)
    reloading.enable(org_id=7)
    reloading.sandbox.fail_card(
        reloading.account(3).default_payment_method_id or "", decline_code="stolen_card"
    )
    reloading.call(1, org_id=2)
    reloading.call(1, org_id=3)
    reloading.call(1, org_id=4)
    reloading.call(900, org_id=5)
    reloading.detach(reloading.account(6).default_payment_method_id or "")
    reloading.call(1, org_id=6)
    reloading.work()

    found = {each[0]: each[1:] for each in stops(reloading)}
    assert found == {
        2: ("generic_decline", now, "time", now + timedelta(hours=1)),
        3: ("stolen_card", now, "card", None),
        4: ("monthly_limit", now, "month", found[4][3]),
        5: ("pace", now, "time", now + timedelta(minutes=10)),
        6: ("no_payment_method", now, "card", None),
    }
    assert found[4][3] > now


@pytest.mark.parametrize("code", ["authentication_required", "stolen_card", "generic_decline"])
def test_an_operator_resumes_whatever_pauses(reloading: ReloadWorld, code: str) -> None:
    method = dead(reloading, code)
    patch_by_a_cent(reloading, 5)
    tried = len(reloading.reload_intents())
    reloading.sandbox.mend_card(method)
    reloading.resume("the bank says it is sorted out")
    assert reloading.account().auto_reload_paused(reloading.clock()) is None
    reloading.clock.move(minutes=10)
    reloading.reconcile()
    assert reloading.taken() == 1
    assert len(reloading.reload_intents()) == tried + 1
    (row,) = reloading.rows("SELECT code, resumed_by, reason FROM reload_resumptions")
    assert tuple(row) == (code, "ann", "the bank says it is sorted out")
    with pytest.raises(NotPausedError):
        reloading.resume("again")


@pytest.mark.parametrize("code", ["expired_card", "invalid_expiry_year", "lost_card"])
@pytest.mark.parametrize("by", ["webhook", "event list"])
def test_a_card_that_stripe_updates_lifts_what_its_expiry_or_number_had_paused(
    reloading: ReloadWorld, code: str, by: str
) -> None:
    method = dead(reloading, code)
    reloading.read_events()
    reloading.drain(hours=48)
    assert len(reloading.reload_intents()) == 1
    if code == "lost_card":
        reloading.sandbox.update_card(method, card="pm_card_mastercard")
    else:
        reloading.sandbox.update_card(method, exp_year=2031)
    reloading.sandbox.mend_card(method)
    if by == "webhook":
        reloading.deliver(reloading.events("payment_method.automatically_updated")[-1])
        reloading.work()
    else:
        reloading.clock.move(seconds=31)
        reloading.reconcile()
    assert reloading.taken() == 1
    assert reloading.account().default_payment_method_id == method
    reloading.assert_sound()


def test_an_updated_expiry_makes_a_stolen_card_no_other_one(reloading: ReloadWorld) -> None:
    method = dead(reloading, "stolen_card")
    reloading.sandbox.update_card(method, exp_year=2031)
    reloading.deliver_all()
    reloading.reconcile()
    assert len(reloading.reload_intents()) == 1


def test_an_update_of_another_card_lifts_nothing(reloading: ReloadWorld) -> None:
    dead(reloading, "expired_card")
    other = reloading.sandbox.save_card(reloading.account().stripe_customer_id or "", card=ANOTHER_CARD)
    reloading.sandbox.update_card(other, exp_year=2031)
    reloading.deliver_all()
    reloading.reconcile()
    assert len(reloading.reload_intents()) == 1
    assert reloading.account().auto_reload_paused(reloading.clock()) == "expired_card"
