"""What Stripe's answers lead to: decided, undecided, unknown, or nothing at all."""

from datetime import timedelta
from typing import Any

import pytest
import stripe

from metering.payments.charges import process_attempt
from metering.payments.stripe_failures import StripeRefused
from metering.rules.lookup_schedule import ABSENT_AFTER, SEND_WINDOW
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.crashing import crashing_at
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld

CREATE = "payment_intents.create"


def due(world: ReloadWorld, *, limit: int | None = AMOUNT) -> str:
    """An org with a card and an attempt that nobody has worked on; give the payment method."""
    world.adjust(MINIMUM)
    method = world.enable(limit=limit)
    assert method is not None
    world.call(1)
    assert world.statuses() == ["open"]
    return method


def settled(world: ReloadWorld) -> None:
    """One charge, one credit, nobody paused."""
    assert world.statuses() == ["succeeded"]
    assert world.taken() == 1
    assert world.balance() == MINIMUM - 1 + AMOUNT
    assert world.pause() is None
    assert world.said() == ["succeeded"]
    world.assert_sound()


UNDECIDED = [
    RequestFault.UNAUTHORIZED,
    RequestFault.FORBIDDEN,
    RequestFault.CONFLICT,
    RequestFault.RATE_LIMITED,
    RequestFault.LOCK_TIMEOUT,
]
UNKNOWN = [
    RequestFault.ERROR_BEFORE,
    RequestFault.ERROR_AFTER,
    RequestFault.DROP_BEFORE,
    RequestFault.DROP_AFTER,
]


@pytest.mark.parametrize("fault", [*UNDECIDED, *UNKNOWN])
def test_what_is_not_decided_holds_its_part_of_the_month_and_is_settled_later(
    reloading: ReloadWorld, fault: RequestFault
) -> None:
    due(reloading)
    reloading.sandbox.set_fault(fault, operation="payment_intents.*", count=None)
    reloading.work()
    reloading.process_due_attempts()
    (attempt,) = reloading.reloads()
    assert attempt.open
    assert attempt.first_sent_at is not None
    assert (reloading.pause(), reloading.said()) == (None, [])

    reloading.sandbox.clear_faults()
    reloading.clock.move(seconds=10)
    reloading.reconcile()

    settled(reloading)
    assert len({each.idempotency_key for each in reloading.sandbox.requests(CREATE)}) == 1


def test_idempotency_errors_decide_nothing(reloading: ReloadWorld) -> None:
    """Somebody has used the key for another request: nobody knows what was charged with it, so nothing is decided."""
    due(reloading)
    (attempt,) = reloading.reloads()
    reloading.stripe.v1.payment_intents.create(
        {"amount": 77, "currency": "usd"}, {"idempotency_key": str(attempt.id)}
    )
    reloading.work()
    assert reloading.statuses() == ["open"]
    assert reloading.pause() is None

    reloading.clock.move(hours=24, seconds=1)  # the key is forgotten by now; we no longer use it
    reloading.drain(hours=26)

    assert reloading.statuses() == ["cancelled", "succeeded"]
    assert reloading.taken() == 1


def test_a_key_that_does_not_work_for_an_hour_pauses_nobody_and_then_everybody_is_reloaded(
    reloading: ReloadWorld,
) -> None:
    orgs = range(1, 4)
    for org_id in orgs:
        if org_id > 1:
            reloading.make_org(org_id)
        reloading.adjust(MINIMUM, org_id=org_id)
        reloading.enable(org_id=org_id)
    reloading.sandbox.set_fault(RequestFault.UNAUTHORIZED, count=None, for_s=3_600)
    reloading.post((org_id, 1) for org_id in orgs)
    reloading.drain(hours=0.9, step_minutes=3)
    assert [reloading.statuses(org_id) for org_id in orgs] == [["open"]] * 3
    asked = reloading.asked()
    assert asked < 3 * 12  # backed off

    reloading.drain(hours=1, step_minutes=10)

    assert [reloading.statuses(org_id) for org_id in orgs] == [["succeeded"]] * 3
    assert [reloading.taken(org_id) for org_id in orgs] == [1] * 3
    assert [reloading.pause(org_id) for org_id in orgs] == [None] * 3
    reloading.assert_sound()


def test_a_key_rotated_away_at_stripe_decides_nothing(reloading: ReloadWorld) -> None:
    due(reloading)
    reloading.sandbox.rotate_api_key()
    reloading.work()
    (attempt,) = reloading.reloads()
    assert attempt.open
    assert (attempt.failure_code, reloading.pause()) == (None, None)


def test_any_other_4xx_fails_the_attempt_and_pauses_until_a_change(reloading: ReloadWorld) -> None:
    method = due(reloading)
    reloading.sandbox.detach(method)  # and we have not heard of it
    reloading.work()
    (attempt,) = reloading.reloads()
    assert attempt.status == "failed"
    pause = reloading.pause()
    assert pause is not None
    assert (pause.code, pause.lifts_with, pause.until) == (attempt.failure_code, "change", None)
    assert reloading.said() == [f"failed {pause.code}", "skipped paused"]
    asked = reloading.asked()
    reloading.drain(hours=48, step_minutes=6 * 60)
    assert reloading.asked() == asked

    reloading.save_card("pm_card_mastercard")
    reloading.work()

    assert reloading.statuses() == ["failed", "succeeded"]
    reloading.assert_sound()


@pytest.mark.parametrize("charged", [True, False])
def test_a_repeat_that_is_refused_is_believed_only_if_the_first_sending_made_nothing(
    reloading: ReloadWorld, charged: bool
) -> None:
    """As where a key's answer is lost at Stripe, and the card was detached meanwhile."""
    due(reloading)
    fault = RequestFault.DROP_AFTER if charged else RequestFault.DROP_BEFORE
    reloading.sandbox.set_fault(fault, operation=CREATE, count=1 if charged else 2)
    reloading.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=5)
    reloading.work()
    reloading.sandbox.clear_faults()
    assert reloading.statuses() == ["open"]
    with pytest.MonkeyPatch.context() as patched:

        def refuse(attempt: object, **options: object) -> None:
            raise StripeRefused("resource_missing", "No such PaymentMethod")

        patched.setattr(reloading.watched, "charge", refuse, raising=False)
        reloading.clock.move(seconds=61)
        reloading.process_due_attempts()

    assert reloading.taken() == charged
    assert reloading.statuses() == (["succeeded"] if charged else ["failed"])
    reloading.assert_sound()


@pytest.mark.parametrize(
    "point",
    [
        CrashPoint.CHARGE_BEFORE_SEND,
        CrashPoint.CHARGE_AFTER_SEND,
        CrashPoint.SETTLE_AFTER_WRITE,
        CrashPoint.SETTLE_AFTER_COMMIT,
    ],
)
def test_a_worker_that_dies_anywhere_leaves_one_charge(reloading: ReloadWorld, point: CrashPoint) -> None:
    due(reloading)
    with crashing_at(point):
        reloading.work()
    reloading.enqueued.clear()

    reloading.clock.move(seconds=61)  # until then whoever had it in hand might live
    reloading.reconcile()
    reloading.publish_overdue()
    reloading.mend_gates()

    settled(reloading)


def test_a_stored_500_is_never_a_failure_and_a_new_key_only_follows_when_the_charge_is_surely_not_there(
    reloading: ReloadWorld,
) -> None:
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.ERROR_STORED, operation=CREATE, count=1)
    start = reloading.clock()
    reloading.work()
    while reloading.statuses() == ["open"]:
        reloading.clock.move(hours=3)
        reloading.reconcile()

    first, second = reloading.reloads()
    assert (first.status, first.failure_code) == ("cancelled", "never_charged")
    assert first.last_sent_at is not None
    assert first.last_sent_at - start < SEND_WINDOW
    assert reloading.clock() - first.last_sent_at >= ABSENT_AFTER
    assert second.status == "succeeded"
    assert reloading.taken() == 1
    assert reloading.said() == ["succeeded"]
    reloading.assert_sound()


def test_a_stored_500_of_a_charge_that_was_made_is_found(reloading: ReloadWorld) -> None:
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.ERROR_AFTER, operation=CREATE, count=1)
    reloading.work()
    settled(reloading)


def test_a_key_is_repeated_for_less_than_23_hours_then_looked_up(reloading: ReloadWorld) -> None:
    """At 24 h Stripe forgets the key: one more repeat would be a second charge."""
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.DROP_AFTER, operation=CREATE, count=1)
    reloading.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=None)
    reloading.work()
    first_sent_at = reloading.clock()

    reloading.clock.at = first_sent_at + SEND_WINDOW - timedelta(seconds=1)
    asked = reloading.asked()
    reloading.process_due_attempts()
    assert reloading.asked() > asked  # sent once more, with the same key
    reloading.clock.at = first_sent_at + SEND_WINDOW + timedelta(hours=2)
    asked = reloading.asked()
    reloading.process_due_attempts()
    assert reloading.asked() == asked
    assert reloading.statuses() == ["open"]

    reloading.sandbox.clear_faults()
    reloading.clock.move(hours=1)
    reloading.process_due_attempts()

    assert reloading.asked() == asked
    settled(reloading)


def test_not_there_counts_25_hours_after_it_was_last_sent_and_not_before(reloading: ReloadWorld) -> None:
    due(reloading)
    reloading.sandbox.set_fault(RequestFault.DROP_BEFORE, operation=CREATE, count=None)
    reloading.work()
    last_sent_at = reloading.clock() + SEND_WINDOW - timedelta(minutes=1)
    reloading.clock.at = last_sent_at
    reloading.process_due_attempts()
    reloading.sandbox.clear_faults()

    reloading.clock.at = last_sent_at + ABSENT_AFTER - timedelta(milliseconds=1)
    reloading.process_due_attempts()
    assert reloading.statuses() == ["open"]
    assert reloading.skip_reason() is None
    reloading.clock.at = last_sent_at + ABSENT_AFTER + timedelta(hours=1)
    reloading.process_due_attempts()
    assert reloading.statuses() == ["cancelled", "open"]
    reloading.work()

    assert reloading.statuses() == ["cancelled", "succeeded"]
    assert reloading.taken() == 1
    reloading.assert_sound()


def test_a_worker_that_slept_for_a_day_before_it_sent_sends_nothing(reloading: ReloadWorld) -> None:
    """A machine that was suspended between commit and request: by now its attempt is given up, and another one was charged."""
    due(reloading, limit=None)
    enqueued = reloading.enqueued.pop()

    def sleep(point: CrashPoint) -> None:
        if point is CrashPoint.CHARGE_BEFORE_SEND and not slept:
            slept.append(point)
            reloading.clock.move(hours=26)
            reloading.reconcile()
            assert reloading.statuses() == ["cancelled", "succeeded"]

    slept: list[CrashPoint] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("metering.payments.charges.reach", sleep)
        process_attempt(reloading.payments, *enqueued)

    assert slept
    assert reloading.taken() == 1
    assert reloading.statuses() == ["cancelled", "succeeded"]
    reloading.assert_sound()


def test_a_machine_that_slept_before_the_sdk_repeats_a_charge_sends_nothing(
    reloading: ReloadWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was charged, the answer was lost, and by the time of the repeat Stripe has forgotten the key."""
    due(reloading, limit=None)
    reloading.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=1)
    tried = []
    request = stripe.RequestsClient.request

    def sleeps(client: stripe.RequestsClient, method: str, url: str, *rest: Any) -> Any:
        if method == "post" and url.endswith("/payment_intents"):
            tried.append(url)
        try:
            return request(client, method, url, *rest)
        except stripe.APIConnectionError:
            reloading.clock.move(hours=26)
            raise

    monkeypatch.setattr(stripe.RequestsClient, "request", sleeps)
    reloading.work()

    assert len(tried) == reloading.taken() == 1
    assert reloading.statuses() == ["succeeded"]
    reloading.assert_sound()


def test_a_slow_bank_is_waited_for_and_asked_after_less_and_less_often(reloading: ReloadWorld) -> None:
    method = due(reloading)
    reloading.sandbox.slow_card(method)
    reloading.work()
    reloading.drain(hours=3, step_minutes=6)
    assert reloading.statuses() == ["open"]
    assert reloading.asked("payment_intents.retrieve") < 12

    (intent,) = reloading.reload_intents()
    reloading.sandbox.finish_processing(intent["id"])
    reloading.deliver_all()

    settled(reloading)


def test_a_slow_bank_that_declines_in_the_end_is_a_decline(reloading: ReloadWorld) -> None:
    method = due(reloading)
    reloading.sandbox.slow_card(method)
    reloading.work()
    (intent,) = reloading.reload_intents()
    reloading.sandbox.finish_processing(intent["id"], succeeds=False)
    reloading.deliver_all()

    assert reloading.statuses() == ["failed"]
    assert [each["status"] for each in reloading.reload_intents()] == ["canceled"]
    assert reloading.said() == ["failed generic_decline", "skipped paused"]
    reloading.assert_sound()


def test_the_webhook_before_the_answer_and_again_and_again_credits_once(reloading: ReloadWorld) -> None:
    due(reloading)
    asked: list[str] = []

    def webhook(operation: str) -> None:
        if operation == "charge" and not asked:
            asked.append(operation)
            events = reloading.events("payment_intent.succeeded")
            assert reloading.deliver(*events, *events) == ["credited", "known"]

    reloading.watched.after = webhook
    reloading.work()

    assert asked
    reloading.deliver_all()
    settled(reloading)
