"""A suspended org isn't reloaded, whatever happens to its balance; what is on its way is settled (docs/reference/gate.md)."""

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError

from db.attempts.reload_status import list_reload_stops
from db.models import PaymentAttempt
from db.postgres.engine import transaction
from metering.payments.outcomes import TopUpMade
from metering.rules.payments import AttemptStatus
from metering.rules.reloads import SkipReason
from metering.sandbox.stripe.faults import RequestFault
from metering.signals.gates import Gates
from tests.payments.world import World
from tests.signals.listening import RESTORED, RESUMED, SUSPENDED, said_of, signals_log


def ready(world: World, cents: int = 3_000) -> None:
    """An org with a card, and reloads of 50.00 below 10.00."""
    world.save_card()
    world.adjust(cents)
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)


def state(world: World, org_id: int = 1) -> str | None:
    return Gates(world.client).read([org_id])[0].state


def statuses(world: World) -> list[tuple[AttemptStatus, str | None]]:
    return [(each.status, each.failure_code) for each in world.attempts()]


def skip_reasons(world: World) -> list[str]:
    return [each["reason"] for each in signals_log(world.client) if each["type"] == "auto_reload.skipped"]


@pytest.mark.parametrize("suspended_first", [True, False])
def test_money_that_an_operator_takes_does_not_come_back_by_reload(
    world: World, *, suspended_first: bool
) -> None:
    """Suspending by `adjust` had the card charged, and the gate open again four seconds later."""
    ready(world)
    if suspended_first:
        world.suspend_org()
        world.adjust(-3_500)
    else:
        world.adjust(-3_500)
        world.suspend_org()
    world.work()
    for _ in range(3):
        world.clock.move(days=40)
        world.reconcile()
    assert world.charged() == 0
    assert (state(world), world.balance()) == ("suspended", -500)
    assert skip_reasons(world) == [SkipReason.SUSPENDED]
    world.assert_sound()


def test_reloads_are_made_again_once_it_is_resumed(world: World) -> None:
    ready(world)
    world.suspend_org()
    world.adjust(-2_500)
    done = world.resume_org()
    assert len(done.reloads.attempts) == 1
    assert state(world) == "open"
    world.work()
    assert (world.charged(), world.balance()) == (1, 5_500)
    assert [each for each in said_of(world.client, 1) if not each.startswith("auto_reload")] == [
        RESTORED,
        SUSPENDED,
        RESUMED,
    ]
    world.assert_sound()


def test_an_attempt_that_was_not_sent_is_cancelled(world: World) -> None:
    ready(world)
    world.adjust(-2_500)
    assert [each.open for each in world.attempts()] == [True]
    done = world.suspend_org()
    assert (done.reloads.cancelled, done.reload_on_its_way) == (1, False)
    world.work()
    world.process_due_attempts()
    assert statuses(world) == [(AttemptStatus.CANCELLED, "org_suspended")]
    assert world.charged() == 0
    world.assert_sound()


@pytest.mark.parametrize("fault", [RequestFault.DROP_AFTER, RequestFault.DROP_BEFORE])
def test_what_is_on_its_way_is_settled_and_never_sent_again(world: World, fault: RequestFault) -> None:
    """Its outcome isn't known: if it was charged it is credited, and the gate stays closed; if not, it isn't charged now."""
    ready(world)
    world.sandbox.set_fault(fault, operation="payment_intents.create", count=None)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.list", count=None)
    world.adjust(-2_500)
    world.work()
    assert world.suspend_org().reload_on_its_way
    charged = world.charged()
    world.sandbox.clear_faults()
    for _ in range(30):
        world.clock.move(hours=1)
        world.reconcile()
    assert world.charged() == charged
    assert statuses(world)[0][0] is (AttemptStatus.SUCCEEDED if charged else AttemptStatus.CANCELLED)
    assert world.balance() == 500 + 5_000 * charged
    assert state(world) == "suspended"
    assert len(world.attempts()) == 1
    world.assert_sound()


def test_a_customer_can_top_up_and_the_gate_stays_closed(world: World) -> None:
    ready(world)
    world.suspend_org()
    outcome = world.top_up(2_000).outcome
    assert isinstance(outcome, TopUpMade)
    assert (world.balance(), state(world)) == (5_000, "suspended")
    world.sandbox.refund(outcome.payment_intent_id, amount_cents=500)
    world.deliver(*world.events())
    assert (world.balance(), state(world)) == (4_500, "suspended")
    world.assert_sound()


def test_settings_and_cards_of_a_suspended_org_change_and_charge_nothing(world: World) -> None:
    ready(world, 500)
    world.suspend_org()
    world.settings(amount_cents=6_000)
    world.save_card("pm_card_mastercard")
    world.work()
    assert world.charged() == 0
    world.resume_org()
    world.work()
    assert (world.charged(), world.balance()) == (1, 6_500)
    world.assert_sound()


def test_the_list_of_reloads_says_who_lifts_it(world: World) -> None:
    ready(world)
    world.suspend_org()
    world.adjust(-2_500)
    with world.engine.connect() as connection:
        stops, total = list_reload_stops(connection, world.clock(), limit=9)
    assert total == 1
    assert (stops[0].code, stops[0].paused, stops[0].lifts_with, stops[0].until) == (
        "suspended",
        False,
        "operator",
        None,
    )


def test_no_program_makes_a_reload_of_a_suspended_org(world: World) -> None:
    """Nor one of the version before, which doesn't know suspended orgs: for it that is an outage."""
    ready(world)
    world.suspend_org()
    with (
        pytest.raises(DBAPIError, match="org 1 is suspended, and is not reloaded"),
        transaction(world.engine) as connection,
    ):
        connection.execute(
            insert(PaymentAttempt).values(
                org_id=1,
                id="0d9b4f3e-8a51-4a7c-8f3e-6f9d3c2b1a00",
                kind="auto_reload",
                amount_cents=1,
                customer_id="c",
                payment_method_id="p",
                created_at=world.clock(),
                month_committed_cents=0,
                look_at=world.clock(),
            )
        )
