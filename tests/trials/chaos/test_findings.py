"""What chaos has found, each kept here as a test of its own."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
import redis

from metering.payments.audit import CHARGE_CREDITED, audit_against_stripe
from metering.rules.payments import AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from tests.conftest import Database
from tests.payments.crashing import crashing_at
from tests.payments.world import World, make_world
from tests.workers.reloading import ready_to_reload


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    with make_world(database, redis_client) as made:
        yield made


def test_an_attempt_that_seems_unsent_is_looked_for_where_stripe_has_forgotten_its_key(world: World) -> None:
    """The backup had it unsent; then it was sent, and charged; the restored database would send it again, a week later."""
    ready_to_reload(world)
    world.adjust(-1)
    (attempt,) = world.attempts()
    world.payments.stripe.charge(attempt)  # what the database has forgotten
    world.clock.move(days=6)
    world.work()
    assert world.charged() == 1
    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    assert world.balance() == 999 + 5_000
    world.assert_sound()


def test_an_attempt_that_was_really_never_sent_makes_room_for_a_new_one(world: World) -> None:
    ready_to_reload(world)
    world.adjust(-1)
    world.clock.move(days=6)
    world.work()
    world.reconcile()
    assert world.charged() == 1
    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED, AttemptStatus.SUCCEEDED]
    assert world.balance() == 999 + 5_000
    world.assert_sound()


def test_a_limit_that_a_lost_reload_had_used_up_is_kept_again_as_soon_as_it_is_found(world: World) -> None:
    """Until then nobody here can know of it: the audit doesn't put that down to the rule."""
    ready_to_reload(world)
    world.settings(monthly_limit_cents=5_000)
    world.adjust(-1)
    (attempt,) = world.attempts()
    world.settings(enabled=False)
    world.work()
    world.payments.stripe.charge(replace(attempt, id=uuid4()))  # of a time that the database has forgotten
    world.clock.move(seconds=1)
    world.settings(enabled=True)
    world.work()
    assert world.charged() == 2
    assert world.balance() == 999 + 5_000
    world.clock.move(seconds=40)
    world.read_events()
    assert world.balance() == 999 + 10_000
    world.assert_sound()
    world.settings(monthly_limit_cents=14_999)
    world.adjust(-10_000)
    assert world.enqueued == []
    world.settings(monthly_limit_cents=15_000)
    world.work()
    assert world.charged() == 3
    world.assert_sound()


def test_a_request_that_comes_to_stripe_after_its_attempt_was_given_up_is_no_charge_without_an_attempt(
    world: World,
) -> None:
    """It was held up on the way while the clock jumped by days. It took nothing; if it ever does, that is credited."""
    world.save_card("pm_card_authenticationRequired")
    with crashing_at(CrashPoint.CHARGE_BEFORE_SEND):
        world.top_up(700)
    (attempt,) = world.attempts()
    world.clock.move(days=6)
    world.process_due_attempts()
    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED]
    intent = world.payments.stripe.charge(attempt)
    world.clock.move(minutes=20)
    world.read_events()
    world.assert_sound()
    world.sandbox.authenticate(intent.id)
    world.clock.move(minutes=20)
    assert [
        each.invariant for each in audit_against_stripe(world.engine, world.payments.stripe).violations
    ] == [CHARGE_CREDITED]
    world.read_events()
    assert (world.charged(), world.balance()) == (1, 700)
    world.assert_sound()
