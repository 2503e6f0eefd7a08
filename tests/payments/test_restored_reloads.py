"""A reload that a restored database has forgotten, while Stripe still has it, and the one that is made in its stead."""

from collections.abc import Iterator

import pytest
import redis

from db.attempts.attempts import Attempt
from metering.rules.payments import AttemptStatus
from tests.conftest import Database
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld, make_site
from tests.payments.test_restored import Backup


@pytest.fixture
def restored(database: Database, redis_client: redis.Redis) -> Iterator[ReloadWorld]:
    """Restored to before its reload was sent, which the bank still has; the balance is low again, and another one is due."""
    with make_site(database, redis_client) as site:
        world = site.fresh()
        world.adjust(MINIMUM)
        method = world.enable()
        assert method is not None
        world.sandbox.slow_card(method)
        world.read_events()
        backup = Backup(database)
        world.call(1)
        world.work()
        assert world.asked() == 1
        backup.restore()
        world.clock.move(minutes=2)
        world.call(1)
        assert world.statuses() == ["open"]
        yield world


def lost_and_made(world: ReloadWorld) -> tuple[Attempt, Attempt]:
    """The forgotten one, written again from what Stripe holds, and the one that was made in its stead."""
    world.read_events()
    (lost,) = [each for each in world.reloads() if each.recovered]
    (made,) = [each for each in world.reloads() if not each.recovered]
    return lost, made


def test_one_that_was_not_sent_makes_way_for_it(restored: ReloadWorld) -> None:
    lost, made = lost_and_made(restored)
    assert lost.status is AttemptStatus.OPEN
    assert (made.status, made.failure_code) == (AttemptStatus.CANCELLED, "superseded")

    restored.work()
    assert restored.asked() == 1
    restored.sandbox.finish_processing(lost.payment_intent_id or "")
    restored.deliver_all()
    assert restored.taken() == 1
    assert restored.balance() == MINIMUM - 1 + AMOUNT
    restored.assert_sound()


def test_beside_one_that_was_sent_it_is_not_open_and_credited_all_the_same(restored: ReloadWorld) -> None:
    restored.work()
    assert restored.asked() == 2
    lost, made = lost_and_made(restored)
    assert (lost.status, made.status) == (AttemptStatus.CANCELLED, AttemptStatus.OPEN)

    for intent in restored.reload_intents():
        restored.sandbox.finish_processing(intent["id"])
    restored.deliver_all()
    assert restored.taken() == 2
    assert restored.balance() == restored.held_cents() + MINIMUM - 1
    assert restored.statuses() == ["succeeded", "succeeded"]
    restored.assert_sound()
