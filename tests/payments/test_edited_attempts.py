"""Metadata that name another attempt of the same org and amount: each payment comes to its own attempt, by the key that made it.

See docs/reference/money-rules.md#credits.
"""

from contextlib import suppress
from typing import Any

import pytest

from db.attempts.attempts import Attempt, change_attempt, finish_attempt
from db.postgres.engine import transaction
from metering.payments import top_ups
from metering.payments.audit import METADATA_MATCHES
from metering.payments.errors import PaymentError
from metering.payments.outcomes import TopUpMade
from metering.rules.payments import AttemptKind, AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from tests.payments.crashing import crashing_at
from tests.payments.test_ownership import broken, credited, edit, hear_all, hear_as_it_is_now, pay, violations
from tests.payments.world import World


def pay_unheard(world: World, amount_cents: int = 2_000, **how: Any) -> str:
    """A charge whose answer is lost, with the process; give its PaymentIntent."""
    world.clock.move(seconds=1)  # so that attempts have an order
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND, 1):
        world.top_up(amount_cents, **how)
    return str(world.intents()[-1]["id"])


def fail_before_intent(world: World, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """A top-up that Stripe refuses: its card is detached between choosing and charging."""
    method = world.sandbox.save_card(world.account().stripe_customer_id or "", card="pm_card_mastercard")
    begin = top_ups._begin

    def detach_then_begin(*asked: Any) -> Any:
        world.stripe.v1.payment_methods.detach(method)
        return begin(*asked)

    with monkeypatch.context() as patch, suppress(PaymentError):
        patch.setattr(top_ups, "_begin", detach_then_begin)
        world.top_up(2_000, method=method)
    failed = world.attempts()[-1]
    assert failed.uncharged
    world.clock.move(seconds=1)  # so that attempts have an order
    return failed


def pass_time(world: World, hours: int) -> None:
    for _ in range(hours // 3):
        world.clock.move(hours=3)
        hear_all(world)


def test_two_open_ones_each_get_their_own_payment(world: World) -> None:
    first, second = world.save_card(), world.save_card("pm_card_mastercard")
    mine = pay_unheard(world, method=first)
    others = pay_unheard(world, method=second)
    a, b = world.attempts()
    edit(world, mine, attempt_id=str(b.id))

    hear_as_it_is_now(world)
    pass_time(world, 6)

    assert world.balance() == world.held_cents() == 4_000
    assert {each.id: each.payment_intent_id for each in world.attempts()} == {a.id: mine, b.id: others}
    assert {each.status for each in world.attempts()} == {AttemptStatus.SUCCEEDED}
    assert violations(world) == [(METADATA_MATCHES, 1)]
    assert broken(world) == []


def test_two_that_are_swapped_each_get_their_own_payment(world: World) -> None:
    """Whoever looks for his own finds the other's named as his."""
    first, second = world.save_card(), world.save_card("pm_card_mastercard")
    intents = [pay_unheard(world, method=first), pay_unheard(world, method=second)]
    a, b = world.attempts()
    edit(world, intents[0], attempt_id=str(b.id))
    edit(world, intents[1], attempt_id=str(a.id))
    world.clock.move(minutes=2)

    world.process_due_attempts()

    assert [each.payment_intent_id for each in world.attempts()] == intents
    assert world.balance() == 4_000


def test_a_reload_named_as_a_top_up_that_failed_ends_and_the_next_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.save_card()
    failed = fail_before_intent(world, monkeypatch)
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=2_000)
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND, 1):
        world.work()
    intent = world.intents()[-1]["id"]
    edit(world, intent, attempt_id=str(failed.id))

    hear_as_it_is_now(world)
    pass_time(world, 3)

    assert credited(world) == [(1, intent, 2_000)]
    assert [(each.kind, each.status) for each in world.attempts()] == [
        (AttemptKind.TOP_UP, AttemptStatus.FAILED),
        (AttemptKind.AUTO_RELOAD, AttemptStatus.SUCCEEDED),
    ]
    world.adjust(-1_900)
    pass_time(world, 3)
    assert world.balance() == 2_100


def test_a_top_up_named_as_one_that_failed_is_told_at_the_repeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.save_card()
    failed = fail_before_intent(world, monkeypatch)
    world.clock.move(seconds=5)
    intent = pay_unheard(world, key="k")
    edit(world, intent, attempt_id=str(failed.id))
    hear_as_it_is_now(world)
    world.clock.move(minutes=3)

    told = world.top_up(2_000, key="k").outcome

    assert isinstance(told, TopUpMade)
    assert told.payment_intent_id == intent
    assert (world.balance(), world.charged()) == (2_000, 1)


@pytest.mark.parametrize("hours", [0.1, 30])
def test_what_the_version_before_booked_to_a_sibling_goes_back_when_its_own_key_answers(
    world: World, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """As it is in a database that followed metadata: the payment is noted with a sibling, its own attempt is open."""
    world.save_card()
    sibling = fail_before_intent(world, monkeypatch)
    intent = pay_unheard(world, key="k")
    edit(world, intent, attempt_id=str(sibling.id))
    own = world.attempts()[-1]
    hear_as_it_is_now(world)
    with transaction(world.engine) as connection:  # now as the version before would have left it
        change_attempt(
            connection, own, status="open", finished_at=None, payment_intent_id=None, intent_status=None
        )
        finish_attempt(connection, sibling, AttemptStatus.SUCCEEDED, world.clock())
        change_attempt(connection, sibling, payment_intent_id=intent, intent_status="succeeded")
    world.clock.move(hours=hours)
    world.process_due_attempts()

    found = {each.id: each for each in world.attempts()}
    assert (found[own.id].status, found[own.id].payment_intent_id) == (AttemptStatus.SUCCEEDED, intent)
    assert found[sibling.id].payment_intent_id is None
    pass_time(world, 54)  # the displaced one looks for its own, and finds none
    assert [each.status for each in world.attempts() if each.id == sibling.id] == [AttemptStatus.CANCELLED]
    assert credited(world) == [(1, intent, 2_000)]
    assert broken(world) == []


def test_a_payment_that_was_noted_with_an_attempt_stays_credited_when_that_ones_own_comes(
    world: World,
) -> None:
    """Both are credited, each once: the first has an attempt apart until its own takes it."""
    world.save_card()
    first = pay(world)
    second = pay_unheard(world, 2_000)
    a, b = world.attempts()
    edit(world, second, attempt_id="")
    with transaction(
        world.engine
    ) as connection:  # as if metadata had brought the first to the second's attempt
        change_attempt(connection, a, payment_intent_id=None, status="open", finished_at=None)
        finish_attempt(connection, b, AttemptStatus.SUCCEEDED, world.clock())
        change_attempt(connection, b, payment_intent_id=first)

    hear_as_it_is_now(world)

    assert sorted(intent for _, intent, _ in credited(world)) == sorted([first, second])
    assert broken(world) == []
    pass_time(world, 3)
    assert {each.id: each.payment_intent_id for each in world.attempts() if not each.recovered} == {
        a.id: first,
        b.id: second,
    }
    assert [each.status for each in world.attempts() if each.recovered] == [AttemptStatus.CANCELLED]
    assert world.balance() == world.held_cents() == 4_000
    assert broken(world) == []
