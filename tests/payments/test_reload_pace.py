"""At most five auto-reloads of an org are made in any ten minutes: what is due beyond that waits, and is made in its time."""

from datetime import timedelta

import pytest

from metering.payments.metrics import RELOADS_SKIPPED
from tests.payments.reload_world import MINIMUM, ReloadWorld

SMALL = 50
WINDOW = timedelta(minutes=10)


def runaway(world: ReloadWorld, *, below: int = 20 * SMALL) -> None:
    """An amount that is so much smaller than what is missing that one reload asks for the next."""
    world.adjust(MINIMUM)
    world.enable(amount=SMALL)
    world.call(below)
    world.work()


def test_a_runaway_makes_five_in_any_ten_minutes_and_goes_on_when_its_time_has_come(
    reloading: ReloadWorld,
) -> None:
    """160 charges were made in 20 seconds."""
    counter = RELOADS_SKIPPED.labels("pace")
    counted_before = counter._value.get()
    runaway(reloading)
    assert (reloading.taken(), reloading.skip_reason()) == (5, "pace")
    assert reloading.said()[-1] == "skipped pace"
    assert counter._value.get() == counted_before + 1

    until = reloading.clock.at + WINDOW
    assert reloading.rows("SELECT ask_at FROM reload_states")[0].ask_at == until
    reloading.clock.at = until - timedelta(milliseconds=1)
    reloading.reconcile()
    reloading.call(1)
    reloading.work()
    assert reloading.taken() == 5
    reloading.clock.at = until
    reloading.reconcile()
    assert reloading.taken() == 10
    reloading.assert_sound()

    reloading.drain(hours=1, step_minutes=10)
    assert reloading.balance() >= MINIMUM
    assert reloading.skip_reason() is None
    reloading.assert_sound()


def test_no_window_holds_more_than_five_first_sends(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(amount=SMALL)
    for step_s in (1, 100, 7, 300, 60, 250, 11, 90, 5, 400, 200, 33, 61, 61, 61, 61):
        reloading.call(3 * SMALL)
        reloading.work()
        reloading.clock.move(seconds=step_s)
        reloading.reconcile()
    sent = sorted(each.first_sent_at for each in reloading.reloads() if each.first_sent_at)
    assert len(sent) > 10
    assert all(later - first >= WINDOW for first, later in zip(sent, sent[5:], strict=False))


def test_declined_and_lost_ones_count_and_unsent_ones_do_not(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(amount=SMALL)
    reloading.call(1)
    for extra in range(1, 12):
        reloading.settings(amount_cents=SMALL + extra)  # cancels the one that waits, and makes another
    assert sorted(reloading.statuses()) == ["cancelled"] * 11 + ["open"]
    reloading.work()
    assert reloading.taken() == 1
    method = reloading.account().default_payment_method_id
    assert method is not None
    reloading.sandbox.fail_card(method)
    reloading.call(20 * SMALL)
    reloading.work()
    reloading.save_card("pm_card_mastercard")
    reloading.work()
    sent = [each.status.value for each in reloading.reloads() if each.first_sent_at]
    assert sorted(sent) == ["failed"] + ["succeeded"] * 4
    assert reloading.skip_reason() == "pace"


def test_the_monthly_limit_is_said_before_the_pace(reloading: ReloadWorld) -> None:
    """The pace is what is due and waits; above the limit nothing is due."""
    reloading.adjust(MINIMUM)
    reloading.enable(amount=SMALL, limit=5 * SMALL)
    reloading.call(20 * SMALL)
    reloading.work()
    assert (reloading.taken(), reloading.skip_reason()) == (5, "monthly_limit")


@pytest.mark.parametrize("change", ["disable", "top up"])
def test_who_waits_for_the_pace_and_no_longer_wants_it_is_left_alone(
    reloading: ReloadWorld, change: str
) -> None:
    runaway(reloading)
    if change == "disable":
        reloading.settings(enabled=False)
    else:
        reloading.top_up(20_000)
    assert reloading.skip_reason() is None
    reloading.drain(hours=1, step_minutes=10)
    assert reloading.taken() == 5
    reloading.assert_sound()
