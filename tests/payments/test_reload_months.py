"""In which month a reload counts: in which it is first sent, and once that is known in that of Stripe's `created`."""

from datetime import UTC, datetime, timedelta

import pytest

from db.attempts.attempts import find_attempt
from db.payments.next_step import Step, take_next_step
from db.postgres.engine import transaction
from metering.payments.charges import execute_step
from metering.rules.reloads import CLOCK_MARGIN
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld, Site

MAY = datetime(2026, 5, 1, tzinfo=UTC)
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
LAST_MS_OF_APRIL = MAY - timedelta(milliseconds=1)
CREATE = "payment_intents.create"


def charged_in(world: ReloadWorld, month: datetime) -> int:
    """How many charges Stripe dates in a month."""
    dates = [
        datetime.fromtimestamp(each["created"], UTC)
        for each in world.reload_intents()
        if each["status"] == "succeeded"
    ]
    return sum((each.year, each.month) == (month.year, month.month) for each in dates)


def due_in_april(site: Site, *, limit: int | None = AMOUNT) -> ReloadWorld:
    """One reload is made in April's last millisecond, and not sent."""
    world = site.fresh(at=LAST_MS_OF_APRIL)
    world.adjust(MINIMUM)
    world.enable(limit=limit)
    world.call(1)
    assert world.statuses() == ["open"]
    return world


@pytest.mark.parametrize("late", [timedelta(milliseconds=1), timedelta(hours=22), timedelta(days=9)])
def test_one_that_was_not_sent_when_the_month_turned_is_cancelled_and_asked_for_anew(
    site: Site, late: timedelta
) -> None:
    """Two charges were dated May, with a limit for one."""
    world = due_in_april(site)
    world.clock.at = LAST_MS_OF_APRIL + late
    world.reconcile()
    for _ in range(3):
        world.call(AMOUNT)
        world.work()
        world.reconcile()

    assert charged_in(world, MAY) == 1
    assert (world.taken(), world.skip_reason()) == (1, "monthly_limit")
    assert world.statuses() == ["cancelled", "succeeded"]
    world.assert_sound()


def test_what_is_asked_for_anew_must_be_wanted_in_the_new_month(site: Site) -> None:
    world = due_in_april(site)
    world.top_up(20_000)
    world.clock.at = MAY
    world.work()
    assert (world.statuses(), world.taken()) == (["cancelled"], 0)
    world.assert_sound()


def test_a_kill_between_the_note_and_the_sending_counts_in_both_until_it_is_known(site: Site) -> None:
    """Nothing was sent in April. What is repeated in May is May's, and takes May's room."""
    world = due_in_april(site)
    attempt = world.reloads()[0]
    with transaction(world.engine) as connection:
        assert take_next_step(connection, 1, attempt.id).step is Step.SEND
    world.enqueued.clear()  # killed here
    world.clock.at = MAY + timedelta(hours=22)
    world.reconcile()
    for _ in range(3):
        world.call(AMOUNT)
        world.work()
        world.reconcile()

    assert charged_in(world, MAY) == world.taken() == 1
    assert (world.statuses(), world.skip_reason()) == (["succeeded"], "monthly_limit")
    world.assert_sound()

    world.clock.at = JUNE
    world.drain(hours=1)
    assert charged_in(world, JUNE) == 1


def test_a_repeat_in_the_new_month_must_fit_there_too(site: Site) -> None:
    world = due_in_april(site)
    world.sandbox.set_fault(RequestFault.DROP_BEFORE, operation=CREATE, count=None)
    world.work()
    world.sandbox.clear_faults()
    assert world.admin is not None
    world.admin.execute(
        """
        -- May's room is taken by a charge that a restored database had lost.
        INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, first_sent_at,
            last_sent_at, status, finished_at, look_at, recovered)
        SELECT 1, gen_random_uuid(), 'auto_reload', amount_cents, customer_id, payment_method_id, %(at)s, %(at)s,
            %(at)s, 'succeeded', %(at)s, %(at)s, true FROM payment_attempts
        """,
        {"at": MAY},
    )
    world.clock.at = MAY + timedelta(hours=2)
    world.process_due_attempts()
    assert world.taken() == 0
    assert world.statuses()[0] == "open"


def test_an_unknown_outcome_over_the_turn_ends_in_the_month_that_stripe_says(site: Site) -> None:
    """Charged in April, found in May: May has all its room."""
    world = due_in_april(site)
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation=CREATE, count=1)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=5)
    world.work()
    assert world.statuses() == ["open"]
    world.sandbox.clear_faults()
    world.clock.at = MAY + timedelta(hours=3)
    world.call(AMOUNT)
    world.work()
    world.reconcile()

    assert world.statuses() == ["succeeded", "succeeded"]
    assert (charged_in(world, LAST_MS_OF_APRIL), charged_in(world, MAY)) == (1, 1)
    world.call(2 * AMOUNT)
    world.work()
    assert (world.taken(), world.skip_reason()) == (2, "monthly_limit")
    world.assert_sound()


def test_one_that_was_noted_in_april_and_arrives_in_may_is_mays(site: Site) -> None:
    """The process slept for some seconds over the turn, with the request in its hand."""
    world = due_in_april(site)
    attempt = world.reloads()[0]
    with transaction(world.engine) as connection:
        work = take_next_step(connection, 1, attempt.id)
    assert work.attempt is not None
    world.clock.move(seconds=20)
    execute_step(world.payments, work.step, work.attempt)
    for _ in range(2):
        world.call(AMOUNT)
        world.work()

    assert charged_in(world, MAY) == world.taken() == 1
    with transaction(world.engine) as connection:
        found = find_attempt(connection, 1, attempt.id)
    assert found is not None
    assert found.intent_created_at == MAY + timedelta(seconds=19)
    world.assert_sound()


def test_stripes_clock_may_be_ahead(site: Site) -> None:
    """It dates a charge in May while it is April here: the next one would be dated May as well."""
    world = site.fresh(at=LAST_MS_OF_APRIL - timedelta(seconds=2))
    ahead_s = 3.0
    world.sandbox._store._clock = lambda: world.clock() + timedelta(seconds=ahead_s)
    try:
        world.adjust(MINIMUM)
        world.enable(limit=AMOUNT)
        for _ in range(3):
            world.call(AMOUNT)
            world.work()
        assert charged_in(world, MAY) == world.taken() == 1
        world.clock.at = MAY + timedelta(minutes=1)
        world.reconcile()
        assert charged_in(world, MAY) == world.taken() == 1
    finally:
        world.sandbox._store._clock = world.clock


def test_stripes_clock_may_be_behind(site: Site) -> None:
    """It still dates charges in April when May has come here: who is at April's limit waits for some seconds."""
    world = site.fresh(at=LAST_MS_OF_APRIL - timedelta(hours=1))
    world.sandbox._store._clock = lambda: world.clock() - CLOCK_MARGIN
    try:
        world.adjust(MINIMUM)
        world.enable(limit=AMOUNT)
        for at in (world.clock.at, MAY, MAY + CLOCK_MARGIN - timedelta(milliseconds=1), MAY + CLOCK_MARGIN):
            world.clock.at = at
            world.call(AMOUNT)
            world.work()
            world.reconcile()
            assert charged_in(world, LAST_MS_OF_APRIL) == 1
        assert charged_in(world, MAY) == 1
        world.assert_sound()
    finally:
        world.sandbox._store._clock = world.clock
