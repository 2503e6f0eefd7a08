"""No process's clock decides what can't be taken back: one that is wrong, for one round or for good, costs nobody anything."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from unittest.mock import patch

import pytest

from db.postgres.engine import transaction
from metering.payments import stripe_requests
from metering.payments.charges import process_attempt
from metering.payments.context import Payments
from metering.payments.event_list import read_events
from metering.payments.webhooks import receive
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from metering.sandbox.stripe.signatures import signature_header
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld
from tests.stored_times import stored_times
from tests.waiting import wait_until

CREATE = "payment_intents.create"
MONTH = timedelta(days=30)


def astray(world: ReloadWorld, by: timedelta) -> Payments:
    """What a process works with whose clock is ahead by so much, or behind."""
    return replace(world.payments, clock=lambda: world.clock() + by)


def due(world: ReloadWorld, *, limit: int | None = None) -> None:
    """A reload is due, and nobody works on it yet."""
    world.adjust(MINIMUM)
    world.enable(limit=limit)
    world.call(1)


@pytest.mark.parametrize("by", [MONTH, -MONTH])
def test_one_reading_by_a_wrong_clock_keeps_nobody_from_reading_the_event_list(
    reloading: ReloadWorld, by: timedelta
) -> None:
    reloading.save_card()
    reloading.top_up()
    assert read_events(astray(reloading, by)) is not None

    reloading.clock.move(seconds=31)
    reloading.sandbox.refund(reloading.intents()[0]["id"], amount_cents=700)  # and its webhook is lost
    reloading.clock.move(seconds=31)
    reloading.read_events()

    assert reloading.balance() == reloading.held_cents() == 1_300
    reloading.assert_sound()


def test_a_position_and_a_look_in_a_time_to_come_are_found_out_and_mended(reloading: ReloadWorld) -> None:
    """A program of before this rule has left them."""
    reloading.save_card()
    reloading.top_up()
    reloading.read_events()
    reloading.glance(
        "UPDATE stripe_cursors SET position = %s, looked_at = %s RETURNING 1",
        reloading.clock() + MONTH,
        reloading.clock() + MONTH,
    )
    reloading.sandbox.refund(reloading.intents()[0]["id"], amount_cents=700)

    reloading.clock.move(seconds=31)
    assert (reloading.read_events() or 0) > 0

    assert reloading.balance() == reloading.held_cents() == 1_300
    assert reloading.rows("SELECT position FROM stripe_cursors")[0].position <= reloading.clock()
    reloading.clock.move(seconds=31)
    assert reloading.read_events() == 0
    assert reloading.sandbox.requests("events.list")[-1].params["created"]["gte"] != "0"


def test_a_clock_26_hours_ahead_declares_no_charge_absent_that_hangs(reloading: ReloadWorld) -> None:
    """Else its part of the month is free, and the next reload takes it a second time."""
    due(reloading, limit=AMOUNT)
    (attempt,) = reloading.reloads()
    reloading.sandbox.set_fault(RequestFault.HANG_BEFORE, operation=CREATE, count=1, seconds=3)
    with ThreadPoolExecutor(1) as threads:
        charging = threads.submit(process_attempt, reloading.payments, 1, attempt.id)
        wait_until(lambda: reloading.asked(CREATE) == 1, limit_s=30)
        process_attempt(astray(reloading, timedelta(hours=26)), 1, attempt.id)
        assert reloading.statuses() == ["open"]
        charging.result(timeout=30)
    reloading.reconcile()

    assert reloading.statuses() == ["succeeded"]
    assert reloading.taken() == 1
    reloading.assert_sound()


def test_a_charge_is_absent_only_when_stripes_clock_says_so_too(reloading: ReloadWorld) -> None:
    """Here Postgres's clock is ahead of Stripe's, by two hours and then by what nobody told."""
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.DROP_BEFORE, operation=CREATE, count=None)
    reloading.work()
    reloading.settings(enabled=False)  # so that it isn't sent again
    (attempt,) = reloading.reloads()
    reloading.clock.move(hours=26)
    told_at = stripe_requests.told_at
    for told in (lambda answer: (told_at(answer) or attempt.created_at) - timedelta(hours=2), lambda _: None):
        with patch.object(stripe_requests, "told_at", told):
            process_attempt(reloading.payments, 1, attempt.id)
        assert reloading.statuses() == ["open"]
        reloading.clock.move(hours=2)

    process_attempt(reloading.payments, 1, attempt.id)
    assert reloading.statuses() == ["cancelled"]
    assert reloading.taken() == 0


def test_a_clock_that_is_behind_or_ahead_keeps_no_charge_from_being_made(reloading: ReloadWorld) -> None:
    due(reloading)
    (attempt,) = reloading.reloads()
    process_attempt(astray(reloading, timedelta(hours=1)), 1, attempt.id)
    assert reloading.statuses() == ["succeeded"]
    reloading.clock.move(seconds=1)
    reloading.call(AMOUNT)
    attempt = reloading.reloads()[-1]
    process_attempt(astray(reloading, -timedelta(hours=25)), 1, attempt.id)
    assert reloading.statuses() == ["succeeded", "succeeded"]


def test_a_lease_a_look_and_a_sending_in_a_time_to_come_hold_up_no_attempt(reloading: ReloadWorld) -> None:
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.DROP_BEFORE, operation=CREATE, count=None)
    reloading.work()
    reloading.sandbox.clear_faults()
    then = reloading.clock() + MONTH
    reloading.glance(
        "UPDATE payment_attempts SET in_hand_until = %s, look_at = %s, first_sent_at = %s, last_sent_at = %s RETURNING 1",
        *[then] * 4,
    )
    reloading.clock.move(seconds=1)

    reloading.process_due_attempts()
    (attempt,) = reloading.reloads()
    assert attempt.open  # nobody knows when it was sent: it is looked for
    assert attempt.last_sent_at == reloading.clock()
    assert reloading.taken() == 0
    reloading.drain(hours=30)

    assert reloading.statuses() == ["cancelled", "succeeded"]
    assert reloading.taken() == 1


def test_a_charge_that_was_made_is_found_though_it_was_sent_in_a_time_to_come(reloading: ReloadWorld) -> None:
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.*", count=None)
    reloading.work()
    reloading.sandbox.clear_faults()
    then = reloading.clock() + MONTH
    reloading.glance(
        "UPDATE payment_attempts SET first_sent_at = %s, last_sent_at = %s RETURNING 1", then, then
    )
    reloading.clock.move(days=3)
    reloading.process_due_attempts()
    assert reloading.statuses() == ["succeeded"]
    assert reloading.taken() == 1


def test_a_webhook_is_believed_whatever_this_machines_clock_says(reloading: ReloadWorld) -> None:
    body = b'{"id": "evt_1", "type": "x", "created": 1, "livemode": false, "data": {"object": {}}}'
    header = signature_header(body, [WEBHOOK_SECRET], int(reloading.clock().timestamp()))
    for by in (MONTH, -MONTH):
        assert receive(astray(reloading, by), body, header, [WEBHOOK_SECRET]) == "ignored"


def test_an_identical_top_up_is_joined_though_this_machine_believes_it_to_be_of_long_ago(
    reloading: ReloadWorld,
) -> None:
    reloading.save_card()
    reloading.top_up(told=False)
    reloading.clock.move(seconds=61)
    reloading.payments = astray(reloading, timedelta(hours=25))
    reloading.top_up()
    assert reloading.charged() == 1


def test_postings_of_a_time_to_come_are_named_by_the_audit_and_decide_nothing(reloading: ReloadWorld) -> None:
    """As a program of before this rule has left them: what comes after them gets their time, and reloads go by the clock."""
    due(reloading, limit=AMOUNT)
    reloading.glance("UPDATE transactions SET created_at = created_at + interval '30 days' RETURNING 1")
    reloading.glance("UPDATE accounts SET last_posted_at = last_posted_at + interval '30 days' RETURNING 1")
    reloading.work()
    reloading.call(AMOUNT)
    reloading.work()
    assert reloading.taken() == 1  # the month is this one, whatever the postings say
    assert reloading.skip_reason() == "monthly_limit"

    report = reloading.audit()
    assert [(each.invariant, each.org_id) for each in report.violations] == [("posted_by_now", 1)]
    reloading.clock.move(days=30)
    reloading.reconcile()
    assert reloading.audit().passed


@pytest.mark.parametrize("by", [MONTH, -MONTH])
def test_nothing_that_a_process_stores_is_of_its_own_clock(reloading: ReloadWorld, by: timedelta) -> None:
    """Whatever the column: charges, cards, pauses, lifts, refunds, signals, cursors, what is set aside."""
    reloading.go_astray(by)
    due(reloading)
    reloading.work()
    reloading.top_up(key="k")
    reloading.sandbox.refund(reloading.intents()[0]["id"], amount_cents=100)
    reloading.clock.move(seconds=31)
    reloading.read_events()
    method = reloading.save_card()
    reloading.sandbox.fail_card(method, decline_code="insufficient_funds")
    reloading.adjust(-reloading.balance())
    reloading.work()
    reloading.resume("the bank says it is sorted out")
    reloading.work()
    reloading.settings(minimum_cents=MINIMUM + 1)
    reloading.work()
    reloading.reconcile()

    with transaction(reloading.engine) as connection:
        times = list(stored_times(connection))
    now, near = reloading.clock(), timedelta(days=2)
    assert {name.partition(".")[0] for name, _ in times} >= {
        *(
            "accounts",
            "transactions",
            "payment_attempts",
            "payment_methods",
            "reload_states",
            "reload_resumptions",
        ),
        *("stripe_cursors", "stripe_events", "idempotency_keys"),
    }
    assert [(name, at) for name, at in times if abs(at - now) > near] == []


def test_a_pause_is_resumed_though_postings_are_of_a_time_to_come(reloading: ReloadWorld) -> None:
    """They decide nothing: by their time the pause would be over."""
    reloading.adjust(MINIMUM)
    method = reloading.enable() or ""
    reloading.sandbox.fail_card(method, decline_code="insufficient_funds")
    reloading.call(1)
    reloading.work()
    reloading.glance("UPDATE transactions SET created_at = created_at + interval '30 days' RETURNING 1")
    reloading.glance("UPDATE accounts SET last_posted_at = last_posted_at + interval '30 days' RETURNING 1")
    reloading.resume("the bank says it is sorted out")
    assert reloading.rows("SELECT resumed_at FROM reload_resumptions")[0].resumed_at == reloading.clock()
