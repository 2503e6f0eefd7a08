"""A top-up on which the bank hasn't decided yet: an identical one joins it, until a client was told how it ended."""

import pytest

from metering.payments.outcomes import CardDeclined, TopUpMade
from metering.payments.top_ups import ToppedUp
from tests.payments.together import together
from tests.payments.world import World

KEYS = pytest.mark.parametrize("keys", [(None, None), ("a", None), (None, "b"), ("a", "b")])


def status_of(done: ToppedUp) -> str:
    assert isinstance(done.outcome, TopUpMade)
    return done.outcome.status


@pytest.fixture
def slow(world: World) -> World:
    """A world whose card's bank takes its time."""
    world.sandbox.slow_card(world.save_card())
    return world


@KEYS
def test_a_repeat_joins_while_the_bank_decides(slow: World, keys: tuple[str | None, str | None]) -> None:
    first, second = keys
    begun = slow.top_up(key=first)
    assert status_of(begun) == "processing"

    again = [slow.top_up(key=second), slow.top_up(key=second)]

    assert again == [begun, begun]
    assert len(slow.intents()) == 1


@KEYS
def test_a_repeat_is_told_the_end_and_the_next_one_is_another_top_up(
    slow: World, keys: tuple[str | None, str | None]
) -> None:
    first, second = keys
    begun = slow.top_up(key=first)
    slow.sandbox.finish_processing(slow.intents()[0]["id"])
    slow.deliver(*slow.events("payment_intent.*"))

    again = slow.top_up(key=second)

    assert (again.attempt_id, status_of(again)) == (begun.attempt_id, "succeeded")
    assert len(slow.intents()) == 1
    assert slow.balance() == slow.held_cents() == 2_000
    other = slow.top_up(key="other")
    assert other.attempt_id != begun.attempt_id


def test_a_repeat_brings_the_credit_that_no_event_has_brought_yet(slow: World) -> None:
    slow.top_up()
    slow.sandbox.finish_processing(slow.intents()[0]["id"])

    again = slow.top_up()

    assert status_of(again) == "succeeded"
    assert slow.balance() == slow.held_cents() == 2_000
    slow.assert_sound()


def test_a_repeat_is_told_that_the_bank_said_no_and_the_next_one_asks_anew(slow: World) -> None:
    begun = slow.top_up()
    slow.sandbox.finish_processing(slow.intents()[0]["id"], succeeds=False)

    again = slow.top_up()

    assert again.attempt_id == begun.attempt_id
    assert isinstance(again.outcome, CardDeclined)
    assert slow.balance() == 0
    assert slow.top_up().attempt_id != begun.attempt_id


def test_of_many_repeats_at_once_none_is_charged(slow: World) -> None:
    begun = slow.top_up()
    done = together(*[slow.top_up] * 6)
    assert [each.attempt_id for each in done if isinstance(each, ToppedUp)] == [begun.attempt_id] * 6
    assert len(slow.intents()) == 1


def test_another_amount_joins_nothing_and_after_a_day_nor_does_the_same(slow: World) -> None:
    begun = slow.top_up()
    assert slow.top_up(2_001).attempt_id != begun.attempt_id
    slow.clock.move(hours=24, seconds=1)
    assert slow.top_up().attempt_id != begun.attempt_id
