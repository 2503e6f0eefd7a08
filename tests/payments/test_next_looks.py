"""When an attempt that Stripe has not decided is looked at again."""

from datetime import timedelta

from metering.rules.lookup_schedule import LONGEST_LOOKUP_DELAY, TOP_UP_WINDOW
from metering.rules.payments import AttemptStatus
from tests.payments.reload_world import MINIMUM, ReloadWorld
from tests.payments.world import World


def waits_s(world: World, looks: int) -> list[float]:
    """Let the reconciler look so often, each time when it is due; give how long the attempt then waits for the next look."""
    waits = []
    for _ in range(looks):
        world.process_due_attempts()
        (attempt,) = world.attempts()
        assert attempt.looked_at == world.clock()
        waits.append((attempt.look_at - world.clock()) / timedelta(seconds=1))
        world.clock.at = attempt.look_at
    return waits


def test_a_top_up_that_waits_for_its_customer_is_looked_at_every_hour_and_when_its_day_is_over(
    world: World,
) -> None:
    world.save_card("pm_card_threeDSecure2Required")
    world.top_up()
    (made,) = world.attempts()
    assert made.look_at == world.clock() + LONGEST_LOOKUP_DELAY

    world.clock.move(hours=23, minutes=30)
    world.process_due_attempts()
    (known,) = world.attempts()
    assert known.look_at == made.created_at + TOP_UP_WINDOW
    assert known.status is AttemptStatus.OPEN

    world.clock.at = known.look_at
    world.process_due_attempts()
    assert [each["status"] for each in world.intents()] == ["canceled"]
    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED]


def test_a_top_up_that_the_bank_has_when_its_day_is_over_is_looked_at_later_each_time(world: World) -> None:
    """Stripe doesn't cancel it, and to ask again at once would be of no use."""
    world.sandbox.slow_card(world.save_card())
    world.top_up()
    world.clock.move(hours=24)
    assert waits_s(world, 4) == [10, 20, 40, 80]


def test_a_reload_that_the_bank_has_is_looked_at_after_ten_seconds_and_later_each_time(
    reloading: ReloadWorld,
) -> None:
    reloading.adjust(MINIMUM)
    method = reloading.enable()
    assert method is not None
    reloading.sandbox.slow_card(method)
    reloading.call(1)
    reloading.work()
    (sent,) = reloading.attempts()
    assert (sent.look_at - reloading.clock(), sent.in_hand_until) == (timedelta(seconds=10), None)
    reloading.clock.at = sent.look_at
    assert waits_s(reloading, 3) == [10, 20, 40]
