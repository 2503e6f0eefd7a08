"""One charge per crossing, however many calls cross together; and as many one after the other as it takes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from db.attempts.reload_rule import ask_due
from metering.payments.charges import process_attempt
from metering.payments.settling import follow
from tests.payments.reload_world import AMOUNT, MINIMUM, TIER, ReloadWorld
from tests.payments.together import together
from tests.spine.billing import event, push, run_meters


def calls(number: int, cents: int) -> list[dict[str, object]]:
    """Events of so many calls, each of that price."""
    return [
        event(call_id=call_id, tier=TIER.tier, duration_seconds=cents, ended_at="2026-04-20T11:59:00Z")
        for call_id in range(1, number + 1)
    ]


@pytest.mark.parametrize("balance", [MINIMUM, 1])
def test_fifty_calls_in_one_batch_that_cross_together_make_one_charge(
    reloading: ReloadWorld, balance: int
) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable()
    if balance < MINIMUM:
        reloading.settings(minimum_cents=0)
        reloading.adjust(balance - MINIMUM)
    posted = reloading.call(*[10] * 50)
    assert len(posted.debits) == 50
    assert len(posted.reloads.attempts) == 1

    reloading.work()
    reloading.drain(hours=2)

    assert reloading.statuses() == ["succeeded"]
    assert reloading.taken() == 1
    assert reloading.balance() == balance - 500 + AMOUNT
    reloading.assert_sound()


@pytest.mark.parametrize("batch_limit", [1, 50])
def test_fifty_calls_over_three_meters_make_one_charge(reloading: ReloadWorld, batch_limit: int) -> None:
    """In fifty batches, whose meters race for the org's lock, or in few."""
    reloading.adjust(MINIMUM)
    reloading.enable()
    push(reloading.client, calls(50, 10))
    run_meters(reloading.engine, reloading.client, meters=3, batch_limit=batch_limit, clock=reloading.clock)
    assert reloading.balance() == MINIMUM - 500
    assert reloading.statuses() == ["open"]

    reloading.clock.move(seconds=6)
    reloading.reconcile()
    reloading.drain(hours=2)

    assert (reloading.statuses(), reloading.taken()) == (["succeeded"], 1)
    reloading.assert_sound()


def test_meters_that_bill_while_charges_are_made_and_the_reconciler_goes_round_never_charge_for_one_crossing_twice(
    reloading: ReloadWorld,
) -> None:
    """A hundred calls of 2.00 against reloads of 50.00: as many charges as the money takes, and never two at once."""
    reloading.adjust(MINIMUM)
    reloading.enable()
    push(reloading.client, calls(100, 200))

    def charge() -> None:
        for _ in range(60):
            for attempt in [each for each in reloading.reloads() if each.open]:
                process_attempt(reloading.payments, attempt.org_id, attempt.id)
            for reloads in ask_due(reloading.engine):
                follow(reloading.payments, reloads)

    def meter() -> None:
        run_meters(reloading.engine, reloading.client, meters=2, batch_limit=3, clock=reloading.clock)

    assert together(meter, charge, charge) == [None, None, None]
    reloading.drain(hours=1)

    # Every charge but the last was used up before the next.
    assert reloading.taken() == 20_000 // AMOUNT
    assert reloading.balance() == MINIMUM - 20_000 + reloading.taken() * AMOUNT
    balances = reloading.rows("SELECT kind, amount_cents, balance_after_cents FROM transactions ORDER BY id")
    for each in balances:
        if each.kind == "credit":
            assert each.balance_after_cents - each.amount_cents < MINIMUM
    reloading.assert_sound()


def test_a_hundred_workers_on_one_attempt_make_one_charge(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(limit=AMOUNT)
    ((org_id, attempt_id),) = reloading.call(1).reloads.attempts
    with ThreadPoolExecutor(8) as threads:
        for done in [
            threads.submit(process_attempt, reloading.payments, org_id, attempt_id) for _ in range(100)
        ]:
            done.result()
    assert reloading.asked() == 1
    assert (reloading.statuses(), reloading.taken()) == (["succeeded"], 1)
    reloading.assert_sound()


@pytest.mark.parametrize("limit", [None, 4 * 400])
def test_an_amount_too_small_charges_again_after_each_settling_until_above_or_capped(
    reloading: ReloadWorld, limit: int | None
) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(amount=400, limit=limit)
    at_once: list[int] = []
    reloading.watched.after = lambda operation: (
        at_once.append(sum(each.open for each in reloading.reloads())) if operation == "charge" else None
    )
    reloading.call(3_000)
    reloading.work()
    if limit is None:
        assert (reloading.taken(), reloading.skip_reason()) == (5, "pace")
        reloading.drain(hours=1 / 6, step_minutes=10)

    expected = 8 if limit is None else 4  # from -20.00: the eighth brings 12.00
    assert (reloading.taken(), reloading.statuses()) == (expected, ["succeeded"] * expected)
    assert at_once == [1] * expected
    assert reloading.balance() == -2_000 + expected * 400
    assert reloading.skip_reason() == (None if limit is None else "monthly_limit")
    paced = ["succeeded"] * 5 + ["skipped pace"] + ["succeeded"] * 3
    assert reloading.said() == (paced if limit is None else ["succeeded"] * 4 + ["skipped monthly_limit"])
    reloading.assert_sound()
