"""Top-ups: charged once, credited once, told truly."""

import pytest

from metering.payments.errors import (
    IdempotencyConflictError,
    InvalidAmountError,
    InvalidPaymentMethodError,
    PaymentMethodRequiredError,
    ProviderUnavailableError,
)
from metering.payments.outcomes import AuthenticationRequired, CardDeclined, TopUpMade
from metering.payments.top_ups import mark_unanswered
from metering.rules.payments import MAX_CHARGE_CENTS, AttemptStatus
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.world import World

CHALLENGED = "pm_card_threeDSecure2Required"


def made(world: World, amount_cents: int = 2_000, **how: str | None) -> TopUpMade:
    """Top up, and expect a PaymentIntent for an answer."""
    outcome = world.top_up(amount_cents, **how).outcome  # type: ignore[arg-type]
    assert isinstance(outcome, TopUpMade), outcome
    return outcome


def test_a_top_up_is_charged_and_credited(world: World) -> None:
    world.save_card()

    done = made(world)

    assert done.status == "succeeded"
    assert done.client_secret is not None
    assert done.client_secret.startswith(f"{done.payment_intent_id}_secret")
    assert world.balance() == world.held_cents() == 2_000
    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    world.assert_sound()


def test_without_a_card_nothing_is_charged(world: World) -> None:
    with pytest.raises(PaymentMethodRequiredError):
        world.top_up()
    assert world.attempts() == []
    assert world.sandbox.totals().asked == {}  # nor is a customer made for it


@pytest.mark.parametrize("amount_cents", [-1, 0, 499, MAX_CHARGE_CENTS + 1, 2**70])
def test_an_amount_out_of_range_is_refused_before_anything_is_asked(world: World, amount_cents: int) -> None:
    with pytest.raises(InvalidAmountError):
        world.top_up(amount_cents)
    assert world.attempts() == []


@pytest.mark.parametrize("amount_cents", [500, MAX_CHARGE_CENTS])
def test_the_smallest_and_the_largest_amount_are_charged(world: World, amount_cents: int) -> None:
    world.save_card()
    made(world, amount_cents)
    assert world.balance() == world.held_cents() == amount_cents
    world.assert_sound()


def test_another_saved_card_is_charged_where_it_is_named(world: World) -> None:
    world.save_card("pm_card_chargeCustomerFail")
    customer = world.account().stripe_customer_id
    assert customer is not None
    other = world.sandbox.save_card(customer, card="pm_card_mastercard")

    made(world, method=other)

    assert world.intents()[0]["payment_method"] == other
    assert world.balance() == 2_000


def test_a_card_of_another_customer_is_refused_and_never_charged(world: World) -> None:
    world.save_card()
    world.make_org(2)
    theirs = world.save_card(org_id=2)

    for method in (theirs, "pm_card_visa", "pm_nothing", "cus_x", "pm_/../../customers"):
        with pytest.raises(InvalidPaymentMethodError):
            world.top_up(method=method)

    assert world.attempts() == []
    assert world.charged() == 0


def test_a_card_named_by_an_org_without_a_customer_is_refused(world: World) -> None:
    world.make_org(2)
    theirs = world.save_card(org_id=2)
    with pytest.raises(InvalidPaymentMethodError):
        world.top_up(method=theirs)
    assert world.attempts() == []


def test_a_declined_card_is_told_with_its_code(world: World) -> None:
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code="insufficient_funds")

    done = world.top_up()

    assert done.outcome == CardDeclined("insufficient_funds", "Your card has insufficient funds.")
    assert world.balance() == 0
    world.assert_sound()


def test_after_a_decline_that_was_told_the_same_top_up_is_tried_anew(world: World) -> None:
    method = world.save_card()
    world.sandbox.fail_card(method)
    world.top_up()
    world.sandbox.mend_card(method)
    world.clock.move(seconds=1)

    assert made(world).status == "succeeded"
    assert world.balance() == world.held_cents() == 2_000

    world.clock.move(hours=25)
    world.reconcile()  # cancels what the decline left at Stripe
    assert [each.status for each in world.attempts()] == [AttemptStatus.FAILED, AttemptStatus.SUCCEEDED]
    assert [each["status"] for each in world.intents()] == ["canceled", "succeeded"]
    world.assert_sound()


def test_a_decline_that_nobody_was_told_is_told_to_the_identical_request(world: World) -> None:
    method = world.save_card()
    world.sandbox.fail_card(method)
    first = world.top_up(told=False)
    mark_unanswered(world.payments, 1, first.attempt_id)
    world.sandbox.mend_card(method)

    again = world.top_up()

    assert again == first
    assert isinstance(again.outcome, CardDeclined)
    assert world.charged() == 0


@pytest.mark.parametrize("told_by", ["webhook", "reconciler", "event list"])
def test_a_challenge_that_is_met_credits_however_we_hear_of_it(world: World, told_by: str) -> None:
    world.save_card(CHALLENGED)
    begun = made(world)
    assert begun.status == "requires_action"
    assert begun.client_secret is not None
    assert world.balance() == 0

    world.sandbox.authenticate(begun.payment_intent_id)
    if told_by == "webhook":
        world.deliver(*world.events("payment_intent.succeeded"))
    elif told_by == "reconciler":
        world.clock.move(hours=1, seconds=1)
        world.process_due_attempts()
    else:
        world.clock.move(seconds=31)
        world.read_events()

    assert world.balance() == world.held_cents() == 2_000
    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    world.assert_sound()


def test_a_challenge_that_is_failed_charges_nothing_and_ends_after_a_day(world: World) -> None:
    world.save_card(CHALLENGED)
    begun = made(world)
    world.sandbox.authenticate(begun.payment_intent_id, succeeds=False)
    world.deliver(*world.events("payment_intent.*"))

    (attempt,) = world.attempts()
    assert (attempt.status, attempt.failure_code) == (
        AttemptStatus.OPEN,
        "payment_intent_authentication_failure",
    )

    world.clock.move(hours=24)
    world.reconcile()
    (attempt,) = world.attempts()
    assert attempt.status is AttemptStatus.FAILED
    assert world.balance() == world.held_cents() == 0
    world.assert_sound()


def test_a_challenge_is_told_again_to_whoever_was_not_told(world: World) -> None:
    world.save_card(CHALLENGED)
    first = world.top_up(told=False)
    mark_unanswered(world.payments, 1, first.attempt_id)

    assert world.top_up() == first
    assert len(world.intents()) == 1
    made(world)  # the first is told, so this is another one
    assert len(world.intents()) == 2


def test_a_bank_that_declines_for_want_of_authentication_is_told_as_such(world: World) -> None:
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code="authentication_required")

    done = world.top_up(key="a")

    (intent,) = world.intents()
    assert isinstance(done.outcome, AuthenticationRequired)
    assert done.outcome.payment_intent_id == intent["id"]
    assert done.outcome.client_secret == intent["client_secret"]
    assert world.top_up(key="a") == done
    assert len(world.intents()) == 1

    world.sandbox.mend_card(method)  # the customer confirms it in the browser
    world.stripe.v1.payment_intents.confirm(
        intent["id"], {"payment_method": method, "return_url": "https://example.com"}
    )
    world.deliver(*world.events("payment_intent.succeeded"))
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_slow_bank_is_told_as_processing_and_credited_when_it_decides(world: World) -> None:
    method = world.save_card()
    world.sandbox.slow_card(method)

    begun = made(world)
    assert (begun.status, world.balance()) == ("processing", 0)
    world.sandbox.finish_processing(begun.payment_intent_id)
    world.deliver(*world.events("payment_intent.*"))

    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_bank_slower_than_a_day_is_waited_for_without_asking_all_the_time(world: World) -> None:
    method = world.save_card()
    world.sandbox.slow_card(method)
    begun = made(world)

    world.clock.move(hours=24)
    world.process_due_attempts()  # Stripe refuses to cancel what is processing
    asked = len(world.sandbox.requests("payment_intents.*"))
    for _ in range(4):
        world.clock.move(seconds=2)
        world.process_due_attempts()
    assert len(world.sandbox.requests("payment_intents.*")) == asked

    world.sandbox.finish_processing(begun.payment_intent_id)
    world.clock.move(hours=1)
    world.process_due_attempts()
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_an_unfinished_top_up_is_cancelled_at_stripe_after_a_day_and_not_before(world: World) -> None:
    world.save_card(CHALLENGED)
    made(world)

    world.clock.move(hours=23, minutes=59)
    world.reconcile()
    assert [each["status"] for each in world.intents()] == ["requires_action"]
    world.clock.move(minutes=1)
    world.reconcile()

    assert [each["status"] for each in world.intents()] == ["canceled"]
    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED]
    world.assert_sound()


def test_a_top_up_finished_just_before_it_would_be_cancelled_is_credited(world: World) -> None:
    world.save_card(CHALLENGED)
    begun = made(world)
    world.clock.move(hours=24)
    world.sandbox.authenticate(begun.payment_intent_id)

    world.process_due_attempts()

    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_the_same_key_gets_the_first_answer_and_another_body_a_conflict(world: World) -> None:
    world.save_card()
    first = world.top_up(key="a")

    assert world.top_up(key="a") == first
    with pytest.raises(IdempotencyConflictError):
        world.top_up(2_001, key="a")
    with pytest.raises(IdempotencyConflictError):
        world.top_up(key="a", method=world.account().default_payment_method_id)
    assert world.balance() == world.held_cents() == 2_000


def test_a_key_gets_its_answer_for_ever_whatever_becomes_of_the_card(world: World) -> None:
    method = world.save_card()
    first = world.top_up(key="a")
    world.sandbox.detach(method)
    world.deliver(*world.events("payment_method.detached"))
    world.clock.move(days=400)

    assert world.top_up(key="a") == first
    assert world.charged() == 1


def test_a_key_belongs_to_its_org(world: World) -> None:
    world.save_card()
    world.make_org(2)
    world.save_card(org_id=2)

    mine, theirs = world.top_up(key="a"), world.top_up(3_000, org_id=2, key="a")

    assert mine.attempt_id != theirs.attempt_id
    assert (world.balance(1), world.balance(2)) == (2_000, 3_000)
    world.assert_sound()


def test_a_declined_key_is_told_the_same_decline_and_never_tried_again(world: World) -> None:
    method = world.save_card()
    world.sandbox.fail_card(method)
    first = world.top_up(key="a")
    world.sandbox.mend_card(method)

    assert world.top_up(key="a") == first
    assert world.charged() == 0
    assert made(world, key="b").status == "succeeded"


def test_two_identical_top_ups_that_were_told_are_two(world: World) -> None:
    world.save_card()
    world.top_up()
    world.top_up()
    assert world.balance() == world.held_cents() == 4_000
    world.assert_sound()


def test_a_charge_that_stripe_refuses_charges_nothing_and_leaves_the_key_free(world: World) -> None:
    """The card was taken away at Stripe, and we have not heard of it."""
    method = world.save_card()
    world.sandbox.detach(method)

    with pytest.raises(InvalidPaymentMethodError):
        world.top_up(key="a")
    (attempt,) = world.attempts()
    assert (attempt.status, attempt.payment_intent_id) == (AttemptStatus.FAILED, None)

    world.save_card()
    assert made(world, key="a").status == "succeeded"
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


@pytest.mark.parametrize(
    "fault",
    [
        RequestFault.UNAUTHORIZED,
        RequestFault.FORBIDDEN,
        RequestFault.CONFLICT,
        RequestFault.RATE_LIMITED,
        RequestFault.LOCK_TIMEOUT,
    ],
)
def test_what_stripe_leaves_undecided_is_no_outcome(world: World, fault: RequestFault) -> None:
    world.save_card()
    world.sandbox.set_fault(fault, operation="payment_intents.create", count=2)

    with pytest.raises(ProviderUnavailableError):
        world.top_up()
    world.sandbox.clear_faults()
    assert [each.status for each in world.attempts()] == [AttemptStatus.OPEN]

    assert made(world).status == "succeeded"
    assert world.balance() == world.held_cents() == 2_000
    assert len(world.attempts()) == 1
    world.assert_sound()
