"""When a reload is made: each line of docs/reference/auto-reload.md, with its edge on both sides."""

from datetime import UTC, datetime, timedelta

import pytest

from db.attempts.reload_rule import ask_every
from metering.rules.reloads import CLOCK_MARGIN
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld, Site

MAY = datetime(2026, 5, 1, tzinfo=UTC)
LAST_MS_OF_APRIL = MAY - timedelta(milliseconds=1)
MAYS_ROOM = MAY + CLOCK_MARGIN
"""When Stripe, too, dates no charge in April any more."""


@pytest.mark.parametrize("by", ["call", "adjustment"])
@pytest.mark.parametrize(
    ("minimum", "balance", "reloaded"),
    [
        (1_000, 1_000, False),
        (1_000, 999, True),
        (1, 1, False),
        (1, 0, True),
        (0, 1, False),
        (0, 0, True),
        (0, -1, True),
    ],
)
def test_below_the_minimum_and_at_zero_in_any_case(
    reloading: ReloadWorld, by: str, minimum: int, balance: int, reloaded: bool
) -> None:
    reloading.adjust(2_000)
    reloading.enable(minimum=minimum)
    if by == "call":
        reloading.call(2_000 - balance)
    else:
        reloading.adjust(balance - 2_000)

    reloading.work()

    assert reloading.statuses() == ["succeeded"] * reloaded
    assert reloading.balance() == balance + AMOUNT * reloaded
    assert reloading.held_cents() == AMOUNT * reloaded
    reloading.assert_sound()


@pytest.mark.parametrize(
    ("limit", "charges"),
    [(None, 3), (0, 0), (AMOUNT - 1, 0), (AMOUNT, 1), (2 * AMOUNT - 1, 1), (2 * AMOUNT, 2)],
)
def test_a_reload_fits_into_the_limit_to_the_cent_or_is_skipped_whole(
    reloading: ReloadWorld, limit: int | None, charges: int
) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(limit=limit)
    for _ in range(3):
        reloading.call(AMOUNT)
        reloading.work()

    assert reloading.statuses() == ["succeeded"] * charges
    assert reloading.balance() == MINIMUM - 3 * AMOUNT + charges * AMOUNT
    assert reloading.skip_reason() == (None if charges == 3 else "monthly_limit")
    assert reloading.said() == ["succeeded"] * charges + ["skipped monthly_limit"] * (charges < 3)
    reloading.assert_sound()


def test_a_limit_lowered_below_what_is_spent_stops_reloads_and_one_raised_lets_them_go_on(
    reloading: ReloadWorld,
) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(limit=3 * AMOUNT)
    reloading.call(1)
    reloading.work()
    reloading.settings(monthly_limit_cents=AMOUNT // 2)
    reloading.call(AMOUNT)
    reloading.work()
    assert (reloading.taken(), reloading.skip_reason()) == (1, "monthly_limit")

    reloading.settings(monthly_limit_cents=2 * AMOUNT - 1)
    reloading.work()
    assert (reloading.taken(), reloading.skip_reason()) == (1, "monthly_limit")
    reloading.settings(monthly_limit_cents=2 * AMOUNT)
    reloading.work()

    assert (reloading.taken(), reloading.skip_reason()) == (2, None)
    reloading.assert_sound()


def test_top_ups_do_not_count_and_a_refund_gives_nothing_back_to_the_month(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(limit=AMOUNT)
    reloading.top_up(20_000)
    reloading.call(20_001)
    reloading.work()
    assert reloading.taken() == 1

    reloading.refund()
    reloading.settings(minimum_cents=MINIMUM + 1)  # lifts the pause that the refund has brought

    reloading.work()
    assert (reloading.taken(), reloading.skip_reason()) == (1, "monthly_limit")
    reloading.assert_sound()


def test_top_ups_that_are_open_block_no_reload(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    method = reloading.enable()
    assert method is not None
    reloading.sandbox.slow_card(method)
    reloading.top_up()
    reloading.sandbox.slow_card(method, slow=False)

    reloading.call(1)
    reloading.work()

    assert reloading.taken() == 1


@pytest.mark.parametrize(
    "change", [{"minimum_cents": MINIMUM + 1}, {"minimum_cents": 50_000}], ids=["a cent", "much"]
)
def test_a_minimum_raised_above_the_balance_reloads_at_once(
    reloading: ReloadWorld, change: dict[str, int]
) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(limit=AMOUNT)
    reloading.work()
    assert reloading.reloads() == []

    reloading.settings(**change)
    reloading.work()

    assert reloading.taken() == 1


def test_enabling_reloads_at_once_and_so_does_the_first_card_after_all_went_away(
    reloading: ReloadWorld,
) -> None:
    method = reloading.enable()
    assert method is not None
    reloading.work()
    assert reloading.taken() == 1
    reloading.detach(method)
    reloading.call(AMOUNT)
    reloading.work()
    assert (reloading.taken(), reloading.skip_reason()) == (1, "no_payment_method")

    reloading.save_card()
    reloading.work()

    assert (reloading.taken(), reloading.skip_reason()) == (2, None)
    reloading.assert_sound()


def test_the_last_millisecond_of_a_month_counts_in_it_and_the_first_of_the_next_in_that(site: Site) -> None:
    world = site.fresh(at=LAST_MS_OF_APRIL)
    world.adjust(MINIMUM)
    world.enable(limit=AMOUNT)
    world.call(1)
    world.work()
    world.call(AMOUNT)
    world.work()
    assert (world.taken(), world.skip_reason()) == (1, "monthly_limit")

    world.clock.at = MAYS_ROOM
    world.call(1)
    world.work()

    assert (world.taken(), world.skip_reason()) == (2, None)
    assert [each.created_at for each in world.reloads()] == [LAST_MS_OF_APRIL, MAYS_ROOM]
    world.assert_sound()


def test_an_exhausted_org_at_its_limit_is_reloaded_when_the_month_turns_without_a_call(site: Site) -> None:
    world = site.fresh(at=LAST_MS_OF_APRIL - timedelta(hours=1))
    world.adjust(MINIMUM)
    world.enable(limit=AMOUNT)
    world.call(1)
    world.work()
    world.call(AMOUNT + MINIMUM)
    world.clock.at = LAST_MS_OF_APRIL
    world.reconcile()
    assert (world.taken(), world.skip_reason()) == (1, "monthly_limit")
    assert world.balance() < 0

    world.clock.at = MAYS_ROOM
    world.reconcile()

    assert (world.taken(), world.skip_reason()) == (2, None)
    assert world.said() == ["succeeded", "skipped monthly_limit", "succeeded"]
    world.assert_sound()


def test_a_worker_whose_clock_lags_does_not_count_into_the_month_that_is_over(site: Site) -> None:
    """Two workers whose clocks differ around a month's end: April's reload, May's, and then one of whoever is behind."""
    world = site.fresh(at=LAST_MS_OF_APRIL)
    world.adjust(MINIMUM)
    world.enable(limit=2 * AMOUNT)
    world.call(1)
    world.work()
    world.clock.at = MAY
    for _ in range(2):
        world.call(AMOUNT)
        world.work()
    assert world.taken() == 3

    world.clock.at = LAST_MS_OF_APRIL  # there April has room for one more, and May has none
    world.call(AMOUNT)
    world.work()
    world.reconcile()

    assert (world.taken(), world.skip_reason()) == (3, "monthly_limit")
    world.assert_sound()


def test_a_worker_whose_clock_is_ahead_takes_from_the_next_month_and_all_count_there_from_then_on(
    site: Site,
) -> None:
    world = site.fresh(at=MAY)
    world.adjust(MINIMUM)
    world.enable(limit=AMOUNT)
    world.call(1)
    world.work()
    world.clock.at = LAST_MS_OF_APRIL
    world.call(AMOUNT)
    world.reconcile()
    assert (world.taken(), world.skip_reason()) == (1, "monthly_limit")

    world.clock.at = MAY + timedelta(days=30)
    world.reconcile()
    assert (world.taken(), world.skip_reason()) == (1, "monthly_limit")
    world.clock.at = MAYS_ROOM + timedelta(days=31)
    world.reconcile()

    assert world.taken() == 2
    world.assert_sound()


def test_the_reconciler_asks_for_every_org_that_waits_and_for_no_other(reloading: ReloadWorld) -> None:
    for org_id in range(2, 6):
        reloading.make_org(org_id, MINIMUM)
        reloading.enable(org_id=org_id, limit=0 if org_id == 5 else None)
    reloading.settings(org_id=4, enabled=False)
    posted = reloading.post((org_id, 1) for org_id in range(2, 6))  # whoever posted it died here
    assert len(posted.reloads.attempts) == 2
    assert list(ask_every(reloading.engine)) == []

    reloading.clock.move(seconds=6)
    reloading.reconcile()

    assert [reloading.taken(org_id) for org_id in range(2, 6)] == [1, 1, 0, 0]
    assert list(ask_every(reloading.engine)) == []
