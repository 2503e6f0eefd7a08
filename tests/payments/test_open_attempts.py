"""How long charges stay open: each has its end in time, and one that has none is told."""

from datetime import timedelta

from prometheus_client import REGISTRY

from db.attempts.attempts import longest_open
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.reload_world import MINIMUM, ReloadWorld
from workers.payment_reconciler import tell_longest_open

CREATE = "payment_intents.create"
END = timedelta(hours=27)


def due(world: ReloadWorld) -> None:
    world.adjust(MINIMUM)
    world.enable()
    world.call(1)


def told_s(world: ReloadWorld) -> float | None:
    """What Prometheus is told."""
    tell_longest_open(world.payments)
    return REGISTRY.get_sample_value("metering_longest_open_attempt_seconds")


def not_ended(world: ReloadWorld) -> bool:
    return "attempt_ends" in {each.invariant for each in world.audit().violations}


def test_a_charge_that_stripe_never_gets_ends_before_the_audit_names_it(reloading: ReloadWorld) -> None:
    """It is repeated for 23 hours, and 25 hours after the last time it is known not to be there."""
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.DROP_BEFORE, operation=CREATE, count=None)
    reloading.work()
    (first,) = reloading.reloads()
    hours = 0
    while reloading.reloads()[0].open:
        reloading.clock.move(hours=1)
        hours += 1
        reloading.process_due_attempts()
        assert not not_ended(reloading)
        assert hours < 60
    assert hours > END / timedelta(hours=1)  # since it was made; it was sent again meanwhile
    assert reloading.reloads()[0].id == first.id


def test_a_charge_of_which_stripe_never_tells_is_named_after_27_hours(reloading: ReloadWorld) -> None:
    assert told_s(reloading) == 0
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.DROP_BEFORE, operation="payment_intents.*", count=None)
    reloading.work()
    reloading.settings(enabled=False)  # so that it isn't sent again
    (attempt,) = reloading.reloads()
    assert attempt.last_sent_at is not None
    reloading.clock.at = attempt.last_sent_at + END
    reloading.process_due_attempts()
    assert not not_ended(reloading)
    reloading.clock.move(seconds=1)
    assert not_ended(reloading)
    assert longest_open(reloading.engine) == END + timedelta(seconds=1)
    assert 97_201 <= (told_s(reloading) or 0) < 97_300

    reloading.sandbox.clear_faults()
    reloading.clock.move(hours=2)
    reloading.process_due_attempts()
    assert reloading.statuses() == ["cancelled"]
    assert not not_ended(reloading)
    assert told_s(reloading) == 0
