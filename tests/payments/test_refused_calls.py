"""A call that was refused for want of money makes at most one reload, under every rule of reloads.

See docs/reference/auto-reload.md#refused-calls.
"""

import random
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from db.attempts.refused_holds import ask_refused, note_refused
from db.postgres.engine import transaction
from metering.signals.hold_library import load_hold_library
from metering.signals.holds import Holds
from tests.payments.reload_world import AMOUNT, ReloadWorld
from tests.payments.world import World
from tests.spine.billing import prepare, price
from workers.refused_holds import RefusedHolds

MINUTE = timedelta(minutes=1)


@pytest.fixture
def stranded(reloading: ReloadWorld) -> ReloadWorld:
    """Org 1 with 7 cents, a minimum of 0 and reloads on: not one minute of 8 cents is covered, and the gate is open."""
    reloading.adjust(7)
    reloading.enable(minimum=0)
    return reloading


@pytest.mark.parametrize(("first_increment_cents", "reloaded"), [(7, False), (8, True)])
def test_only_where_the_balance_itself_covers_no_first_increment(
    stranded: ReloadWorld, first_increment_cents: int, reloaded: bool
) -> None:
    stranded.refuse(first_increment_cents)
    stranded.work()
    assert stranded.statuses() == ["succeeded"] * reloaded
    assert stranded.balance() == 7 + AMOUNT * reloaded
    stranded.assert_sound()


def test_one_note_makes_one_reload_and_a_note_is_taken_once_a_minute(stranded: ReloadWorld) -> None:
    for _ in range(3):
        stranded.refuse(1_000_000)
        stranded.work()
    assert stranded.taken() == 1
    stranded.clock.move(seconds=60)
    stranded.refuse(1_000_000)  # still not covered: asked for again, by a new note
    stranded.work()
    assert stranded.taken() == 2
    stranded.call(1)  # asks the rule only where the balance is below the minimum
    stranded.ask_rule()
    stranded.work()
    assert stranded.taken() == 2
    stranded.assert_sound()


@pytest.mark.parametrize(("minutes", "reloads"), [(9.99, 1), (10, 0)])
def test_a_note_counts_for_ten_minutes(stranded: ReloadWorld, minutes: float, reloads: int) -> None:
    stranded.settings(enabled=False)
    stranded.refuse(8)
    assert stranded.reloads() == []
    stranded.clock.move(minutes=minutes)
    stranded.settings(enabled=True)  # asks the rule
    stranded.work()
    assert stranded.taken() == reloads


def test_what_hinders_any_reload_hinders_this_one_and_is_told_for_as_long_as_the_note_counts(
    stranded: ReloadWorld,
) -> None:
    stranded.settings(monthly_limit_cents=AMOUNT - 1)
    stranded.refuse(8)
    stranded.work()
    assert (stranded.reloads(), stranded.skip_reason()) == ([], "monthly_limit")
    stranded.clock.move(minutes=10)
    stranded.reconcile()
    assert stranded.skip_reason() is None
    stranded.settings(monthly_limit_cents=None)
    stranded.reconcile()
    assert stranded.reloads() == []
    stranded.suspend_org()
    stranded.refuse(8)
    assert stranded.skip_reason() == "suspended"
    stranded.resume_org()
    stranded.work()
    assert stranded.taken() == 1
    stranded.assert_sound()


def test_a_declined_card_is_not_tried_again_by_more_refused_calls(stranded: ReloadWorld) -> None:
    stranded.sandbox.fail_card(stranded.account().default_payment_method_id or "", decline_code="stolen_card")
    for _ in range(20):
        stranded.refuse(8)
        stranded.work()
        stranded.clock.move(minutes=1)
    assert stranded.statuses() == ["failed"]


def test_an_unsent_reload_that_the_balance_has_made_needless_is_not_sent(stranded: ReloadWorld) -> None:
    stranded.refuse(8)
    stranded.adjust(1)
    stranded.work()
    assert stranded.statuses() == ["cancelled"]
    assert stranded.taken() == 0


def test_an_unsent_reload_is_sent_however_late_it_comes_to_that(stranded: ReloadWorld) -> None:
    stranded.refuse(8)
    stranded.clock.move(minutes=30)
    stranded.reconcile()
    assert stranded.statuses() == ["succeeded"]


def test_a_reload_that_a_months_turn_finds_unsent_is_made_anew(reloading: ReloadWorld) -> None:
    reloading.clock.at = datetime.fromisoformat("2026-04-30T23:59:00+00:00")
    reloading.adjust(7)
    reloading.enable(minimum=0)
    reloading.refuse(8)
    reloading.clock.move(minutes=2)
    reloading.work()
    reloading.reconcile()
    assert reloading.statuses() == ["cancelled", "succeeded"]
    reloading.assert_sound()


def test_whoever_asks_while_an_org_is_held_comes_back_to_it(stranded: ReloadWorld) -> None:
    note_refused(stranded.engine, {1: 8, 404: 8})
    with transaction(stranded.engine) as connection:
        connection.exec_driver_sql("SELECT FROM accounts FOR UPDATE")
        assert all(not each.attempts for each in ask_refused(stranded.engine))
    assert [len(each.attempts) for each in ask_refused(stranded.engine)] == [1]
    assert list(ask_refused(stranded.engine)) == []
    assert stranded.rows("SELECT org_id FROM refused_holds") == [(1,)]


def test_a_call_that_telephony_s_own_hold_was_refused_counts_at_the_dearest_tier(own_world: World) -> None:
    """By FCALL, as a switch does it; Redis keeps the first refusal until the jobs take it."""
    world, client, holds = own_world, own_world.client, Holds(own_world.client)
    prepare(world.engine, org_ids=[], prices=[price("cheap", "0.07")])
    world.adjust(7)
    world.save_card()
    world.settings(enabled=True, minimum_cents=0, amount_cents=AMOUNT)
    load_hold_library(client)
    task = RefusedHolds(world.payments, holds)

    def start(call_id: int) -> bytes:
        answer: Any = client.fcall("call_start", 2, "holds:1", "holds:1:ends", *(str(call_id), "8", "60"))
        outcome: bytes = answer[0]
        return outcome

    try:
        assert start(5) == b"insufficient"
        task.run_once(threading.Event())
        assert holds.refused() == []
        assert world.attempts() == []  # the dearest tier costs 7 cents: the balance covers that
        prepare(world.engine, org_ids=[], prices=[price("dear", "0.08")])
        world.clock.move(minutes=1)
        assert start(6) == b"insufficient"
        task.run_once(threading.Event())
        world.work()
        assert world.balance() == 7 + AMOUNT
        assert start(6) == b"granted"
        world.assert_sound()
    finally:
        client.function_flush()


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_makes_just_the_reloads_that_ten_lines_foresee(reloading: ReloadWorld, seed: int) -> None:
    chance = random.Random(seed)
    minimum = chance.choice([0, 20])
    reloading.adjust(30)
    reloading.enable(minimum=minimum, amount=50)
    balance, noted_at, needed, counts = 30, reloading.clock.at - MINUTE, 0, False
    waiting = False
    reloads: list[datetime] = []
    for _ in range(40):
        step = chance.choice(["refuse", "refuse", "call", "move"])
        asked = False
        if step == "refuse":
            cents = chance.choice([5, 40, 60])
            if reloading.clock.at - noted_at >= MINUTE:
                noted_at, needed, counts, asked = reloading.clock.at, cents, True, True
            reloading.refuse(cents)
        elif step == "call":
            cents = chance.randrange(1, 15)
            balance -= cents
            asked = balance < max(minimum, 1)
            reloading.call(cents)
        else:
            reloading.clock.move(seconds=chance.choice([7, 59, 130, 700]))
        now = reloading.clock.at
        asked = asked or waiting
        while balance < max(minimum, 1) or (
            asked and counts and now < noted_at + 10 * MINUTE and balance < needed
        ):
            waiting = len(reloads) >= 5 and now < reloads[-5] + 10 * MINUTE
            if waiting:
                break
            counts = False
            reloads.append(now)
            balance += 50
        reloading.work()
        reloading.reconcile()
        assert (reloading.balance(), reloading.taken()) == (balance, len(reloads)), (seed, step)
    assert reloads
    reloading.assert_sound()
